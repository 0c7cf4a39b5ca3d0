// y [T, H] = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias.
//
// n: H, x's stride, y's stride.  f: eps.  p: x, weight or none, bias or none, y.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

inline void layer_norm(const Context& c, const Instruction& it) {
    int64_t width = it.n[0];
    auto *weight = (const float*)it.p[1], *bias = (const float*)it.p[2];
    each_row(c, it, [&](int64_t r) {
        const float* x = (const float*)it.p[0] + r * it.n[1];
        float* y = (float*)it.p[3] + r * it.n[2];
        vf sums{}, squares{};
        lanes(width, [&](int64_t at, int n) { sums += load_lanes(x + at, n); });
        float mean = sum(sums) / float(width);
        lanes(width, [&](int64_t at, int n) {
            vf v = load_lanes(x + at, n) - mean;
            if (n < W) v = load_part((const float*)&v, n);
            squares += v * v;
        });
        float scale = 1.0f / std::sqrt(sum(squares) / float(width) + float(it.f[0]));
        lanes(width, [&](int64_t at, int n) {
            vf v = (load_lanes(x + at, n) - mean) * scale;
            if (weight) v *= load_lanes(weight + at, n);
            if (bias) v += load_lanes(bias + at, n);
            store_lanes(y + at, v, n);
        });
    });
}

}  // namespace glmc
