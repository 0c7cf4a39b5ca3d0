// y [T, H] = x / sqrt(mean(x^2) + eps) * weight.
//
// n: H, x's stride, y's stride.  f: eps.  p: x, weight or none, y.
#pragma once

#include "native/program.hpp"

namespace glmc {

inline void norm_row(const float* x, const float* weight, const float* bias, float* y, int64_t width, double eps) {
    vf squares[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= width; i += 4 * W)
        for (int j = 0; j < 4; j++) {
            vf v = load<vf>(x + i + j * W);
            squares[j] += v * v;
        }
    for (; i < width; i += W) {
        vf v = load_lanes(x + i, width - i < W ? int(width - i) : W);
        squares[0] += v * v;
    }
    float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / float(width);
    float scale = 1.0f / std::sqrt(mean + float(eps));
    lanes(width, [&](int64_t at, int n) {
        vf v = load_lanes(x + at, n) * scale;
        if (weight) v *= load_lanes(weight + at, n);
        if (bias) v += load_lanes(bias + at, n);
        store_lanes(y + at, v, n);
    });
}

// Rows of small work: all by the first thread where they are few (the executor then goes on without a barrier), else shared out.
template <class F>
inline void each_row(const Context& c, const Instruction& it, F f) {
    int64_t rows = c.rows(it);
    if (rows > FEW) return c.share(rows, f);
    if (c.thread == 0)
        for (int64_t r = 0; r < rows; r++) f(r);
}

inline void rms_norm(const Context& c, const Instruction& it) {
    auto *x = (const float*)it.p[0], *weight = (const float*)it.p[1];
    auto* y = (float*)it.p[2];
    each_row(c, it, [&](int64_t r) { norm_row(x + r * it.n[1], weight, nullptr, y + r * it.n[2], it.n[0], it.f[0]); });
}

}  // namespace glmc
