// Keys and values of a strip as products want them: in float, in granules or in rows without gaps.

inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

struct Memory {  // one allocation of many arrays; counts only, where there is none yet
    char* all = nullptr;
    int64_t used = 0;
    float* take(int64_t floats) {
        float* found = reinterpret_cast<float*>(all + used);
        used += up(4 * floats, 64);
        return found;
    }
};

struct Rows {
    float* at;
    int64_t pitch;
    bool own;  // not the tensor's memory
    float* from(int64_t i) const { return at + i * pitch; }
};

struct Places {  // of keys: those from `first` on, or a list
    int64_t first;
    const int64_t* list;
    int64_t count;
    int64_t operator[](int64_t i) const { return list ? list[i] : first + i; }
};

template <class T>
struct Keys {
    Places places;
    const float *k, *v;   // in granules: LANES keys, dimension by dimension; v: backward
    Rows k_rows, v_rows;  // k_rows: backward
    Rows dk, dv;          // backward
    bool all_finite = true;   // whether all are; backward

    void take(Memory& m, const Call& call, int64_t head, Places given, bool backward) {
        places = given;
        k = pack(m, call.k, head, call.dim);
        v_rows = rows(m, call.v, head, call.value_dim);
        if (!backward) return;
        v = pack(m, call.v, head, call.value_dim);
        k_rows = rows(m, call.k, head, call.dim);
        dk = sums(m, call.dk, head, call.dim);
        dv = sums(m, call.dv, head, call.value_dim);
        if (!m.all) return;
        all_finite = finite_rows(k_rows, call.dim) && finite_rows(v_rows, call.value_dim);
    }

    // Add sums that are not the tensor's own memory to it.
    void give(const Call& call, int64_t head) const {
        add(call.dk, head, dk, call.dim);
        add(call.dv, head, dv, call.value_dim);
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
            return {reinterpret_cast<float*>(first), x.token, false};
        float* found = m.take(places.count * wide_dim);
        for (int64_t i = 0; m.all && i < places.count; i++) {
            const T* from = row_of<T>(x, head, 0, places[i]);
            for (int64_t c = 0; c < wide_dim; c += LANES)
                store(found + i * wide_dim + c, c < dim ? load(from + c, dim - c) : Floats{});
        }
        return {found, wide_dim, true};
    }

    Rows sums(Memory& m, const Tensor& x, int64_t head, int64_t dim) {
        int64_t wide_dim = up(dim, UNIT);
        if (!places.list && dim == wide_dim)
            return {row_of<float>(x, head, 0, places.first), x.token, false};
        float* found = m.take(places.count * wide_dim);
        if (m.all) __builtin_memset(found, 0, 4 * places.count * wide_dim);
        return {found, wide_dim, true};
    }

    void add(const Tensor& x, int64_t head, Rows sums, int64_t dim) const {
        for (int64_t i = 0; sums.own && i < places.count; i++) {
            float* to = row_of<float>(x, head, 0, places[i]);
            for (int64_t c = 0; c < dim; c++) to[c] += sums.from(i)[c];
        }
    }

    bool finite_rows(Rows x, int64_t dim) const {
        bool found = true;
        for (int64_t i = 0; i < places.count; i++) found &= finite(x.from(i), up(dim, UNIT));
        return found;
    }
};
