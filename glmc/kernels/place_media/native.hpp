// y [T, H]: tokens that stand for a part of an image take its row of the step's features, the others stay as they are.
//
// n: H, y's stride.  p: y.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

inline void place_media(const Context& c, const Instruction& it) {
    if (!c.step->media) return;
    each_row(c, it, [&](int64_t r) {
        int64_t row = c.step->media[r];
        if (row >= 0) std::memcpy((float*)it.p[0] + r * it.n[1], c.step->features + row * it.n[0], 4 * it.n[0]);
    });
}

}  // namespace glmc
