// What a task works in, and hands on to the next one: the system clears whatever it gives anew.

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

struct Spare {  // the head of a block
    int64_t bytes;
};

// A block of so many bytes: one that another task has left, if it is large enough. Null where memory
// has run out.
Spare* block_of(const Call& call, int64_t bytes) {
    for (int64_t i = 0; i < call.spares; i++) {
        Spare* found = __atomic_exchange_n(call.spare + i, nullptr, __ATOMIC_ACQUIRE);
        if (found && found->bytes >= bytes) return found;
        __builtin_free(found);
    }
    auto made = static_cast<Spare*>(__builtin_malloc(sizeof(Spare) + 64 + bytes));
    if (made) made->bytes = bytes;
    return made;
}

char* inside(Spare* block) {  // lines of the cache begin there
    return reinterpret_cast<char*>(up(reinterpret_cast<intptr_t>(block + 1), 64));
}

void leave(const Call& call, Spare* block) {
    for (int64_t i = 0; i < call.spares; i++) {
        Spare* none = nullptr;
        if (__atomic_compare_exchange_n(call.spare + i, &none, block, false, __ATOMIC_RELEASE,
                                        __ATOMIC_RELAXED))
            return;
    }
    __builtin_free(block);
}
