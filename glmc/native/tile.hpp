// Products of a few rows of activations with a panel of 32 columns, and a matrix kept as it is.
//
// A matrix [N, K] is cut into panels of 32 outputs (the last one filled with zeros), and a panel is read from its first byte
// to its last: for each k the 32 weights lie side by side, so that no sum runs across lanes.
//
//   F32   [panel][k][32]              float32
//   BF16  [panel][k / 2][32][2]       bfloat16, k filled to even with zeros
//
// forms.hpp lists all forms. Activations are prepared row by row to what the form multiplies with: here float32 or bfloat16.
#pragma once

#include "vec.hpp"

namespace glmc {

constexpr int P = 32;  // columns of a panel
inline int64_t filled(int64_t width) { return (width + P - 1) / P * P; }
constexpr int AHEAD = 4096;  // bytes of a panel that are asked for before they are needed

// A function that keeps its sums in registers: inlined among other work the compiler would keep them in memory.
#define APART __attribute__((noinline))

// acc[m][v] += a[m] . b over `count` k, where b's vectors v of one k stand `across` elements apart and its ks `along`.
template <int M>
inline void multiply(const float* const* a, int count, const float* b, int64_t along, int64_t across, vf (&acc)[M][2]) {
    for (int k = 0; k < count; k++, b += along) {
        vf w0 = load<vf>(b), w1 = load<vf>(b + across);
        for (int m = 0; m < M; m++) {
            vf x = set(a[m][k]);
            acc[m][0] += w0 * x;
            acc[m][1] += w1 * x;
        }
    }
}
// The same over `count` pairs of bfloat16.
template <int M>
inline void multiply(const uint16_t* const* a, int count, const uint16_t* b, int64_t along, int64_t across, vf (&acc)[M][2]) {
    auto step = [&](int k, const uint16_t* at, vf (&sums)[M][2]) {
        vi w0 = load<vi>(at), w1 = load<vi>(at + across);
        for (int m = 0; m < M; m++) {
            vi x = seti(load<int32_t>(a[m] + 2 * k));
            sums[m][0] = dot2(sums[m][0], w0, x);
            sums[m][1] = dot2(sums[m][1], w1, x);
        }
    };
    int k = 0;
    for (; k + 2 <= count; k += 2, b += 2 * along)
        for (int i = 0; i < 2; i++) {  // asked for early: the hardware's own reading ahead ends at the end of a small page
            __builtin_prefetch((const char*)(b + i * along) + AHEAD);
            __builtin_prefetch((const char*)(b + i * along) + AHEAD + 64);
            step(k + i, b + i * along, acc);
        }
    for (; k < count; k++, b += along) step(k, b, acc);
}

template <int M, class T>
APART void product(const T* const* a, int count, const T* b, int64_t along, int64_t across, vf (&y)[M][2]) {
    vf sums[M][2] = {};
    const T* rows[M];
    for (int m = 0; m < M; m++) rows[m] = a[m];
    multiply<M>(rows, count, b, along, across, sums);
    for (int m = 0; m < M; m++) y[m][0] = sums[m][0], y[m][1] = sums[m][1];
}

// The same sums into rows of memory, `stride` floats apart.
template <int M, class T>
APART void product_to(const T* const* a, int count, const T* b, int64_t along, int64_t across, float* out, int64_t stride) {
    vf sums[M][2] = {};
    const T* rows[M];
    for (int m = 0; m < M; m++) rows[m] = a[m];
    multiply<M>(rows, count, b, along, across, sums);
    for (int m = 0; m < M; m++) store(out + m * stride, sums[m][0]), store(out + m * stride + W, sums[m][1]);
}

// One column of a panel as numbers.
template <class Form>
inline void read_column(const char* panel, int column, int k, float* out) {
    for (int q = 0; 4 * q < k; q++) {
        vf w[4][2];
        Form::quad(panel, q, w);
        for (int i = 0; i < 4 && 4 * q + i < k; i++) out[4 * q + i] = w[i][column / W][column % W];
    }
}

struct F32 {
    static constexpr int most = 12;  // rows of a tile
    static int64_t row_bytes(int k) { return 4 * int64_t(k); }
    static int64_t panel_bytes(int k) { return 4 * int64_t(k) * P; }
    static void prepare(const float* x, int k, char* out) { std::memcpy(out, x, 4 * k); }
    static void column(const char* panel, int column, int k, float* out) {
        for (int i = 0; i < k; i++) out[i] = ((const float*)panel)[i * P + column];
    }
    template <int M>
    static void tile(const char* const* a, const char* panel, int k, vf (&y)[M][2]) {
        product<M>((const float* const*)a, k, (const float*)panel, P, W, y);
    }
};

struct BF16 {
    static constexpr int most = 12;
    static int64_t row_bytes(int k) { return (int64_t(k) + 1) / 2 * 4; }
    static int64_t panel_bytes(int k) { return row_bytes(k) * P; }
    static void prepare(const float* x, int k, char* out) {
        auto* y = (uint16_t*)out;
        int i = 0;
        for (; i + W <= k; i += W) store(y + i, narrow(load<vf>(x + i)));
        for (; i < k; i++) y[i] = narrow(x[i]);
        if (k & 1) y[k] = 0;
    }
    static void column(const char* panel, int column, int k, float* out) {
        for (int i = 0; i < k; i++) out[i] = widen(((const uint16_t*)panel)[(i / 2 * P + column) * 2 + i % 2]);
    }
    template <int M>
    static void tile(const char* const* a, const char* panel, int k, vf (&y)[M][2]) {
        product<M>((const uint16_t* const*)a, (k + 1) / 2, (const uint16_t*)panel, 2 * P, 2 * W, y);
    }
};

}  // namespace glmc
