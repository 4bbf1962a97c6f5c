// What a score reads of a query and the granule that begins with the row's key `at`.

struct Read {
    const Scored& own;
    int64_t head, row, each, query, at;
    bool whole;  // whether all keys have this score

    Floats operator()(int i) const {
        const Plane& p = own.planes[i];
        const float* values =
            p.values + head * p.head + row * p.row + each * p.each + query * p.query;
        if (!p.key) return Floats{} + *values;
        values += at - own.first;
        if (whole) return load(values);
        Floats x = {};
        for (int n = 0; n < LANES; n++)
            if (at + n >= own.first && at + n < own.end) x[n] = values[n];
        return x;
    }
};
