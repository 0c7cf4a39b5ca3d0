// y [T, H]: a square table of learned positions, sampled (clamped at its edge) where each patch lies in its image.
//
// n: H, side, y's stride, the table's form: 0 float32 rows, 1 bfloat16 rows, 1 if it is linear and not cubic.  p: table [side side, H], y.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

// The rows (or columns) that a place reads, and their weights; as torch's grid sampling has them, in float32.
struct Taps {
    int64_t at[4];
    float weight[4];
    Taps(int64_t place, int64_t size, int64_t side, bool linear) {
        float within = (float(place) + 0.5f) / float(size) * 2 - 1;
        float x = ((within + 1) * float(side) - 1) / 2, first = std::floor(x), t = x - first;
        auto far = [](float d) { return ((-0.75f * d + 3.75f) * d - 6.0f) * d + 3.0f; };
        auto near = [](float d) { return (1.25f * d - 2.25f) * d * d + 1.0f; };
        float cubic[4] = {far(t + 1), near(t), near(1 - t), far(2 - t)}, straight[4] = {0, 1 - t, t, 0};
        for (int i = 0; i < 4; i++) {
            at[i] = std::clamp<int64_t>(int64_t(first) + i - 1, 0, side - 1);
            weight[i] = linear ? straight[i] : cubic[i];
        }
    }
};

inline void position_table(const Context& c, const Instruction& it) {
    int64_t width = it.n[0], side = it.n[1];
    const Step& step = *c.step;
    each_row(c, it, [&](int64_t r) {
        int64_t image = std::upper_bound(step.ends, step.ends + step.images + 1, r) - step.ends - 1;
        const int64_t* size = step.grid + 3 * image;
        bool linear = it.n[4];
        Taps down(step.turns[r], size[1], side, linear), across(step.turns[step.tokens + r], size[2], side, linear);
        float* y = (float*)it.p[1] + r * it.n[2];
        auto sampled = [&](auto read) {
            lanes(width, [&](int64_t at, int n) {
                vf total{};
                for (int i = 0; i < 4; i++) {
                    vf row{};
                    for (int j = 0; j < 4; j++) row += read((down.at[i] * side + across.at[j]) * width + at, n) * across.weight[j];
                    total += row * down.weight[i];
                }
                store_lanes(y + at, total, n);
            });
        };
        if (it.n[3] == 0) return sampled([&](int64_t at, int n) { return load_lanes((const float*)it.p[0] + at, n); });
        sampled([&](int64_t at, int n) {
            uint16_t some[W] = {};
            std::memcpy(some, (const uint16_t*)it.p[0] + at, 2 * n);
            return widen(load<vh>(some));
        });
    });
}

}  // namespace glmc
