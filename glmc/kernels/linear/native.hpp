// y [T, N] = x [T, K] times a matrix, a panel of 32 outputs at a time; with a bias, or added to a residual.
//
// n: K, N, x's stride, y's stride, form of the matrix, residual's stride.  p: x, matrix, bias or none, y, residual or none.
#pragma once

#include "native/program.hpp"

namespace glmc {

// Bytes from a prepared row to the next: an odd number of cache lines, so that rows do not fall into the same sets.
inline int64_t row_stride(int64_t bytes) { return ((bytes + 63) / 64 | 1) * 64; }

// Prepared rows of activations: by every thread for itself where they are few, else shared out. Pointers to them, in scratch.
template <class Form>
inline const char* const* prepared(const Context& c, const float* x, int64_t stride, int64_t rows, int k) {
    int64_t bytes = row_stride(Form::row_bytes(k));
    auto* at = (const char**)c.scratch;
    if (rows <= FEW) {
        char* own = c.scratch + 64 * sizeof(char*);
        for (int64_t r = 0; r < rows; r++) Form::prepare(x + r * stride, k, own + r * bytes), at[r] = own + r * bytes;
        return at;
    }
    c.share(rows, [&](int64_t r) { Form::prepare(x + r * stride, k, c.shared + r * bytes); });
    c.barrier();
    for (int64_t r = 0; r < rows; r++) at[r] = c.shared + r * bytes;
    return at;
}

// The most bytes of a prepared row, whatever the form.
inline int64_t row_room(int64_t k) { return row_stride(4 * k + 64); }
inline int64_t product_shared(const Instruction& it, int64_t tokens, int64_t) {
    int64_t bytes = 0;
    with_form(it.n[4], [&](auto form) { bytes = row_stride(decltype(form)::row_bytes(int(it.n[0]))); });
    return tokens * bytes;
}
inline int64_t product_scratch(const Instruction& it, int64_t tokens) {
    return 8 * std::max<int64_t>(tokens, 64) + std::max(FEW * row_room(it.n[0]), 64 + open_room(it.n[0]));
}
// Behind the pointers to many rows, what a thread opens panels into.
inline char* opened(const Context& c, int64_t rows) { return c.scratch + (8 * rows + 63) / 64 * 64; }

constexpr int64_t BLOCK = 120;  // rows that one task multiplies with a panel, a multiple of every tile

inline void linear(const Context& c, const Instruction& it) {
    int k = it.n[0], n = it.n[1];
    int64_t rows = c.rows(it), y_stride = it.n[3], r_stride = it.n[5];
    auto* matrix = (const char*)it.p[1];
    auto *bias = (const float*)it.p[2], *residual = (const float*)it.p[4];
    auto* y = it.p[3] ? (float*)it.p[3] : c.step->logits;
    with_form(it.n[4], [&](auto form) {
        using Form = decltype(form);
        auto* a = prepared<Form>(c, (const float*)it.p[0], it.n[2], rows, k);
        int64_t panels = (n + P - 1) / P, blocks = (rows + BLOCK - 1) / BLOCK;
        c.each(0, panels * blocks, [&](int64_t task) {
            int64_t panel = task / blocks, first = task % blocks * BLOCK, column = panel * P;
            int low_n = n - column < W ? n - column : W, high_n = n - column - W < W ? n - column - W : W;
            vf low_bias{}, high_bias{};
            if (bias) {
                low_bias = load_lanes(bias + column, low_n);
                if (high_n > 0) high_bias = load_lanes(bias + column + W, high_n);
            }
            int count = rows - first < BLOCK ? rows - first : BLOCK;
            panel_times_rows<Form>(a + first, count, matrix + panel * Form::panel_bytes(k), k, opened(c, rows), [&](int r, vf low, vf high) {
                float* to = y + (first + r) * y_stride + column;
                low += low_bias;
                high += high_bias;
                if (residual) {
                    const float* from = residual + (first + r) * r_stride + column;
                    low += load_lanes(from, low_n);
                    if (high_n > 0) high += load_lanes(from + W, high_n);
                }
                store_lanes(to, low, low_n);
                if (high_n > 0) store_lanes(to + W, high, high_n);
            });
        });
    });
}

}  // namespace glmc
