// Attention along strips of keys, forward or (BACKWARD is 1) backward, on one core of a CPU: what the
// torch backend runs where there is a C++ compiler. Compiled for one type of numbers, TYPE, and one
// machine; each way by itself, as a first call waits for it.
//
// Keys are packed into granules of LANES keys, so that a product of a few queries with a few granules
// stays in registers. Softmax is online, over blocks of keys whose logits stay in the cache.

#include <stdint.h>

namespace {
#include "numbers.h"
#include "products.h"
#include "call.h"
#include "memory.h"
#include "keys.h"
#include "planes.h"
#include "score.h"
#include "row.h"

template <class T>
int run(const Call& call, int64_t head, int64_t first, int64_t end) {
    // Of keys that strips of one row take as they lie, which are packed once for all of them; other
    // strips pack their own, few enough to stay in the cache.
    int64_t low = INT64_MAX, high = 0;
    for (int64_t i = first; i < end; i++) {
        const Strip& x = call.strips[i];
        if (x.key_at || x.rows > 1) continue;
        int64_t end = x.runs ? x.run[x.runs - 1].key + x.run[x.runs - 1].count : x.key + x.keys;
        low = x.key < low ? x.key : low;
        high = end > high ? end : high;
    }
    Row<T> row(call, head);
    Memory memory;
    Spare* block = nullptr;
    for (bool known = false;; known = true) {  // first how much memory, then the work
        memory.used = 0;
        row.take(memory);
        Sums sums = {};
        if constexpr (BACKWARD) sums.take_all<T>(memory, call, head);
        const Sums* every = BACKWARD ? &sums : nullptr;
        Keys<T> slices;
        if (low < high) slices.take(memory, call, head, {low, nullptr, high - low}, every);
        int64_t used = memory.used, most = used;
        for (int64_t i = first; i < end; i++) {
            row.strip = call.strips + i;
            row.scores = call.scores ? call.scores + i : nullptr;
            memory.used = used;
            Keys<T> own = slices;
            const Strip& x = *row.strip;
            if (x.key_at || x.rows > 1)
                own.take(memory, call, head, {x.key, x.key_at, x.keys}, every);
            most = memory.used > most ? memory.used : most;
            if (!known) continue;
            row.walk(own);
            if (BACKWARD && x.key_at) own.give(sums);
        }
        if (known) {
            if constexpr (BACKWARD) sums.give_all<T>(call, head);
            leave(call, block);
            return 0;
        }
        block = block_of(call, most);
        if (!block) return 1;
        memory.all = inside(block);
    }
}
}  // namespace

// One head of keys along the strips from `first` to `end`. Gives 0, or 1 where memory has run out.
extern "C" int maskdsl_run(const Call* call, int64_t head, int64_t first, int64_t end) {
    return run<TYPE>(*call, head, first, end);
}

// Once no task of a call runs any more.
extern "C" void maskdsl_end(const Call* call) {
    for (int64_t i = 0; i < call->spares; i++)
        __builtin_free(__atomic_exchange_n(call->spare + i, nullptr, __ATOMIC_ACQUIRE));
}
