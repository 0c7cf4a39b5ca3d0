// Heads with their first 2n channels turned by the token's angles; the other channels pass.
//
// n: heads, D, lanes n, x's stride, from head to head in x, y's stride (heads D wide), table's stride, read, write.
// p: x, cos, sin, y.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

// Turn the first 2n channels of a head. read and write: -2 where a lane's channels stand n apart, -1 where they are neighbours.
inline void turn(const float* x, const float* cosines, const float* sines, float* y, int64_t width, int64_t n, int64_t read,
                 int64_t write) {
    int64_t in = read == -1 ? 2 : 1, in_far = read == -1 ? 1 : n, out = write == -1 ? 2 : 1, out_far = write == -1 ? 1 : n;
    for (int64_t i = 0; i < n; i++) {
        float a = x[i * in], b = x[i * in + in_far];
        y[i * out] = a * cosines[i] - b * sines[i];
        y[i * out + out_far] = b * cosines[i] + a * sines[i];
    }
    std::memcpy(y + 2 * n, x + 2 * n, 4 * (width - 2 * n));
}

inline void rope(const Context& c, const Instruction& it) {
    int64_t width = it.n[1];
    each_row(c, it, [&](int64_t r) {
        const float *cosines = (const float*)it.p[1] + r * it.n[6], *sines = (const float*)it.p[2] + r * it.n[6];
        for (int64_t h = 0; h < it.n[0]; h++)
            turn((const float*)it.p[0] + r * it.n[3] + h * it.n[4], cosines, sines, (float*)it.p[3] + r * it.n[5] + h * width, width,
                 it.n[2], it.n[7], it.n[8]);
    });
}

}  // namespace glmc
