// Weights of FP8 (e4m3), with a float32 scale for each 128 inputs of an output, multiplied as bfloat16.
//
//   F8  [k / 128] { 32 scales (float), times 256; [32][32][4] bytes: of four k the first, third, second and fourth }
//
// The last group has only the lines that k fills. A byte is the code turned left by one, the sign last, so that the numbers
// below the normal ones lie below 16; -0 is 0 and 1 is NaN. Decoded numbers are 2^8 too small, for what is put there is then
// an exponent's upper bits alone.
#pragma once

#include "tile.hpp"

namespace glmc {

// Sixteen bytes, each in a lane of its own, as numbers divided by 2^8.
inline vf float8(vi r) {
    vi small = r < 16, size = (r & 0xfe) << 19;
    vf base = (vf)(size + (112 << 23) + (small & 1 << 23));
    vf number = base - (vf)(small & 113 << 23);  // below the normal ones the leading 1 is too much
    return (vf)((vi)number | r << 31 | ((r == 1) & 0x7fc00000));
}

// Of each pair of bytes the low or the high one, as a pair of bfloat16 divided by 2^8.
inline vi pair8(vi line, int high) {
#if defined(__AVX512BF16__)
    alignas(64) static constexpr uint16_t small[32] = {0, 0x7fc0, 0x3700, 0xb700, 0x3780, 0xb780, 0x37c0, 0xb7c0,
                                                       0x3800, 0xb800, 0x3820, 0xb820, 0x3840, 0xb840, 0x3860, 0xb860};
    __m512i r = high ? _mm512_srli_epi16((__m512i)line, 8) : _mm512_and_si512((__m512i)line, _mm512_set1_epi16(255));
    __m512i places = _mm512_set1_epi16(int16_t(0x8008));  // the sign goes to the top, the rest to its place
    asm("" : "+v"(places));                               // or the compiler would make three shifts of it
    __m512i spread = _mm512_mullo_epi16(r, places);
    __m512i normal = _mm512_ternarylogic_epi32(spread, _mm512_set1_epi16(int16_t(0x87f0)), _mm512_set1_epi16(0x3800), 0xea);
    __mmask32 below = _mm512_testn_epi16_mask(r, _mm512_set1_epi16(0xf0));
    return (vi)_mm512_mask_permutexvar_epi16(normal, below, r, _mm512_load_si512(small));
#else
    vi r = high ? line >> 8 : line;
    vu low = (vu)float8(r & 255);
    return (vi)float8(r >> 16 & 255) | (vi)(low >> 16);
#endif
}

struct F8 {
    static constexpr int most = 8, group = 128;
    static constexpr int few = 24;  // rows up to which every tile decodes for itself, and a panel is not opened for all
    static constexpr int64_t step = 4 * P + group * P;
    static int64_t row_bytes(int k) { return int64_t(k + 3) / 4 * 8; }
    static int64_t panel_bytes(int k) { return int64_t(k + group - 1) / group * 4 * P + int64_t(k + 3) / 4 * 4 * P; }
    static void prepare(const float* x, int k, char* out) {
        BF16::prepare(x, k, out);
        for (int i = k; i & 3; i++) ((uint16_t*)out)[i] = 0;
    }
    static void quad(const char* panel, int q, vf (&w)[4][2]) {
        panel += q / 32 * step;
        for (int v = 0; v < 2; v++) {
            vi line = load<vi>(panel + 4 * P + q % 32 * 4 * P + 64 * v);
            for (int i = 0; i < 4; i++) {
                int at = i == 1 ? 2 : i == 2 ? 1 : i;
                w[i][v] = float8(line >> 8 * at & 255) * load<vf>(panel + 4 * W * v);
            }
        }
    }
    static void column(const char* panel, int column, int k, float* out) { read_column<F8>(panel, column, k, out); }

    // The product of `quads` lines of codes.
    template <int M>
    APART static void product_of_codes(const uint16_t* const* x, const char* lines, int quads, vf (&acc)[M][2]) {
        vf sums[M][2] = {};
        for (int q = 0; q < quads; q++, lines += 4 * P) {
            vi w0 = load<vi>(lines), w1 = load<vi>(lines + 64);
            for (int i = 0; i < 2; i++)
                for (int m = 0; m < M; m++) {
                    vi both = seti(load<int32_t>(x[m] + 4 * q + 2 * i));
                    sums[m][0] = dot2(sums[m][0], pair8(w0, i), both);
                    sums[m][1] = dot2(sums[m][1], pair8(w1, i), both);
                }
        }
        for (int m = 0; m < M; m++) acc[m][0] = sums[m][0], acc[m][1] = sums[m][1];
    }

    // y = the sum over groups, each begun by its scales: f(x, what follows, quads, acc) multiplies one, `line` bytes a quad.
    template <int M, class F>
    static void over_groups(const char* const* a, const char* panel, int k, int line, vf (&y)[M][2], F f) {
        const uint16_t* x[M];
        for (int m = 0; m < M; m++) x[m] = (const uint16_t*)a[m], y[m][0] = y[m][1] = vf{};
        for (int left = (k + 3) / 4; left > 0; left -= 32) {
            int quads = left < 32 ? left : 32;
            vf s0 = load<vf>(panel), s1 = load<vf>(panel + 4 * W), acc[M][2];
            f(x, panel + 4 * P, quads, acc);
            panel += 4 * P + quads * line;
            for (int m = 0; m < M; m++) x[m] += group, y[m][0] += acc[m][0] * s0, y[m][1] += acc[m][1] * s1;
        }
    }
    template <int M>
    APART static void tile(const char* const* a, const char* panel, int k, vf (&y)[M][2]) {
        over_groups<M>(a, panel, k, 4 * P, y, product_of_codes<M>);
    }

    // A panel whose codes are bfloat16 already, in lines twice as long: for many rows.
    struct Opened {
        static constexpr int most = 12;
        template <int M>
        APART static void tile(const char* const* a, const char* panel, int k, vf (&y)[M][2]) {
            over_groups<M>(a, panel, k, 8 * P, y, [](const uint16_t* const* x, const char* lines, int quads, vf (&acc)[M][2]) {
                product<M>(x, 2 * quads, (const uint16_t*)lines, 2 * P, 2 * W, acc);
            });
        }
    };
    static void open(const char* panel, int k, char* out) {
        for (int q = 0; 4 * q < k; q++, panel += 4 * P) {
            if (q % 32 == 0) {
                std::memcpy(out, panel, 4 * P);
                panel += 4 * P;
                out += 4 * P;
            }
            __builtin_prefetch(panel + AHEAD);
            __builtin_prefetch(panel + AHEAD + 64);
            for (int i = 0; i < 4; i++, out += 64) store(out, pair8(load<vi>(panel + 64 * (i % 2)), i / 2));
        }
    }
};

}  // namespace glmc
