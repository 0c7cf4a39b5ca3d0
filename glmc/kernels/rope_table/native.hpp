// cos and sin [T, n] of the angle that each token's position makes with each frequency, times a scale.
//
// n: n, stride of both, whether positions have several axes, the lanes of an axis that stand side by side and have the same
// frequencies (or 0), then the axis of each lane, 2 bits each, 32 lanes a word.  f: scale.  p: inverse frequencies, cos, sin.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

inline void rope_table(const Context& c, const Instruction& it) {
    auto* frequencies = (const float*)it.p[0];
    bool axes = it.n[2] && c.step->turns;
    int64_t each = it.n[3] ? it.n[3] : it.n[0];
    each_row(c, it, [&](int64_t r) {
        float scale = float(it.f[0]);
        float *cosines = (float*)it.p[1] + r * it.n[1], *sines = (float*)it.p[2] + r * it.n[1];
        for (int64_t i = 0; i < it.n[0]; i++) {
            int64_t axis = it.n[3] ? i / each : it.n[4 + i / 32] >> (2 * (i % 32)) & 3;
            int64_t position = axes ? c.step->turns[axis * c.step->tokens + r] : c.step->positions[r];
            float angle = float(position) * frequencies[i % each];
            cosines[i] = std::cos(angle) * scale;
            sines[i] = std::sin(angle) * scale;
        }
    });
}

}  // namespace glmc
