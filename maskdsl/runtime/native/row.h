// Attention of one row of a strip, some queries at a time, block of keys by block of keys.

constexpr int QUERIES = 64;  // at a time
static_assert(QUERIES % ROWS == 0, "tiles fill blocks");

template <class T>
struct Row {
    const Call& call;
    const int64_t head;
    const int64_t dim, value_dim;  // filled up
    const Strip* strip = nullptr;
    const Scores* scores = nullptr;
    int64_t row = 0, count = 0;  // count: of its queries, at a time
    float *q = nullptr, *s = nullptr, *out = nullptr;
    float *ds = nullptr, *d_out = nullptr, *dq = nullptr;
    int64_t each[QUERIES], place[QUERIES], token[QUERIES];  // of a query: its head, place in the row
    // Forward: the greatest logit, and the sum of weights relative to its.
    float top[QUERIES], total[QUERIES];
    // Backward: the log-sum-exp; what each gradient of a weight is too large by.
    float limit[QUERIES], delta[QUERIES];

    Row(const Call& given, int64_t which)
        : call(given), head(which), dim(up(given.dim, UNIT)),
          value_dim(up(given.value_dim, UNIT)) {}

    void take(Memory& m) {
        q = m.take(QUERIES * dim);
        s = m.take(QUERIES * PITCH);
        out = m.take(QUERIES * value_dim);
        if (!BACKWARD) return;
        ds = m.take(QUERIES * PITCH);
        d_out = m.take(QUERIES * value_dim);
        dq = m.take(QUERIES * dim);
    }

    void walk(const Keys<T>& keys) {
        int64_t queries = strip->size * call.each;
        for (row = 0; row < strip->rows; row++)
            for (int64_t begin = 0; begin < queries; begin += QUERIES) {
                begin_at(begin, queries - begin < QUERIES ? queries - begin : QUERIES);
                if constexpr (BACKWARD) {
                    differentiate(keys);
                } else {
                    attend(keys, false);
                    if (finite(out, count * value_dim)) {
                        for (int64_t j = 0; j < count; j++) finish(j);
                    } else {
                        finish_apart(keys);
                    }
                }
            }
    }

  private:
    void begin_at(int64_t begin, int64_t some) {
        count = some;
        for (int64_t j = 0; j < count; j++) {
            each[j] = (begin + j) / strip->size, place[j] = (begin + j) % strip->size;
            int64_t at = row * strip->size + place[j];
            token[j] = strip->queries ? strip->queries[at] : strip->query + at;
        }
    }

    int64_t padded() const { return up(count, ROWS); }

    // Rows of a tensor in float, those past the last query zero.
    void load_rows(const Tensor& x, int64_t own_dim, int64_t width, float scale, float* to) {
        for (int64_t j = 0; j < padded(); j++) {
            const T* from = j < count ? row_of<T>(x, head, each[j], token[j]) : nullptr;
            for (int64_t c = 0; c < width; c += LANES) {
                bool any = from && c < own_dim;
                store(to + j * width + c, any ? load(from + c, own_dim - c) * scale : Floats{});
            }
        }
    }

    void put_row(const Tensor& x, int64_t own_dim, int64_t j, const float* from, float scale) {
        T* to = row_of<T>(x, head, each[j], token[j]);
        for (int64_t c = 0; c < own_dim; c += LANES) store(to + c, load(from + c) * scale, own_dim - c);
    }

    struct Granule {
        int64_t at;       // the row's key that it begins with
        uint32_t inside;  // which of its keys are the row's
        const Mask* mask;  // or null
        bool whole() const { return !mask && inside == (1u << LANES) - 1; }
    };

    struct Part {  // of the row's keys in a block, which follow each other
        int64_t column, key, count;  // column: of logits; key: as `Keys` counts
    };

    // Keys whose logits are held at a time.
    struct Block {
        int64_t granules = 0, parts = 0;
        Granule granule[BLOCK / LANES];
        const float *k[BLOCK / LANES], *v[BLOCK / LANES];
        Part part[BLOCK / LANES];
    };

    // use(block) of all keys of the row.
    template <class F>
    void each_block(const Keys<T>& keys, F use) {
        Block block;
        int64_t at = 0, runs = strip->runs ? strip->runs : 1;
        for (int64_t i = 0; i < runs; i++) {
            Run run = {row * strip->step + strip->key, strip->length};
            if (strip->runs) run = strip->run[i];
            int64_t first = run.key - keys.places.first, end = first + run.count;
            for (int64_t key = first / LANES * LANES; key < end; key += LANES) {
                if (block.granules == BLOCK / LANES) use(block), block.granules = block.parts = 0;
                add(block, keys, key, first, end, at);
            }
            at += run.count;
        }
        if (block.granules) use(block);
    }

