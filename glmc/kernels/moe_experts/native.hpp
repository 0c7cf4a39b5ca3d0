// y [T, H]: each token through its chosen experts, weighted. Only chosen experts are read, each once for all its tokens.
//
// n: H, I, E, top, x's stride, y's stride, stride of weights and experts, forms of gate_up and down.
// p: x, weights, experts, gate_up, down, y.
#pragma once

#include "kernels/linear/native.hpp"

namespace glmc {

inline int64_t experts_shared(const Instruction& it, int64_t tokens, int64_t) {
    int64_t pairs = tokens * it.n[3];
    return up64(16 * (pairs + it.n[2] + 4)) + tokens * row_room(it.n[0]) + pairs * (row_room(it.n[1]) + up64(4 * it.n[1]) + up64(4 * it.n[0]));
}
inline int64_t experts_scratch(const Instruction& it, int64_t tokens) {
    return 8 * tokens + 64 + open_room(std::max(it.n[0], it.n[1]));
}

inline void moe_experts(const Context& c, const Instruction& it) {
    int64_t h = it.n[0], inner = it.n[1], experts = it.n[2], top = it.n[3], tokens = c.rows(it), pairs = tokens * top;
    auto* chosen = (const int32_t*)it.p[2];
    auto* order = (int64_t*)c.shared;  // pairs sorted by expert
    int64_t *place = order + pairs, *start = place + pairs, *used = start + experts + 1, *count = used + experts;
    char *x_rows = c.shared + up64(16 * (pairs + experts + 4)), *h_rows = x_rows + tokens * row_room(h);
    auto* hidden = (float*)(h_rows + pairs * row_room(inner));
    auto* returned = (float*)((char*)hidden + pairs * up64(4 * inner));
    auto expert = [&](int64_t pair) { return chosen[pair / top * it.n[6] + pair % top]; };
    if (c.thread == 0) {
        for (int64_t e = 0; e <= experts; e++) start[e] = 0;
        for (int64_t i = 0; i < pairs; i++) start[expert(i) + 1]++;
        *count = 0;
        for (int64_t e = 0; e < experts; e++) {
            if (start[e + 1]) used[(*count)++] = e;
            start[e + 1] += start[e];
        }
        for (int64_t i = pairs; i-- > 0;) {
            int64_t e = expert(i), at = --start[e + 1];
            order[at] = i;
            place[i] = at;
        }
        for (int64_t e = 0; e < experts; e++) start[e] = start[e + 1];
        start[experts] = pairs;
    }
    with_form(it.n[7], [&](auto form) {
        using Form = decltype(form);
        int64_t x_bytes = row_stride(Form::row_bytes(h)), gate_panels = (inner + W - 1) / W;
        c.share(tokens, [&](int64_t t) { Form::prepare((const float*)it.p[0] + t * it.n[4], h, x_rows + t * x_bytes); });
        c.barrier();
        c.each(0, *count * gate_panels, [&](int64_t task) {
            int64_t e = used[task / gate_panels], panel = task % gate_panels, column = panel * W;
            int64_t first = start[e], rows = start[e + 1] - first;
            auto* a = (const char**)c.scratch;
            for (int64_t r = 0; r < rows; r++) a[r] = x_rows + order[first + r] / top * x_bytes;
            int n = inner - column < W ? int(inner - column) : W;
            panel_times_rows<Form>(a, rows, (const char*)it.p[3] + (e * gate_panels + panel) * Form::panel_bytes(h), h,
                                   opened(c, rows), [&](int r, vf gate, vf up) {
                                       store_lanes(hidden + (first + r) * inner + column, silu(gate) * up, n);
                                   });
        });
    });
    c.barrier();
    with_form(it.n[8], [&](auto form) {
        using Form = decltype(form);
        int64_t h_bytes = row_stride(Form::row_bytes(inner)), down_panels = (h + P - 1) / P;
        c.share(pairs, [&](int64_t i) { Form::prepare(hidden + i * inner, inner, h_rows + i * h_bytes); });
        c.barrier();
        c.each(1, *count * down_panels, [&](int64_t task) {
            int64_t e = used[task / down_panels], panel = task % down_panels, column = panel * P;
            int64_t first = start[e], rows = start[e + 1] - first;
            auto* a = (const char**)c.scratch;
            for (int64_t r = 0; r < rows; r++) a[r] = h_rows + (first + r) * h_bytes;
            int low_n = h - column < W ? int(h - column) : W, high_n = h - column - W < W ? int(h - column - W) : W;
            panel_times_rows<Form>(a, rows, (const char*)it.p[4] + (e * down_panels + panel) * Form::panel_bytes(inner), inner,
                                   opened(c, rows), [&](int r, vf low, vf high) {
                                       float* to = returned + (first + r) * h + column;
                                       store_lanes(to, low, low_n);
                                       if (high_n > 0) store_lanes(to + W, high, high_n);
                                   });
        });
    });
    c.barrier();
    c.share(tokens, [&](int64_t t) {
        const float* weights = (const float*)it.p[1] + t * it.n[6];
        float* y = (float*)it.p[5] + t * it.n[5];
        lanes(h, [&](int64_t at, int n) {
            vf total{};
            for (int64_t j = 0; j < top; j++) total += load_lanes(returned + place[t * top + j] * h + at, n) * weights[j];
            store_lanes(y + at, total, n);
        });
    });
}

}  // namespace glmc
