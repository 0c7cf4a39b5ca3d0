// Weights of four or eight bits that are multiplied as whole numbers, in groups of 32 inputs.
//
//   Q8   [k / 32] { 32 scales (half), [8][32][4] bytes: weight / scale + 128 }
//   Q4   [k / 32] { 32 scales (half), [4][32][4] bytes: weight / scale + 8; of eight k the first four are low halves }
//   MX4  [k / 64] { [2] { 32 scales (a byte: the exponent of 2, + 127) }, [2] { [4][32][4] bytes of e2m1 as Q4's } }
//   NV4  { 32 factors (float) } [k / 32] { [2] { 32 scales (e4m3) for 16 inputs each }, [4][32][4] bytes of e2m1 as Q4's }
//
// Twice an e2m1 is a whole number from -12 to 12, so all four are products of bytes; an `offset` makes the weights' unsigned.
#pragma once

#include "tile.hpp"

namespace glmc {

constexpr int G = 32;  // inputs that share a scale of the activations
inline int groups(int k) { return (k + G - 1) / G; }

template <int BITS>
struct Whole {
    static constexpr int offset = BITS == 8 ? 128 : 8;
    static constexpr int quads = 8 / BITS;  // times four inputs in a line of 4 * P bytes
    static constexpr int parts = 1;         // scales of a group
    static constexpr bool factors = false;  // of a whole output, besides
    static constexpr int step = 2 * P + G * P * BITS / 8;
    static int64_t panel_bytes(int k) { return int64_t(groups(k)) * step; }
    static const char* codes(const char* panel, int g) { return panel + int64_t(g) * step + 2 * P; }
    static vf scale(const char* panel, int g, int, int v) { return half(load<vh>(panel + int64_t(g) * step + 2 * W * v)); }
    static vi bytes(vi line, int quad) { return BITS == 8 ? line : (quad ? line >> 4 : line) & 0x0f0f0f0f; }
};

struct Mx {
    static constexpr int offset = 12, quads = 2, parts = 1;
    static constexpr bool factors = false;
    static constexpr int step = 2 * P + 2 * G * P / 2;  // of two groups, so that lines are not cut
    static int64_t panel_bytes(int k) { return int64_t(groups(k) + 1) / 2 * step; }
    static const char* codes(const char* panel, int g) { return panel + int64_t(g / 2) * step + 2 * P + g % 2 * (G * P / 2); }
    // Half of the scale, since codes are doubled: for 0 and 1 it is a denormal.
    static vf scale(const char* panel, int g, int, int v) {
        vi b = __builtin_convertvector(glmc::bytes(panel + int64_t(g / 2) * step + g % 2 * P + W * v), vi);
        return select(b < 2, (vf)((b + 1) << 21), (vf)((b - 1) << 23));
    }
    static vi bytes(vi line, int quad) { return doubled((quad ? line >> 4 : line) & 0x0f0f0f0f); }
};

struct Nv {
    static constexpr int offset = 12, quads = 2, parts = 2;
    static constexpr bool factors = true;  // 128 times the matrix's: halves of e4m3 are 2^8 too small, codes twice too large
    static constexpr int step = 2 * P + G * P / 2;
    static int64_t panel_bytes(int k) { return 4 * P + int64_t(groups(k)) * step; }
    static const char* codes(const char* panel, int g) { return panel + 4 * P + int64_t(g) * step + 2 * P; }
    static vf scale(const char* panel, int g, int part, int v) {
        vh e = glmc::bytes(panel + 4 * P + int64_t(g) * step + P * part + W * v);
        return half((e & 0x7f) << 7 | (e & 0x80) << 8);
    }
    static vf factor(const char* panel, int v) { return load<vf>(panel + 4 * W * v); }
    static vi bytes(vi line, int quad) { return Mx::bytes(line, quad); }
};

// A prepared row: for each group a float scale, an int32 correction a part, then the bytes.
template <class Code>
struct Quantised {
    static constexpr int most = 6, parts = Code::parts;
    static int64_t row_bytes(int k) { return int64_t(groups(k)) * (4 + 4 * parts + G); }
    static int64_t panel_bytes(int k) { return Code::panel_bytes(k); }

    static void prepare(const float* x, int k, char* out) {
        int n = groups(k);
        auto* scales = (float*)out;
        auto* corrections = (int32_t*)(out + 4 * n);
        auto* bytes = (int8_t*)(out + (4 + 4 * parts) * n);
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
            if constexpr (parts == 1) a += b;
            int32_t total[2] = {};
            for (int i = 0; i < W; i++) total[0] += a[i], total[1] += b[i];
            scales[g] = bits < 0x7f800000 ? top / 127.0f : NAN;
            for (int part = 0; part < parts; part++) corrections[g * parts + part] = -Code::offset * total[part];
        }
    }

    // What the four inputs of quad q are multiplied by, as numbers.
    static void quad(const char* panel, int q, vf (&w)[4][2]) {
        int g = q / 8, in = q % 8;
        for (int v = 0; v < 2; v++) {
            vi line = load<vi>(Code::codes(panel, g) + in / Code::quads * 4 * P + 64 * v);
            vi bytes = Code::bytes(line, in % Code::quads);
            vf scale = Code::scale(panel, g, in * parts / 8, v);
            for (int i = 0; i < 4; i++) {
                w[i][v] = __builtin_convertvector((bytes >> 8 * i & 255) - Code::offset, vf) * scale;
                if constexpr (Code::factors) w[i][v] *= Code::factor(panel, v);
            }
        }
    }
    static void column(const char* panel, int column, int k, float* out) { read_column<Quantised>(panel, column, k, out); }

    template <int M>
    APART static void tile(const char* const* a, const char* panel, int k, vf (&y)[M][2]) {
        int n = groups(k);
        vf sums[M][2] = {};
        const int32_t* bytes[M];
        for (int m = 0; m < M; m++) bytes[m] = (const int32_t*)(a[m] + (4 + 4 * parts) * n);
        for (int g = 0; g < n; g++) {
            const char* data = Code::codes(panel, g);
            for (int part = 0; part < parts; part++) {
                vi acc[M][2];
                for (int m = 0; m < M; m++) acc[m][0] = acc[m][1] = seti(((const int32_t*)a[m])[n + g * parts + part]);
                for (int q = 8 * g + 8 / parts * part, end = q + 8 / parts; q < end; q += Code::quads, data += 4 * P) {
                    vi w0 = load<vi>(data), w1 = load<vi>(data + 64);
                    for (int i = 0; i < Code::quads; i++)
                        for (int m = 0; m < M; m++) {
                            vi x = seti(bytes[m][q + i]);
                            acc[m][0] = dot4(acc[m][0], Code::bytes(w0, i), x);
                            acc[m][1] = dot4(acc[m][1], Code::bytes(w1, i), x);
                        }
                }
                vf s0 = Code::scale(panel, g, part, 0), s1 = Code::scale(panel, g, part, 1);
                for (int m = 0; m < M; m++) {
                    vf s = set(((const float*)a[m])[g]);
                    sums[m][0] += __builtin_convertvector(acc[m][0], vf) * s * s0;
                    sums[m][1] += __builtin_convertvector(acc[m][1], vf) * s * s1;
                }
            }
        }
        for (int m = 0; m < M; m++)
            for (int v = 0; v < 2; v++) {
                y[m][v] = sums[m][v];
                if constexpr (Code::factors) y[m][v] *= Code::factor(panel, v);
            }
    }
};

}  // namespace glmc
