// What scores do with numbers, as `ir/evaluate.py` defines it.

template <class F>
inline Floats each(Floats x, F function) {
    float lanes[LANES];
    store(lanes, x);
    for (int i = 0; i < LANES; i++) lanes[i] = function(lanes[i]);
    return load(lanes);
}

template <class F>
inline Floats each(Floats x, Floats y, F function) {
    float lanes[LANES], others[LANES];
    store(lanes, x), store(others, y);
    for (int i = 0; i < LANES; i++) lanes[i] = function(lanes[i], others[i]);
    return load(lanes);
}

inline Floats absolute(Floats x) {
    return each(x, [](float a) { return __builtin_fabsf(a); });
}

// NaN where either is.
inline Floats lesser(Floats a, Floats b) { return (a < b) | (a != a) ? a : b; }
inline Floats greater(Floats a, Floats b) { return (a > b) | (a != a) ? a : b; }

inline Ints is_finite(Floats x) { return absolute(x) < INFINITE; }
inline Floats finite_or_0(Floats x) { return is_finite(x) ? x : Floats{}; }

// e^x, to two units in the last place. x is n * ln 2 + r: 355 / 512 and the rest are ln 2. The
// polynomial is the minimax one of (e^r - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2].
inline Floats exponential(Floats x) {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers
    x = x > 89.0f ? Floats{} + 89.0f : x;  // 0 and infinity lie within
    x = x < -104.0f ? Floats{} - 104.0f : x;
    Floats whole = x * LOG2E + round;
    Ints n;
    __builtin_memcpy(&n, &whole, sizeof n);
    n -= 0x4b400000;
    whole -= round;
    Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = r * 1.3814613e-3f + 8.3687098e-3f;
    p = p * r + 4.1668387e-2f;
    p = p * r + 1.6666521e-1f;
    p = p * r + 4.9999994e-1f;
    p = p * (r * r) + r + 1.0f;
    Ints half = n >> 1, powers[2] = {(half + 127) << 23, (n - half + 127) << 23};
    Floats factors[2];
    __builtin_memcpy(factors, powers, sizeof factors);
    return p * factors[0] * factors[1];
}

inline Floats sigmoid(Floats x) { return 1.0f / (exponential(-x) + 1.0f); }

// To three units in the last place. The polynomial is the minimax one of (tanh x - x) / x^3 in x^2
// where |x| <= 5/8.
inline Floats tanh(Floats x) {
    Floats size = absolute(x), z = x * x;
    Floats p = z * -5.7049863e-3f + 2.0639087e-2f;
    p = p * z - 5.3739715e-2f;
    p = p * z + 1.3331442e-1f;
    p = p * z - 3.3333282e-1f;
    Floats near = x + x * z * p;
    Floats far = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
    return size <= 0.625f ? near : x < 0.0f ? -far : far;
}

inline Floats root(Floats x) {
    return each(x, [](float a) { return __builtin_sqrtf(a); });
}

inline Floats logarithm(Floats x) {
    return each(x, [](float a) { return __builtin_logf(a); });
}

inline Floats binary_logarithm(Floats x) {
    return each(x, [](float a) { return __builtin_log2f(a); });
}

inline Floats power(Floats x, Floats y) {
    return each(x, y, [](float a, float b) { return __builtin_powf(a, b); });
}
