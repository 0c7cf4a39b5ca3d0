// Packed rows of QKV: heads of q and k normalised if asked and turned, q written for attention, k and v to their slots.
//
// n: heads, kv heads, D, lanes n, qkv's stride, q's stride, table's stride, read, write, cache form, cache: bytes of a sequence, of a
// head's keys, of a head's values.  f: eps.  p: qkv, cos, sin, q weight, k weight, q bias, k bias, q, keys, values.
#pragma once

#include "kernels/attention/cache.hpp"
#include "kernels/rope/native.hpp"

namespace glmc {

inline void split_qkv_norm_rope(const Context& c, const Instruction& it) {
    int64_t heads = it.n[0], kv = it.n[1], width = it.n[2], n = it.n[3];
    auto *k_weight = (const float*)it.p[4], *k_bias = (const float*)it.p[6];
    auto *q_weight = (const float*)it.p[3], *q_bias = (const float*)it.p[5];
    each_row(c, it, [&](int64_t r) {
        const float* x = (const float*)it.p[0] + r * it.n[4];
        const float *cosines = (const float*)it.p[1] + r * it.n[6], *sines = (const float*)it.p[2] + r * it.n[6];
        float* q = (float*)it.p[7] + r * it.n[5];
        float normed[1024], turned[1024];
        auto head = [&](const float* from, const float* weight, const float* bias, float* to) {
            if (weight || bias) {
                if (weight) norm_row(from, weight, bias, normed, width, it.f[0]);
                else for (int64_t i = 0; i < width; i++) normed[i] = from[i] + bias[i];
                from = normed;
            }
            turn(from, cosines, sines, to, width, n, it.n[7], it.n[8]);
        };
        for (int64_t h = 0; h < heads; h++) head(x + h * width, q_weight, q_bias, q + h * width);
        x += heads * width;
        int64_t slot = c.step->positions[r];
        with_cache(it.n[9], [&](auto form) {
            using Form = decltype(form);
            char *keys = (char*)it.p[8] + c.step->sequences[r] * it.n[10], *values = (char*)it.p[9] + c.step->sequences[r] * it.n[10];
            for (int64_t h = 0; h < kv; h++) {
                head(x + h * width, k_weight, k_bias, turned);
                Form::put_key(keys + h * it.n[11], slot, turned, width, width);
                Form::put_value(values + h * it.n[12], slot, x + (kv + h) * width, width);
            }
        });
    });
}

}  // namespace glmc
