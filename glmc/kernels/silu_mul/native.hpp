// y [T, I] = silu(x G) * (x U): gate and up in one matrix whose panels hold 16 columns of each.
//
// n: K, I, x's stride, y's stride, form.  p: x, matrix, bias [2 I] or none, y.
#pragma once

#include "kernels/linear/native.hpp"

namespace glmc {

inline void swiglu(const Context& c, const Instruction& it) {
    int k = it.n[0], n = it.n[1];
    int64_t rows = c.rows(it), y_stride = it.n[3];
    auto* matrix = (const char*)it.p[1];
    auto* bias = (const float*)it.p[2];
    auto* y = (float*)it.p[3];
    with_form(it.n[4], [&](auto form) {
        using Form = decltype(form);
        auto* a = prepared<Form>(c, (const float*)it.p[0], it.n[2], rows, k);
        int64_t panels = (n + W - 1) / W, blocks = (rows + BLOCK - 1) / BLOCK;
        c.each(0, panels * blocks, [&](int64_t task) {
            int64_t panel = task / blocks, first = task % blocks * BLOCK, column = panel * W;
            int lanes = n - column < W ? n - column : W, count = rows - first < BLOCK ? rows - first : BLOCK;
            vf gate_bias{}, up_bias{};
            if (bias) gate_bias = load_lanes(bias + column, lanes), up_bias = load_lanes(bias + n + column, lanes);
            panel_times_rows<Form>(a + first, count, matrix + panel * Form::panel_bytes(k), k, opened(c, rows),
                                   [&](int r, vf gate, vf up) {
                                       store_lanes(y + (first + r) * y_stride + column, silu(gate + gate_bias) * (up + up_bias), lanes);
                                   });
        });
    });
}

}  // namespace glmc
