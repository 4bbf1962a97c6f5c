// Keys and values of a strip as products want them: in float, in granules or in rows without gaps.

struct Rows {
    float* at;
    int64_t pitch;
    float* operator[](int64_t i) const { return at + i * pitch; }
};

struct Places {  // of keys: those from `first` on, or a list
    int64_t first;
    const int64_t* list;
    int64_t count;
    int64_t operator[](int64_t i) const { return list ? list[i] : first + i; }
};

struct Sums {  // of gradients of keys and values, one head's, a row for each token
    Rows dk, dv;

    void take(Memory& m, int64_t tokens, const Call& call) {
        dk = rows(m, tokens, up(call.dim, UNIT));
        dv = rows(m, tokens, up(call.value_dim, UNIT));
    }

    // Of all tokens: where the call wants them, if these are floats without gaps.
    template <class T>
    void take_all(Memory& m, const Call& call, int64_t head) {
        take_result<T>(m, call, call.dk, head, call.dim, dk);
        take_result<T>(m, call, call.dv, head, call.value_dim, dv);
    }

    template <class T>
    void give_all(const Call& call, int64_t head) const {
        give_result<T>(call, call.dk, head, dk, call.dim);
        give_result<T>(call, call.dv, head, dv, call.value_dim);
    }

  private:
    static Rows rows(Memory& m, int64_t tokens, int64_t dim) {
        float* found = m.take(tokens * dim);
        if (m.all) __builtin_memset(found, 0, 4 * tokens * dim);
        return {found, dim};
    }

    template <class T>
    static bool in_place(const Call& call, int64_t dim) {
        return (call.add || sizeof(T) == 4) && dim == up(dim, UNIT);
    }

    template <class T>
    static void take_result(Memory& m, const Call& call, const Tensor& x, int64_t head, int64_t dim,
                            Rows& found) {
        if (!in_place<T>(call, dim)) {
            found = rows(m, call.tokens, up(dim, UNIT));
            return;
        }
        found = {row_of<float>(x, head, 0, 0), x.token};
        for (int64_t i = 0; m.all && !call.add && i < call.tokens; i++)
            __builtin_memset(found[i], 0, 4 * dim);
    }

    template <class T>
    static void give_result(const Call& call, const Tensor& x, int64_t head, Rows from,
                            int64_t dim) {
        if (in_place<T>(call, dim)) return;
        for (int64_t i = 0; i < call.tokens; i++)
            for (int64_t c = 0; c < dim; c += LANES) {
                Floats own = load(from[i] + c);
                if (call.add) {
                    float* to = row_of<float>(x, head, 0, i) + c;
                    store(to, own + load(to, dim - c), dim - c);
                } else {
                    store(row_of<T>(x, head, 0, i) + c, own, dim - c);
                }
            }
    }
};

template <class T>
struct Keys {
    Places places;
    const float *k, *v;       // in granules: LANES keys, dimension by dimension; v: backward
    Rows k_rows, v_rows;      // k_rows: backward
    Sums sums;                // backward
    bool all_finite = true;   // backward

    // every: sums of all tokens, which places that follow each other add to at once.
    void take(Memory& m, const Call& call, int64_t head, Places given, const Sums* every) {
        places = given;
        k = pack(m, call.k, head, call.dim);
        v_rows = rows(m, call.v, head, call.value_dim);
        if (!every) return;
        v = pack(m, call.v, head, call.value_dim);
        k_rows = rows(m, call.k, head, call.dim);
        if (places.list) {
            sums.take(m, places.count, call);
        } else {
            sums.dk = {every->dk[places.first], every->dk.pitch};
            sums.dv = {every->dv[places.first], every->dv.pitch};
        }
        if (m.all) all_finite = finite_rows(k_rows, call.dim) && finite_rows(v_rows, call.value_dim);
    }

    void give(const Sums& every) const {
        add(every.dk, sums.dk);
        add(every.dv, sums.dv);
    }

  private:
    const float* pack(Memory& m, const Tensor& x, int64_t head, int64_t dim) {
        int64_t wide_dim = up(dim, UNIT);
        float* found = m.take(up(places.count, LANES) * wide_dim);
        if (!m.all) return found;
        for (int64_t i = 0; i < places.count; i += LANES)
            for (int64_t c = 0; c < wide_dim; c += LANES) {
                Floats block[LANES] = {};
                for (int64_t n = 0; n < LANES && i + n < places.count && c < dim; n++)
                    block[n] = load(row_of<T>(x, head, 0, places[i + n]) + c, dim - c);
                transpose<LANES / 2>(block, Count<LANES>::type());
                for (int64_t n = 0; n < LANES && c + n < wide_dim; n++)
                    store(found + i * wide_dim + (c + n) * LANES, block[n]);
            }
        return found;
    }

    Rows rows(Memory& m, const Tensor& x, int64_t head, int64_t dim) {
        int64_t wide_dim = up(dim, UNIT);
        T* first = row_of<T>(x, head, 0, places.first);
        if (!places.list && sizeof(T) == 4 && dim == wide_dim)
            return {reinterpret_cast<float*>(first), x.token};
        float* found = m.take(places.count * wide_dim);
        for (int64_t i = 0; m.all && i < places.count; i++) {
            const T* from = row_of<T>(x, head, 0, places[i]);
            for (int64_t c = 0; c < wide_dim; c += LANES)
                store(found + i * wide_dim + c, c < dim ? load(from + c, dim - c) : Floats{});
        }
        return {found, wide_dim};
    }

    void add(Rows every, Rows own) const {
        for (int64_t i = 0; i < places.count; i++)
            for (int64_t c = 0; c < own.pitch; c += LANES) {
                float* to = every[places[i]] + c;
                store(to, load(to) + load(own[i] + c));
            }
    }

    bool finite_rows(Rows x, int64_t dim) const {
        bool found = true;
        for (int64_t i = 0; i < places.count; i++) found &= finite(x[i], up(dim, UNIT));
        return found;
    }
};
