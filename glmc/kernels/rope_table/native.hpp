// cos and sin [T, n] of the angle that each token's position makes with each frequency, times a scale.
//
// n: n, stride of both.  f: scale.  p: inverse frequencies, cos, sin.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

inline void rope_table(const Context& c, const Instruction& it) {
    auto* frequencies = (const float*)it.p[0];
    each_row(c, it, [&](int64_t r) {
        float position = float(c.step->positions[r]), scale = float(it.f[0]);
        float *cosines = (float*)it.p[1] + r * it.n[1], *sines = (float*)it.p[2] + r * it.n[1];
        for (int64_t i = 0; i < it.n[0]; i++) {
            float angle = position * frequencies[i];
            cosines[i] = std::cos(angle) * scale;
            sines[i] = std::sin(angle) * scale;
        }
    });
}

}  // namespace glmc
