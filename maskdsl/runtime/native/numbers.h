// Vectors of floats, and what they are loaded from and stored to.

#if defined(__AVX512F__)
constexpr int LANES = 16, GRANULES = 3, VECTORS = 4;  // of a vector; of a tile of logits; of sums
#elif defined(__AVX__)
constexpr int LANES = 8, GRANULES = 1, VECTORS = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, GRANULES = 3, VECTORS = 4;
#else
constexpr int LANES = 4, GRANULES = 1, VECTORS = 2;
#endif
constexpr int ROWS = 4;  // of a tile in registers
constexpr float INFINITE = __builtin_inff();
constexpr float LOG2E = 1.44269504f;

using Floats = float __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));

using Words = uint16_t __attribute__((vector_size(2 * LANES)));

struct BFloat16 {
    uint16_t bits;
};

inline Floats load(const float* at) {
    Floats x;
    __builtin_memcpy(&x, at, sizeof x);
    return x;
}

inline Floats load(const BFloat16* at) {
    Words words;
    __builtin_memcpy(&words, at, sizeof words);
    Ints bits = __builtin_convertvector(words, Ints) << 16;
    Floats x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

inline void store(float* at, Floats x) { __builtin_memcpy(at, &x, sizeof x); }

inline void store(BFloat16* at, Floats x) {  // rounded to nearest, ties to even
    Ints bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    bits = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : Ints{} + 0x7fc0;
    Words words = __builtin_convertvector(bits, Words);
    __builtin_memcpy(at, &words, sizeof words);
}

#if defined(__FLT16_MAX__)
using Halves = _Float16 __attribute__((vector_size(2 * LANES)));

inline Floats load(const _Float16* at) {
    Halves x;
    __builtin_memcpy(&x, at, sizeof x);
    return __builtin_convertvector(x, Floats);
}

inline void store(_Float16* at, Floats x) {
    Halves halves = __builtin_convertvector(x, Halves);
    __builtin_memcpy(at, &halves, sizeof halves);
}
#endif

// The first `count` numbers, zeros behind them.
template <class T>
inline Floats load(const T* at, int64_t count) {
    if (count >= LANES) return load(at);
    T some[LANES] = {};
    for (int64_t i = 0; i < count; i++) some[i] = at[i];
    return load(some);
}

template <class T>
inline void store(T* at, Floats x, int64_t count) {
    if (count >= LANES) return store(at, x);
    T some[LANES];
    store(some, x);
    for (int64_t i = 0; i < count; i++) at[i] = some[i];
}

template <int... I>
struct Lanes {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
    using type = Lanes<I...>;
};

// Rows become columns, of LANES vectors: blocks off the diagonal change places, then those in blocks.
template <int H, int... I>
inline void transpose(Floats* x, Lanes<I...> lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        if (i & H) continue;
        Floats a = x[i], b = x[i + H];
        x[i] = __builtin_shufflevector(a, b, (I & H ? I + LANES - H : I)...);
        x[i + H] = __builtin_shufflevector(a, b, (I & H ? I + LANES : I + H)...);
    }
    if constexpr (H > 1) transpose<H / 2>(x, lanes);
}

// 2^x for x <= 127, to two units in the last place; 0 below the normal numbers. The polynomial is the
// minimax one of (2^x - 1) / x on [-1/2, 1/2].
inline Floats exp2(Floats x) {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers
    Floats whole = x + round;
    Ints bits;
    __builtin_memcpy(&bits, &whole, sizeof bits);
    bits = (bits + 127) << 23;
    Floats power;
    __builtin_memcpy(&power, &bits, sizeof power);
    Floats f = x - (whole - round);
    Floats p = f * 1.5353362e-4f + 1.3398874e-3f;
    p = p * f + 9.6184374e-3f;
    p = p * f + 5.5503325e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return x < -126.0f ? Floats{} : p * power;
}

inline float sum(Floats x) {
    float lanes[LANES];
    __builtin_memcpy(lanes, &x, sizeof x);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
    return lanes[0];
}

inline float greatest(Floats x) {
    float lanes[LANES];
    __builtin_memcpy(lanes, &x, sizeof x);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) lanes[i] = lanes[i] > lanes[i + n] ? lanes[i] : lanes[i + n];
    return lanes[0];
}

// Whether all numbers are, of which there are a multiple of LANES.
inline bool finite(const float* x, int64_t count) {
    Floats nothing = {};  // times infinity it is NaN
    for (int64_t i = 0; i < count; i += LANES) nothing += load(x + i) * 0.0f;
    return sum(nothing) == 0;
}

// Lanes of x whose bit is set, the others as given.
inline Floats where(uint32_t bits, Floats x, Floats other) {
    Ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = 1 << i;
    return ((lane & int32_t(bits)) != 0) ? x : other;
}

inline Floats where(uint32_t bits, Floats x, float other) { return where(bits, x, Floats{} + other); }