    // Add the granule that begins with `key`, of a run from `first` to `end`, the row's key `at`.
    void add(Block& block, const Keys<T>& keys, int64_t key, int64_t first, int64_t end, int64_t at) {
        int64_t n = block.granules++, column = n * LANES;
        Granule& own = block.granule[n];
        own = {at + key - first, (1u << LANES) - 1, nullptr};
        int64_t from = key, to = key + LANES;
        if (from < first) own.inside &= ~0u << (first - from), from = first;
        if (to > end) own.inside &= (1u << (end - key)) - 1, to = end;
        for (int64_t i = 0; i < strip->masks; i++) {  // they lie further apart than a granule
            const Mask& m = strip->mask[i];
            if (own.at + LANES > m.first && own.at < m.end) own.mask = &m;
        }
        block.k[n] = keys.k + key * dim;
        if (BACKWARD) block.v[n] = keys.v + key * value_dim;
        Part& last = block.part[block.parts - 1];
        if (block.parts && last.key + last.count == from && last.column + last.count == column)
            last.count += to - from;
        else
            block.part[block.parts++] = {column + from - key, from, to - from};
    }

    // Which keys of a granule a query keeps.
    uint32_t kept(const Granule& g, int64_t j) const {
        if (!g.mask) return g.inside;
        int64_t bit = g.at - g.mask->first + AHEAD;
        const uint8_t* bits = g.mask->bits + head * g.mask->head + row * g.mask->row +
                              each[j] * g.mask->each + place[j] * g.mask->query;
        uint32_t word;
        __builtin_memcpy(&word, bits + bit / 8, 4);
        return g.inside & word >> bit % 8;
    }

    // The scores of the logits of a granule. SLOPE: and their slopes, which are 1 before.
    template <bool SLOPE>
    Floats scored(Floats x, int64_t at, int64_t j, Floats& slopes) const {
        for (int64_t i = 0; i < scores->count; i++) {
            const Scored& own = scores->scored[i];
            if (at + LANES <= own.first || at >= own.end) continue;
            bool whole = at >= own.first && at + LANES <= own.end;
            Floats slope = Floats{} + 1.0f;
            Read read = {own, head, row, each[j], place[j], at, whole};
            Floats y = score<SLOPE>(own.number, x, read, slope);
            uint32_t bits = ~0u;
            if (at < own.first) bits <<= own.first - at;
            if (at + LANES > own.end) bits &= (1u << (own.end - at)) - 1;
            x = whole ? y : where(bits, y, x);
            if (SLOPE) slopes = whole ? slope : where(bits, slope, slopes);
        }
        return x;
    }

    // skip: values may be infinite or NaN where nobody looks.
    void attend(const Keys<T>& keys, bool skip) {
        load_rows(call.q, call.dim, dim, float(call.scale), q);
        __builtin_memset(out, 0, 4 * padded() * value_dim);
        for (int64_t j = 0; j < count; j++) top[j] = -INFINITE, total[j] = 0;
        each_block(keys, [&](const Block& block) {
            block_logits(q, padded(), block.k, block.granules, dim, s);
            weigh(block);
            for (int64_t i = 0; i < block.parts; i++) {
                Part p = block.part[i];
                add_product({s + p.column, PITCH, 1}, keys.v_rows[p.key], keys.v_rows.pitch,
                            p.count, out, skip ? count : padded(), value_dim, value_dim, skip);
            }
        });
    }

    // Rows with infinite or NaN sums may have these from values that they do not see.
    void finish_apart(const Keys<T>& keys) {
        bool again[QUERIES];
        for (int64_t j = 0; j < count; j++) {
            again[j] = !finite(out + j * value_dim, value_dim);
            if (!again[j]) finish(j);
        }
        attend(keys, true);
        for (int64_t j = 0; j < count; j++)
            if (again[j]) finish(j);
    }

