// Products of a few rows of activations with a panel of 32 columns, and the forms that a matrix is kept in.
//
// A matrix [N, K] is cut into panels of 32 outputs (the last one filled with zeros), and a panel is read from its first byte
// to its last: for each k the 32 weights lie side by side, so that no sum runs across lanes.
//
//   F32   [panel][k][32]              float32
//   BF16  [panel][k / 2][32][2]       bfloat16, k filled to even with zeros
//   Q8    [panel][k / 32] { 32 scales (half), [8][32][4] bytes: weight / scale + 128 }
//   Q4    [panel][k / 32] { 32 scales (half), [4][32][4] bytes: weight / scale + 8; of eight k the first four are low halves }
//
// Activations are prepared row by row to what the form multiplies with: float32, bfloat16, or bytes with a scale for each 32.
#pragma once

#include "vec.hpp"

namespace glmc {

constexpr int P = 32;  // columns of a panel
constexpr int G = 32;  // inputs that share a scale
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

struct F32 {
    static constexpr int most = 12;  // rows of a tile
    static int64_t row_bytes(int k) { return 4 * int64_t(k); }
    static int64_t panel_bytes(int k) { return 4 * int64_t(k) * P; }
    static void prepare(const float* x, int k, char* out) { std::memcpy(out, x, 4 * k); }
    static float weight(const char* panel, int column, int i) { return ((const float*)panel)[i * P + column]; }
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
    static float weight(const char* panel, int column, int i) {
        return widen(((const uint16_t*)panel)[(i / 2 * P + column) * 2 + i % 2]);
    }
    template <int M>
    static void tile(const char* const* a, const char* panel, int k, vf (&y)[M][2]) {
        product<M>((const uint16_t* const*)a, (k + 1) / 2, (const uint16_t*)panel, 2 * P, 2 * W, y);
    }
};

// Weights of BITS bits in groups of G. A prepared row: a float scale and an int32 correction a group, then the bytes.
template <int BITS>
struct Quantised {
    static constexpr int most = 6;
    static constexpr int offset = BITS == 8 ? 128 : 8;
    static constexpr int step = 2 * P + G * P * BITS / 8;  // bytes of a panel's group
    static int groups(int k) { return (k + G - 1) / G; }
    static int64_t row_bytes(int k) { return int64_t(groups(k)) * (8 + G); }
    static int64_t panel_bytes(int k) { return int64_t(groups(k)) * step; }

    static void prepare(const float* x, int k, char* out) {
        int n = groups(k);
        auto* scales = (float*)out;
        auto* corrections = (int32_t*)(out + 4 * n);
        auto* bytes = (int8_t*)(out + 8 * n);
        for (int g = 0; g < n; g++, x += G, k -= G, bytes += G) {
            vf low = k >= W ? load<vf>(x) : load_part(x, k);
            vf high = k >= G ? load<vf>(x + W) : k > W ? load_part(x + W, k - W) : vf{};
            // As whole numbers sizes compare alike, and a NaN is larger than all: it must not vanish, so the scale carries it on.
            vi a_size = (vi)vabs(low), b_size = (vi)vabs(high), size = a_size > b_size ? a_size : b_size;
            int32_t bits = 0;
            for (int i = 0; i < W; i++) bits = size[i] > bits ? size[i] : bits;
            float top;
            std::memcpy(&top, &bits, 4);
            float into = top > 0 ? 127.0f / top : 0.0f;
            const float magic = 12582912.0f;  // adding it rounds to a whole number, to nearest even
            vi a = (vi)(low * into + magic) - 0x4b400000, b = (vi)(high * into + magic) - 0x4b400000;
            typedef int8_t vb __attribute__((vector_size(16)));
            store(bytes, __builtin_convertvector(a, vb));
            store(bytes + W, __builtin_convertvector(b, vb));
            vi both = a + b;
            int32_t total = 0;
            for (int i = 0; i < W; i++) total += both[i];
            scales[g] = bits < 0x7f800000 ? top / 127.0f : NAN;
            corrections[g] = -offset * total;
        }
    }

