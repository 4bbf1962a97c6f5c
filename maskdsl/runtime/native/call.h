// What a call gives, as `native_strips.py` lays it out.

constexpr int AHEAD = 16;  // ones before the first bit of a mask

struct Mask {  // of the keys of a row from `first` to `end`
    int64_t first, end;
    const uint8_t* bits;  // of each query: AHEAD ones, whether it keeps each key, 48 ones
    int64_t head, row, each, query;  // bytes from one to the next
};

struct Run {  // of keys that follow each other
    int64_t key, count;
};

struct Strip {  // row i of queries sees the keys of the strip from i * step on
    int64_t rows, size, step, length;  // size: queries of a row; length: keys of a row
    int64_t query;                     // the first, where `queries` is null
    const int64_t* queries;
    int64_t key, keys;  // the first, and how many
    const int64_t* key_at;  // where each lies that is copied first, or null
    int64_t runs;           // of the keys of the only row, where they are not one run, or 0
    const Run* run;
    int64_t masks;
    const Mask* mask;
};

struct Plane {  // what a score reads
    const float* values;
    int64_t head, row, each, query, key;  // strides in numbers; key: 1, or 0 where all have one
};

struct Scored {  // the logits of a row's keys from `first` to `end`
    int64_t first, end, number;  // number: of the score, as `score.h` knows it
    const Plane* planes;
};

struct Scores {  // of one strip
    int64_t count;
    const Scored* scored;
};

struct Tensor {  // (heads of keys, heads each, tokens, dim), strides in elements
    void* data;
    int64_t head, each, token;
};

struct Call {
    int64_t each, tokens, dim, value_dim;  // tokens: of keys
    double scale;
    Tensor q, k, v, out, lse;
    const float* sink;  // (heads of keys, heads each), or null
    Tensor d_out, d_lse, dq, dk, dv;
    int64_t add;  // to dk and dv, which are floats then, whatever the type of the rest
    const Strip* strips;
    const Scores* scores;  // of each strip, or null
    int64_t spares;
    struct Spare** spare;  // blocks that tasks leave to each other, or nulls
};

template <class T>
T* row_of(const Tensor& x, int64_t head, int64_t each, int64_t token) {
    return static_cast<T*>(x.data) + head * x.head + each * x.each + token * x.token;
}
