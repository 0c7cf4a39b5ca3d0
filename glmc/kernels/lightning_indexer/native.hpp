// The slots that each token's attention looks at: the best `top` of those up to its position, in their order.
//
//   score[s] = sum over heads of shares[h] relu(q[h] . k[s])
//
// A token with no more than `top` slots before it looks at all of them: nothing is written for it. Of equal scores the lower slot is
// taken. n: heads, D, strides of q (row, head), shares' stride, chosen's stride, top, cache form, cache: bytes of a sequence, slots.
// f: scale of shares.  p: q, shares, keys, chosen (int32 in a float's place).
#pragma once

#include "kernels/attention/attend.hpp"

namespace glmc {

constexpr int64_t CHUNK = 1024;         // slots of one task
constexpr int64_t AT_ONCE = 1 << 21;    // scores that are held for a wave of tokens

inline int64_t indexer_wave(int64_t slots) { return std::clamp<int64_t>(AT_ONCE / slots, 1, 64); }
inline int64_t indexer_shared(const Instruction& it, int64_t, int64_t) { return 4 * indexer_wave(it.n[9]) * filled(it.n[9]); }
inline int64_t indexer_scratch(const Instruction& it, int64_t tokens) {
    return 8 * tokens + 4 * it.n[0] * (it.n[1] + P) + 8 * it.n[0] + 8 * it.n[9] + 256;
}

inline void lightning_indexer(const Context& c, const Instruction& it) {
    int64_t heads = it.n[0], width = it.n[1], top = it.n[6], slots = filled(it.n[9]), wave = indexer_wave(it.n[9]);
    auto* list = (int64_t*)c.scratch;  // every thread finds the tokens that must choose by itself
    int64_t count = 0;
    for (int64_t t = 0; t < c.step->tokens; t++)
        if (c.step->positions[t] >= top) list[count++] = t;
    char* rest = c.scratch + 8 * c.step->tokens;
    auto* scores = (float*)c.shared;  // [wave][slots]
    for (int64_t first = 0; first < count; first += wave) {
        int64_t tokens = std::min(wave, count - first), chunks = 0;
        for (int64_t i = 0; i < tokens; i++) chunks = std::max(chunks, c.step->positions[list[first + i]] / CHUNK + 1);
        c.share(tokens * chunks, [&](int64_t task) {
            int64_t i = task / chunks, t = list[first + i], from = task % chunks * CHUNK;
            int64_t to = std::min(from + CHUNK, c.step->positions[t] + 1);
            if (from >= to) return;
            with_cache(it.n[7], [&](auto form) {
                using Form = decltype(form);
                using T = typename Form::T;
                auto* q = (T*)rest;
                auto* products = (float*)(rest + 4 * heads * width);  // [heads][32]
                auto** rows = (const T**)(products + heads * P);
                for (int64_t h = 0; h < heads; h++) {
                    Form::prepare((const float*)it.p[0] + t * it.n[2] + h * it.n[3], q + h * width, width, 1.0f);
                    rows[h] = q + h * width;
                }
                const float* shares = (const float*)it.p[1] + t * it.n[4];
                const char* keys = (const char*)it.p[2] + c.step->sequences[t] * it.n[8];
                for (int64_t s = from; s < to; s += P) {
                    tiles(rows, int(heads), width / Form::pack, (const T*)keys + s * width, Form::pack * P, Form::pack * W, products, P);
                    vf low{}, high{};
                    for (int64_t h = 0; h < heads; h++) {
                        vf share = set(shares[h] * float(it.f[0])), a = load<vf>(products + h * P), b = load<vf>(products + h * P + W);
                        low += share * select(a < 0.0f, vf{}, a);  // a NaN stays
                        high += share * select(b < 0.0f, vf{}, b);
                    }
                    store(scores + i * slots + s, low);
                    store(scores + i * slots + s + W, high);
                }
            });
        });
        c.barrier();
        c.share(tokens, [&](int64_t i) {
            int64_t t = list[first + i], seen = c.step->positions[t] + 1;
            auto* order = (int32_t*)rest;
            float* score = scores + i * slots;
            for (int64_t s = 0; s < seen; s++) {
                order[s] = int32_t(s);
                if (score[s] != score[s]) score[s] = INFINITY;  // looked at, so that it is not hidden
            }
            std::nth_element(order, order + top, order + seen, [&](int32_t a, int32_t b) {
                return score[a] > score[b] || (score[a] == score[b] && a < b);
            });
            std::sort(order, order + top);
            std::memcpy((int32_t*)it.p[3] + t * it.n[5], order, 4 * top);
        });
        c.barrier();
    }
}

}  // namespace glmc
