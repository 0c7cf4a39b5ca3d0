// sum = residual + x, y = rms_norm(sum): [T, H] each.
//
// n: H, residual's stride, x's stride, sum's stride, y's stride.  f: eps.  p: residual, x, weight, sum, y or none.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

inline void add_rms_norm(const Context& c, const Instruction& it) {
    auto *residual = (const float*)it.p[0], *x = (const float*)it.p[1], *weight = (const float*)it.p[2];
    auto *sums = (float*)it.p[3], *y = (float*)it.p[4];
    each_row(c, it, [&](int64_t r) {
        const float *a = residual + r * it.n[1], *b = x + r * it.n[2];
        float* s = sums + r * it.n[3];
        lanes(it.n[0], [&](int64_t at, int n) { store_lanes(s + at, load_lanes(a + at, n) + load_lanes(b + at, n), n); });
        if (y) norm_row(s, weight, nullptr, y + r * it.n[4], it.n[0], it.f[0]);
    });
}

}  // namespace glmc
