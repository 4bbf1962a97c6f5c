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

inline Floats load(const float* at) {
    Floats x;
    __builtin_memcpy(&x, at, sizeof x);
    return x;
}

inline void store(float* at, Floats x) { __builtin_memcpy(at, &x, sizeof x); }

struct BFloat16 {
    uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(BFloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float found;
    __builtin_memcpy(&found, &bits, 4);
    return found;
}

inline void put(float* at, float x) { *at = x; }
inline void put(BFloat16* at, float x) {  // rounded to nearest, ties to even
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    at->bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

#if defined(__FLT16_MAX__)
inline float wide(_Float16 x) { return x; }
inline void put(_Float16* at, float x) { *at = _Float16(x); }
#endif

// 2^x for x <= 127, to two units in the last place; 0 below the normal numbers. The polynomial is the
// minimax one of (2^x - 1) / x on [-1/2, 1/2].
inline Floats exp2(Floats x) {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers
    Floats whole = x + round;
    Ints bits;
    __builtin_memcpy(&bits, &whole, sizeof bits);
    bits = (bits << 23) + (127 << 23);
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

// Lanes of x whose bit is set, the others as given.
inline Floats where(uint32_t bits, Floats x, float other) {
    Ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = 1 << i;
    return ((lane & int32_t(bits)) != 0) ? x : Floats{} + other;
}
