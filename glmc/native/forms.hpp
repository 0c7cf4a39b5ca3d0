// Every form that a matrix is kept in: how each is read, and its products with rows of activations.
//
// Quantised weights are multiplied in two ways. The quick one rounds activations to what the form multiplies with; `Exact`
// makes float32 of the weights, and leaves activations alone.
#pragma once

#include "float8.hpp"
#include "quantised.hpp"

namespace glmc {

template <class Form>
struct Exact {
    static constexpr int most = 8;
    static int64_t row_bytes(int k) { return int64_t(k + 3) / 4 * 16; }
    static int64_t panel_bytes(int k) { return Form::panel_bytes(k); }
    static void prepare(const float* x, int k, char* out) {
        F32::prepare(x, k, out);
        for (int i = k; i & 3; i++) ((float*)out)[i] = 0;
    }
    static void column(const char* panel, int column, int k, float* out) { read_column<Form>(panel, column, k, out); }
    template <int M>
    APART static void tile(const char* const* a, const char* panel, int k, vf (&y)[M][2]) {
        vf sums[M][2] = {};
        for (int q = 0; 4 * q < k; q++) {
            vf w[4][2];
            Form::quad(panel, q, w);
            for (int i = 0; i < 4; i++)
                for (int m = 0; m < M; m++) {
                    vf x = set(((const float*)a[m])[4 * q + i]);
                    sums[m][0] += w[i][0] * x;
                    sums[m][1] += w[i][1] * x;
                }
        }
        for (int m = 0; m < M; m++) y[m][0] = sums[m][0], y[m][1] = sums[m][1];
    }
};

typedef Quantised<Whole<8>> Q8;
typedef Quantised<Whole<4>> Q4;
typedef Quantised<Mx> MX4;
typedef Quantised<Nv> NV4;

// Call f(form) with the form that `number` names, as programs write it (Keep.number).
template <class F>
inline void with_form(int64_t number, F f) {
    switch (number) {
        case 0: return f(F32{});
        case 1: return f(BF16{});
        case 2: return f(Q8{});
        case 3: return f(Q4{});
        case 4: return f(MX4{});
        case 5: return f(F8{});
        case 6: return f(NV4{});
        case 7: return f(Exact<MX4>{});
        case 8: return f(Exact<F8>{});
        default: return f(Exact<NV4>{});
    }
}

// Multiply `rows` prepared rows with one panel, a tile of rows after another: done(first row, sums of its rows, how many).
template <class Form, int M, class F>
inline void rows_of_tile(const char* const* a, int rows, const char* panel, int k, F done) {
    if constexpr (M > 0) {
        if (rows < M) return rows_of_tile<Form, M - 1>(a, rows, panel, k, done);
        vf y[M][2];
        Form::template tile<M>(a, panel, k, y);
        for (int m = 0; m < M; m++) done(m, y[m][0], y[m][1]);
    }
}
// Bytes that a panel may take when it is opened.
inline int64_t open_room(int64_t k) { return 2 * P * (k + 4) + 4 * P * (k / F8::group + 1) + 64; }
// room: memory for that, where panels of the form are opened for many rows.
template <class Form, class F>
inline void panel_times_rows(const char* const* a, int rows, const char* panel, int k, char* room, F done) {
    if constexpr (requires { Form::few; })
        if (rows > Form::few) {
            Form::open(panel, k, room);
            return panel_times_rows<typename Form::Opened>(a, rows, room, k, room, done);
        }
    for (int at = 0, left = (rows + Form::most - 1) / Form::most; left > 0; left--) {  // tiles of nearly equal size
        int count = (rows - at + left - 1) / left;
        rows_of_tile<Form, Form::most>(a + at, count, panel, k, [&](int m, vf low, vf high) { done(at + m, low, high); });
        at += count;
    }
}

}  // namespace glmc
