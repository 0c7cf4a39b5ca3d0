// What an executor runs: a flat list of instructions over rows of activations, and what a step tells them.
//
// Every activation is float32 [tokens, width]; a row's neighbours stand `stride` floats apart. Instructions name their operands by
// address: the buffers are made once, for the most tokens of a step. Python's half of this file is glmc/native/plan.py.
#pragma once

#include <algorithm>

#include "forms.hpp"
#include "pool.hpp"

namespace glmc {

struct Instruction {
    int64_t op;      // its place in the table of library.cpp
    int64_t rows;    // 0: one row a token of the step; 1: one row a token whose logits are wanted; more: one row for so many tokens
    int64_t n[20];   // sizes
    double f[4];     // scalars
    void* p[12];     // operands
};

struct Step {
    int64_t tokens;            // of all sequences together; new tokens of one sequence lie side by side, in order
    const int64_t* ids;        // [tokens]
    const int64_t* positions;  // [tokens]
    const int64_t* sequences;  // [tokens], which row of the cache
    int64_t wanted;            // how many tokens' logits are wanted
    const int64_t* which;      // [wanted], in order
    float* logits;             // [wanted, vocabulary]; of a vision tower its results
    const int64_t* turns;      // [axes, tokens], the positions that RoPE turns by; nullptr: `positions`, on every axis
    const int64_t* media;      // [tokens], the row of `features` that a token takes, negative for none; nullptr: none takes one
    const float* features;     // [M, hidden]
    // Of a vision tower: tokens are the patches of so many images, `positions` the slots where their keys and values go.
    int64_t images;
    const int64_t* ends;       // [images + 1], 0 and the patches up to the end of each image
    const int64_t* grid;       // [images, 3]: 1, height and width in patches
};

struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
};
constexpr int PHASES = 2;  // the most uses of Context::each within one instruction

// A thread's view of a step.
struct Context {
    Pool* pool;
    const Step* step;
    int thread;
    Counter* counters;              // of this instruction: one a thread for each phase, 0 at the step's beginning
    char* scratch;                  // this thread's own
    char* shared;                   // everyone's

    int64_t rows(const Instruction& it) const {
        return it.rows == 0 ? step->tokens : it.rows == 1 ? step->wanted : step->tokens / it.rows;
    }
    int threads() const { return pool->size; }
    void barrier() const { pool->barrier(); }

    // Hand out 0 .. count - 1 among the threads; `phase` tells the uses within one instruction apart. Each thread goes through a
    // share of its own, in order, since neighbours lie side by side in memory; who is done takes from the others' shares.
    template <class F>
    void each(int phase, int64_t count, F f) const {
        for (int turn = 0; turn < threads(); turn++) {
            int of = (thread + turn) % threads();
            int64_t begin = count * of / threads(), end = count * (of + 1) / threads();
            auto& next = counters[phase * threads() + of].value;
            for (int64_t i; (i = begin + next.fetch_add(1, std::memory_order_relaxed)) < end;) f(i);
        }
    }
    // The same for many small pieces: each thread takes an equal share.
    template <class F>
    void share(int64_t count, F f) const {
        int64_t begin = count * thread / threads(), end = count * (thread + 1) / threads();
        for (int64_t i = begin; i < end; i++) f(i);
    }
};

inline int64_t up64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

constexpr int64_t FEW = 4;  // rows up to which every thread prepares activations for itself, and small work is not shared out

// f(lane offset, how many lanes) over `width` floats.
template <class F>
inline void lanes(int64_t width, F f) {
    int64_t i = 0;
    for (; i + W <= width; i += W) f(i, W);
    if (i < width) f(i, int(width - i));
}
inline vf load_lanes(const float* p, int n) { return n == W ? load<vf>(p) : load_part(p, n); }
inline void store_lanes(float* p, vf v, int n) {
    if (n == W) store(p, v);
    else store_part(p, v, n);
}

}  // namespace glmc
