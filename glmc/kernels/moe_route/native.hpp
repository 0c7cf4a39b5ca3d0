// Sigmoid routing with a correction for the choice alone: weights [T, top] and experts [T, top] from logits [T, E].
//
// n: E, groups, kept groups, top, normalise, logits' stride, stride of both results (experts are int32 in a float's place).
// f: scale.  p: logits, correction, weights, experts.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

// The places of the `count` largest of n scores that are not taken yet, largest first, the lower place among equals.
template <class Score, class Take>
inline void largest_of(int64_t n, int64_t count, Score score, Take take) {
    for (int64_t j = 0; j < count; j++) {
        int64_t best = -1;
        float value = 0;
        for (int64_t e = 0; e < n; e++) {
            float s = score(e);
            if (s > -INFINITY && (best < 0 || s > value)) best = e, value = s;
        }
        take(j, best < 0 ? 0 : best);
    }
}

inline int64_t route_scratch(const Instruction& it, int64_t) { return 4 * (2 * it.n[0] + 2 * it.n[1]); }

inline void moe_route(const Context& c, const Instruction& it) {
    int64_t experts = it.n[0], groups = it.n[1], kept = it.n[2], top = it.n[3], each = experts / groups;
    auto* correction = (const float*)it.p[1];
    each_row(c, it, [&](int64_t r) {
        const float* logits = (const float*)it.p[0] + r * it.n[5];
        float* weights = (float*)it.p[2] + r * it.n[6];
        auto* chosen = (int32_t*)it.p[3] + r * it.n[6];
        // This row's scores, choices and groups' worth, one row at a time in this thread's scratch.
        auto *scores = (float*)c.scratch, *choice = scores + experts, *worth = choice + experts;
        for (int64_t e = 0; e < experts; e++) {
            scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
            choice[e] = scores[e] + correction[e];
        }
        if (kept < groups) {
            for (int64_t g = 0; g < groups; g++) {
                float first = -INFINITY, second = -INFINITY;
                for (int64_t e = g * each; e < (g + 1) * each; e++) {
                    if (choice[e] > first) second = first, first = choice[e];
                    else if (choice[e] > second) second = choice[e];
                }
                worth[g] = first + second;
            }
            auto* stays = worth + groups;
            for (int64_t g = 0; g < groups; g++) stays[g] = 0;
            largest_of(groups, kept, [&](int64_t g) { return stays[g] ? -INFINITY : worth[g]; }, [&](int64_t, int64_t g) { stays[g] = 1; });
            for (int64_t e = 0; e < experts; e++)
                if (!stays[e / each]) choice[e] = -INFINITY;
        }
        float total = 0;
        largest_of(experts, top, [&](int64_t e) { return choice[e]; }, [&](int64_t j, int64_t e) {
            chosen[j] = int32_t(e);
            weights[j] = scores[e];
            total += scores[e];
            choice[e] = -INFINITY;
        });
        float scale = float(it.f[0]) / (it.n[4] ? total + 1e-20f : 1.0f);
        for (int64_t j = 0; j < top; j++) weights[j] *= scale;
    });
}

}  // namespace glmc