    // The online softmax of Milakov and Gimelshein, arXiv 1805.02867: logits become weights.
    void weigh(const Block& block) {
        for (int64_t j = 0; j < count; j++) {
            float* own = s + j * PITCH;
            Floats most = Floats{} - INFINITE;
            for (int64_t g = 0; g < block.granules; g++) {
                const Granule& of = block.granule[g];
                Floats x = load(own + g * LANES), slope;
                if (scores) x = scored<false>(x, of.at, j, slope);
                if (!of.whole()) x = where(kept(of, j), x, -INFINITE);
                if (scores || !of.whole()) store(own + g * LANES, x);
                most = x > most ? x : most;
            }
            float old = top[j], now = greatest(most);
            now = now > old ? now : old;
            float off = now == -INFINITE ? 0 : now;
            Floats weights = {};
            for (int64_t g = 0; g < block.granules; g++) {
                Floats p = exp2((load(own + g * LANES) - off) * LOG2E);
                store(own + g * LANES, p);
                weights += p;
            }
            if (now > old) {
                float less = old == -INFINITE ? 0 : __builtin_exp2f((old - now) * LOG2E);
                total[j] *= less;
                for (int64_t c = 0; c < value_dim; c += LANES) {
                    float* to = out + j * value_dim + c;
                    store(to, load(to) * less);
                }
            }
            total[j] += sum(weights);
            top[j] = now;
        }
    }

    void finish(int64_t j) {
        bool nothing = total[j] == 0;
        float lse = nothing ? -INFINITE : float(top[j] + __builtin_log(total[j]));
        float share = nothing ? 1 : 1 / total[j];
        if (call.sink) {
            float sink = call.sink[head * call.each + each[j]];
            float more = lse > sink ? lse : sink, less = lse > sink ? sink : lse;
            float both = less == -INFINITE ? more : more + __builtin_log1pf(__builtin_expf(less - more));
            if (!nothing) share *= __builtin_expf(lse - both);
            lse = both;
        }
        put_row(call.out, call.value_dim, j, out + j * value_dim, share);
        *row_of<float>(call.lse, head, each[j], token[j]) = lse;
    }

    void differentiate(const Keys<T>& keys) {
        load_rows(call.q, call.dim, dim, float(call.scale), q);
        load_rows(call.d_out, call.value_dim, value_dim, 1, d_out);
        for (int64_t j = 0; j < count; j++) {
            float lse = *row_of<float>(call.lse, head, each[j], token[j]);
            limit[j] = lse == -INFINITE ? INFINITE : lse;  // without keys there are no weights
            const T* o = row_of<T>(call.out, head, each[j], token[j]);
            Floats products = {};
            for (int64_t c = 0; c < call.value_dim; c += LANES)
                products += load(o + c, call.value_dim - c) * load(d_out + j * value_dim + c);
            delta[j] = sum(products) - *row_of<float>(call.d_lse, head, each[j], token[j]);
        }
        bool skip = !keys.all_finite || !finite(q, count * dim) || !finite(d_out, count * value_dim);
        __builtin_memset(dq, 0, 4 * padded() * dim);
        each_block(keys, [&](const Block& block) {
            block_logits(q, padded(), block.k, block.granules, dim, s);
            block_logits(d_out, padded(), block.v, block.granules, value_dim, ds);
            slopes(block);
            for (int64_t i = 0; i < block.parts; i++) {
                Part p = block.part[i];
                Rows dv = keys.sums.dv, dk = keys.sums.dk, k = keys.k_rows;
                add_product({s + p.column, 1, PITCH}, d_out, value_dim, count, dv[p.key], p.count,
                            dv.pitch, value_dim, skip);
                add_product({ds + p.column, 1, PITCH}, q, dim, count, dk[p.key], p.count, dk.pitch,
                            dim, skip);
                add_product({ds + p.column, PITCH, 1}, k[p.key], k.pitch, p.count, dq,
                            skip ? count : padded(), dim, dim, skip);
            }
        });
        for (int64_t j = 0; j < count; j++) put_row(call.dq, call.dim, j, dq + j * dim, call.scale);
    }

    // Logits become weights, and gradients of weights those of logits.
    void slopes(const Block& block) {
        for (int64_t g = 0; g < block.granules; g++) {
            const Granule& of = block.granule[g];
            for (int64_t j = 0; j < count; j++) {
                float *own = s + j * PITCH + g * LANES, *own_ds = ds + j * PITCH + g * LANES;
                Floats x = load(own), slope = Floats{} + 1.0f;
                if (scores) x = scored<SLOPED>(x, of.at, j, slope);
                Floats p = exp2((x - limit[j]) * LOG2E);
                Floats d = p * (load(own_ds) - delta[j]);
                if (SLOPED) d *= slope;
                if (!of.whole()) {
                    uint32_t bits = kept(of, j);
                    p = where(bits, p, 0), d = where(bits, d, 0);
                }
                store(own, p);
                store(own_ds, d);
            }
        }
    }
};