    static float weight(const char* panel, int column, int i) {
        panel += i / G * step;
        float scale = half((const uint16_t*)panel + column / W * W)[column % W];
        int in = i % G, quad = in / 4;
        auto* data = (const uint8_t*)panel + 2 * P;
        int code = BITS == 8 ? data[(quad * P + column) * 4 + in % 4]
                             : data[(quad / 2 * P + column) * 4 + in % 4] >> (quad % 2 * 4) & 15;
        return float(code - offset) * scale;
    }

    template <int M>
    APART static void tile(const char* const* a, const char* panel, int k, vf (&y)[M][2]) {
        int n = groups(k);
        vf sums[M][2] = {};
        const int32_t* bytes[M];
        for (int m = 0; m < M; m++) bytes[m] = (const int32_t*)(a[m] + 8 * n);
        for (int g = 0; g < n; g++, panel += step) {
            const char* data = panel + 2 * P;
            vi acc[M][2];
            for (int m = 0; m < M; m++) acc[m][0] = acc[m][1] = seti(((const int32_t*)a[m])[n + g]);
            if constexpr (BITS == 8) {
                for (int q = 0; q < 8; q++, data += 4 * P) {
                    vi w0 = load<vi>(data), w1 = load<vi>(data + 64);
                    for (int m = 0; m < M; m++) {
                        vi x = seti(bytes[m][8 * g + q]);
                        acc[m][0] = dot4(acc[m][0], w0, x);
                        acc[m][1] = dot4(acc[m][1], w1, x);
                    }
                }
            } else {
                for (int q = 0; q < 8; q += 2, data += 4 * P) {
                    vi w0 = load<vi>(data), w1 = load<vi>(data + 64);
                    for (int m = 0; m < M; m++) {
                        vi x = seti(bytes[m][8 * g + q]), z = seti(bytes[m][8 * g + q + 1]);
                        acc[m][0] = dot4(acc[m][0], w0 & 0x0f0f0f0f, x);
                        acc[m][1] = dot4(acc[m][1], w1 & 0x0f0f0f0f, x);
                        acc[m][0] = dot4(acc[m][0], w0 >> 4 & 0x0f0f0f0f, z);
                        acc[m][1] = dot4(acc[m][1], w1 >> 4 & 0x0f0f0f0f, z);
                    }
                }
            }
            vf s0 = half((const uint16_t*)panel), s1 = half((const uint16_t*)panel + W);
            for (int m = 0; m < M; m++) {
                vf s = set(((const float*)a[m])[g]);
                sums[m][0] += __builtin_convertvector(acc[m][0], vf) * (s0 * s);
                sums[m][1] += __builtin_convertvector(acc[m][1], vf) * (s1 * s);
            }
        }
        for (int m = 0; m < M; m++) y[m][0] = sums[m][0], y[m][1] = sums[m][1];
    }
};
typedef Quantised<8> Q8;
typedef Quantised<4> Q4;

// Call f(form) with the form that `number` names, as programs write it.
template <class F>
inline void with_form(int64_t number, F f) {
    if (number == 0) f(F32{});
    else if (number == 1) f(BF16{});
    else if (number == 2) f(Q8{});
    else f(Q4{});
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
template <class Form, class F>
inline void panel_times_rows(const char* const* a, int rows, const char* panel, int k, F done) {
    for (int at = 0, left = (rows + Form::most - 1) / Form::most; left > 0; left--) {  // tiles of nearly equal size
        int count = (rows - at + left - 1) / left;
        rows_of_tile<Form, Form::most>(a + at, count, panel, k, [&](int m, vf low, vf high) { done(at + m, low, high); });
        at += count;
    }
}

}  // namespace glmc
