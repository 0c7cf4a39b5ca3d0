// What a vision tower does to its rows between the products: blocks of patches joined, and GELU.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

// y [T / n, n H] = x [T, H].  n: H, n, x's stride, y's stride.  p: x, y.
inline void merge_rows(const Context& c, const Instruction& it) {
    int64_t width = it.n[0], count = it.n[1];
    each_row(c, it, [&](int64_t r) {
        for (int64_t i = 0; i < count; i++)
            std::memcpy((float*)it.p[1] + r * it.n[3] + i * width, (const float*)it.p[0] + (r * count + i) * it.n[2], 4 * width);
    });
}

// The error function, to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
inline vf error_function(vf x) {
    vf size = vabs(x), t = 1.0f / (1.0f + 0.3275911f * size);
    vf p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vf y = 1.0f - p * t * vexp(-(size * size));
    return select(x < 0.0f, -y, y);
}

// y [T, H] = x P(normal <= x).  n: H, x's stride, y's stride.  p: x, y.
inline void gelu(const Context& c, const Instruction& it) {
    each_row(c, it, [&](int64_t r) {
        const float* x = (const float*)it.p[0] + r * it.n[1];
        float* y = (float*)it.p[1] + r * it.n[2];
        lanes(it.n[0], [&](int64_t at, int n) {
            vf v = load_lanes(x + at, n);
            store_lanes(y + at, 0.5f * v * (1.0f + error_function(v * 0.70710678f)), n);
        });
    });
}

}  // namespace glmc
