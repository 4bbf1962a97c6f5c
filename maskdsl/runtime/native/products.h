// Products of a few rows at a time, their sums in registers.

constexpr int TERMS = 8, SPAN = 32;  // of a logit, that are summed in registers
constexpr int UNIT = LANES > TERMS ? LANES : TERMS;  // dimensions are filled up to a multiple
constexpr int BLOCK = 192;                           // keys whose logits are held at a time
constexpr int PITCH = BLOCK + 16;  // of logits: rows do not share a set of the cache
constexpr int PIECE = 96;          // keys, or queries, that one sum adds
static_assert(BLOCK % (LANES * GRANULES) == 0, "tiles fill blocks");

// s[r] = logits of ROWS queries with N granules of keys. Terms are summed in groups, groups in spans,
// spans in memory: rounding errors grow with the number of terms that one sum takes in turn.
template <int N>
inline void tile_logits(const float* q, const float* const* k, int64_t dim, float* s) {
    const float* own[N];
    for (int n = 0; n < N; n++) own[n] = k[n];
    for (int64_t first = 0; first < dim; first += SPAN) {
        int64_t end = first + SPAN < dim ? first + SPAN : dim;
        Floats total[ROWS][N] = {};
        for (int64_t c = first; c < end; c += TERMS) {
            Floats part[ROWS][N];
#pragma GCC unroll 8
            for (int i = 0; i < TERMS; i++) {
                Floats b[N];
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) b[n] = load(own[n] + (c + i) * LANES);
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; r++) {
                    float a = q[r * dim + c + i];
#pragma GCC unroll 4
                    for (int n = 0; n < N; n++) part[r][n] = i ? part[r][n] + b[n] * a : b[n] * a;
                }
            }
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) total[r][n] += part[r][n];
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) {
                float* at = s + r * PITCH + n * LANES;
                store(at, first ? load(at) + total[r][n] : total[r][n]);
            }
    }
}

// Logits of `rows` queries (a multiple of ROWS) with a block of granules, each where k[g] points.
void block_logits(const float* q, int64_t rows, const float* const* k, int64_t granules,
                  int64_t dim, float* s) {
    int64_t g = 0;
    for (; g + GRANULES <= granules; g += GRANULES)
        for (int64_t r = 0; r < rows; r += ROWS)
            tile_logits<GRANULES>(q + r * dim, k + g, dim, s + r * PITCH + g * LANES);
    for (; g < granules; g++)
        for (int64_t r = 0; r < rows; r += ROWS)
            tile_logits<1>(q + r * dim, k + g, dim, s + r * PITCH + g * LANES);
}

// A matrix whose element (r, i) is at[r * row + i * column].
struct Matrix {
    const float* at;
    int64_t row, column;
    Matrix from(int64_t r, int64_t i) const { return {at + r * row + i * column, row, column}; }
};

template <int R, int N>
inline void add_tile(Matrix a, const float* b, int64_t pitch, int64_t count, float* c,
                     int64_t c_pitch) {
    Floats total[R][N] = {};
    for (int64_t i = 0; i < count; i++) {
        Floats x[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) x[n] = load(b + i * pitch + n * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            float y = a.at[r * a.row + i * a.column];
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) total[r][n] += x[n] * y;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            float* at = c + r * c_pitch + n * LANES;
            store(at, load(at) + total[r][n]);
        }
}

template <int N>
void add_panel(Matrix a, const float* b, int64_t pitch, int64_t count, float* c, int64_t rows,
               int64_t c_pitch) {
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS)
        add_tile<ROWS, N>(a.from(r, 0), b, pitch, count, c + r * c_pitch, c_pitch);
    for (; r < rows; r++) add_tile<1, N>(a.from(r, 0), b, pitch, count, c + r * c_pitch, c_pitch);
}

// c[r] += sum over i < count of a(r, i) * b[i], of `width` numbers each, a multiple of LANES.
// skip: where a is 0 nothing is added, be b infinite or NaN.
void add_product(Matrix a, const float* b, int64_t pitch, int64_t count, float* c, int64_t rows,
                 int64_t c_pitch, int64_t width, bool skip) {
    if (skip) {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < count; i++) {
                float y = *a.from(r, i).at;
                for (int64_t w = 0; y != 0 && w < width; w++)
                    c[r * c_pitch + w] += y * b[i * pitch + w];
            }
        return;
    }
    for (int64_t i = 0; i < count; i += PIECE) {
        int64_t some = count - i < PIECE ? count - i : PIECE;
        const float* own = b + i * pitch;
        int64_t w = 0;
        for (; w + VECTORS * LANES <= width; w += VECTORS * LANES)
            add_panel<VECTORS>(a.from(0, i), own + w, pitch, some, c + w, rows, c_pitch);
        for (; w + 2 * LANES <= width; w += 2 * LANES)
            add_panel<2>(a.from(0, i), own + w, pitch, some, c + w, rows, c_pitch);
        for (; w < width; w += LANES)
            add_panel<1>(a.from(0, i), own + w, pitch, some, c + w, rows, c_pitch);
    }
}
