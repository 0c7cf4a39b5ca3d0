// Rows of a table by the tokens' ids, and the rows of those tokens whose logits are wanted.
#pragma once

#include "kernels/rms_norm/native.hpp"

namespace glmc {

// y [T, H] = table[ids].  n: H, y's stride, the table's form: 0 float32 rows, 1 bfloat16 rows, or 8 and a matrix's form.
// p: table, y.
inline void embedding(const Context& c, const Instruction& it) {
    int64_t width = it.n[0], form = it.n[2];
    each_row(c, it, [&](int64_t r) {
        int64_t id = c.step->ids[r];
        float* to = (float*)it.p[1] + r * it.n[1];
        if (form == 0) std::memcpy(to, (const float*)it.p[0] + id * width, 4 * width);
        else if (form == 1) for (int64_t i = 0; i < width; i++) to[i] = widen(((const uint16_t*)it.p[0])[id * width + i]);
        else
            with_form(form - 8, [&](auto panels) {
                using Form = decltype(panels);
                Form::column((const char*)it.p[0] + id / P * Form::panel_bytes(width), id % P, width, to);
            });
    });
}

// y [wanted, H] = x[which].  n: H, x's stride, y's stride.  p: x, y.
inline void wanted_rows(const Context& c, const Instruction& it) {
    each_row(c, it, [&](int64_t r) {
        std::memcpy((float*)it.p[1] + r * it.n[2], (const float*)it.p[0] + c.step->which[r] * it.n[1], 4 * it.n[0]);
    });
}

}  // namespace glmc
