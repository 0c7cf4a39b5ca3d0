// Attention of new tokens over their sequences' filled slots: token t sees slots 0 to its position.
//
// n: heads, kv heads, D, q's stride, y's stride, cache form, cache: bytes of a sequence, of a head's keys, of a head's values, slots.
// f: scale.  p: q [T, heads D], keys, values, y [T, heads D].
#pragma once

#include "kernels/attention/attend.hpp"

namespace glmc {

constexpr double LOG2E = 1.4426950408889634;

inline int64_t attention_shared(const Instruction& it, int64_t tokens, int64_t threads) {
    return Job::shared(tokens, threads, it.n[9], it.n[2]);
}
inline int64_t attention_scratch(const Instruction& it, int64_t) { return Job::scratch(it.n[2], it.n[2], false); }

inline void attention(const Context& c, const Instruction& it) {
    int64_t width = it.n[2];
    Job job{it.n[0], it.n[1], width, width, float(it.f[0] * LOG2E), (const char*)it.p[1], (const char*)it.p[2],
            it.n[6], it.n[7], it.n[8], nullptr, c.step->tokens};
    with_cache(it.n[5], [&](auto form) {
        attend_tokens<decltype(form)>(
            c, 0, job, c.shared, c.scratch, [&](int64_t t, int64_t h) { return (const float*)it.p[0] + t * it.n[3] + h * width; },
            [&](int64_t t, int64_t h) { return (float*)it.p[3] + t * it.n[4] + h * width; });
    });
}

}  // namespace glmc
