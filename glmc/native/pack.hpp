// Writing a matrix into panels: words of 32 bits are turned over, 16 rows by 16 words at a time, and quantised on the way.
//
// Whatever the form, a panel's column is a row of words: one float32, two bfloat16, four bytes or eight codes of four bits. The
// result is the same bits in every build: no product is added to before it is cut, so that fused multiply-adds change nothing.
#pragma once

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#include "forms.hpp"

namespace glmc {

// A matrix [rows, width]. kind: 0 float32, 1 bfloat16, 2 half, 3 codes that already are the form's. Neighbouring rows stand
// `stride` bytes apart, their scales `scale_stride`: bytes for MX4 [width / 32] and NV4 [width / 16], floats for F8
// [width / 128], times 256. factors: NV4's, a float a row, times 128. halves: the two halves of the rows share every panel.
struct Packing {
    int64_t form, kind, rows, width, halves, stride, scale_stride;
    const char *source, *scales;
    const float* factors;
    char* out;
};

inline void turn(vi (&t)[W]) {
    auto stage = [&](auto size) {
        constexpr int s = decltype(size)::value;
        vi low, high;
        for (int l = 0; l < W; l++) low[l] = l & s ? W + l - s : l, high[l] = l & s ? W + l : l + s;
        for (int i = 0; i < W; i++)
            if (!(i & s)) {
                vi a = t[i], b = t[i + s];
                t[i] = __builtin_shuffle(a, b, low);
                t[i + s] = __builtin_shuffle(a, b, high);
            }
    };
    stage(std::integral_constant<int, 8>());
    stage(std::integral_constant<int, 4>());
    stage(std::integral_constant<int, 2>());
    stage(std::integral_constant<int, 1>());
}

// Float to IEEE half, to nearest even, in the low bits of each lane.
inline vi to_half(vf x) {
    vu u = (vu)vabs(x), small = (vu)((vf)u + 0.5f) - 0x3f000000, normal = (u + 0xc8000fff + (u >> 13 & 1)) >> 13;
    vu special = 0x7c00 | ((vu)(u > 0x7f800000) & 0x200);
    vu size = (vu)select((vi)(u < 0x38800000), (vf)small, select((vi)(u < 0x477ff000), (vf)normal, (vf)special));
    return (vi)(size | ((vu)x >> 16 & 0x8000));
}

// The 16 rows of a panel's vector: where each begins, nullptr past the matrix's end.
struct Rows {
    const Packing& it;
    int64_t numbers[W];
    Rows(const Packing& it, int64_t panel, int v) : it(it) {
        int64_t first = it.halves ? panel * W : panel * P + v * W, end = it.halves ? it.rows / 2 : it.rows;
        for (int i = 0; i < W; i++) numbers[i] = first + i < end ? first + i + (it.halves ? v * end : 0) : -1;
    }
    // 64 bytes of each row from byte `at`, zeros past byte `end`.
    void words(int64_t at, int64_t end, vi (&t)[W]) const {
        for (int i = 0; i < W; i++) {
            const char* from = it.source + numbers[i] * it.stride + at;
            if (numbers[i] < 0 || at >= end) t[i] = vi{};
            else if (at + 64 <= end) t[i] = load<vi>(from);
            else {
                t[i] = vi{};
                std::memcpy(&t[i], from, end - at);
            }
        }
    }
    // 16 numbers of each row from number `at`, as float32.
    void floats(int64_t at, vi (&t)[W]) const {
        if (it.kind == 0) return words(4 * at, 4 * it.width, t);
        for (int i = 0; i < W; i++) {
            vh h{};
            int64_t left = it.width - at;
            const char* from = it.source + numbers[i] * it.stride + 2 * at;
            if (numbers[i] >= 0 && left >= W) h = load<vh>(from);
            else if (numbers[i] >= 0 && left > 0) std::memcpy(&h, from, 2 * left);
            t[i] = it.kind == 1 ? (vi)widen(h) : (vi)half(h);
        }
    }
};

inline vi swapped(vi x) {  // of four bytes the middle ones
    return (x & (int32_t)0xff0000ff) | (x & 0xff00) << 8 | (x >> 8 & 0xff00);
}
// Eight codes of four bits in order -> the first four in the bytes' low halves.
inline vi spread(vi x) {
    x = swapped(x);
    return (x & (int32_t)0xf00ff00f) | (x & 0x00f000f0) << 4 | (x >> 4 & 0x00f000f0);
}
// Four codes of e4m3 in order -> as float8.hpp has them.
inline vi turned(vi x) {
    typedef uint8_t vb __attribute__((vector_size(64)));
    vb r = (vb)((x << 1 & (int32_t)0xfefefefe) | (x >> 7 & 0x01010101));
    vb zero = (vb)(r == 1), nan = (vb)(r >= 0xfe);
    return swapped((vi)((r & ~zero & ~nan) | (nan & 1)));
}

// Scales and codes of a group of 32 inputs of 16 rows, x[k] each.
template <int BITS>
inline void quantise(const vf (&x)[G], char* scales, char* codes) {
    constexpr float least = BITS == 8 ? -127 : -8, most = BITS == 8 ? 127 : 7;
    const float magic = 12582912.0f;
    vf low = x[0], high = x[0];
    for (int k = 1; k < G; k++) low = vmin(low, x[k]), high = vmax(high, x[k]);
    vf far = select(high > -low, high, low), best{}, error{};
    for (int k = 0; k < G; k++) far = select(x[k] == x[k], far, x[k]);  // a NaN is not lost
    auto code = [&](vf value, vf inverse) { return vmin(vmax(value * inverse, set(least)), set(most)) + magic; };
    for (int i = 0; i < (BITS == 8 ? 1 : 9); i++) {
        vf wanted = BITS == 8 ? vabs(far) / 127.0f : far * -0.125f * float(1 - 0.04 * i);
        vf scale = half(__builtin_convertvector(to_half(wanted), vh));
        vf inverse = select(scale == 0.0f, scale, 1.0f / scale), sum{};
        for (int k = 0; k < G && BITS == 4; k++) {
            vf gap = (code(x[k], inverse) - magic) * scale - x[k];  // the product is exact, so fused or not is the same
            sum += vmax(gap * gap, vf{});
        }
        vi better = i ? sum < error : seti(-1);
        best = select(better, scale, best);
        error = select(better, sum, error);
    }
    vf inverse = select(best == 0.0f, best, 1.0f / best);
    store(scales, __builtin_convertvector(to_half(best), vh));
    for (int q = 0; q < 8; q++) {
        vi word{};
        for (int i = 0; i < 4; i++)
            word |= (((vi)code(x[4 * q + i], inverse) - 0x4b400000 + Whole<BITS>::offset) & 255) << 8 * i;
        if (BITS == 8 || q % 2 == 0) store(codes + q / (8 / BITS) * 4 * P, word);
        else store(codes + q / 2 * 4 * P, load<vi>(codes + q / 2 * 4 * P) | word << 4);
    }
}

// Words of a panel's column from words of rows: f(rows, word, t) makes 16 words of each row, at(word) is where a word goes.
template <class F, class At>
inline void turn_over(const Rows& rows, int64_t words, F f, At at) {
    for (int64_t word = 0; word < words; word += W) {
        vi t[W];
        f(word, t);
        turn(t);
        for (int i = 0; i < W && word + i < words; i++) store(at(word + i), t[i]);
    }
}

template <class Code>
inline void pack_codes(const Packing& it, const Rows& rows, char* out, int v) {
    turn_over(rows, 4 * groups(it.width), [&](int64_t word, vi (&t)[W]) {
        rows.words(4 * word, (it.width + 1) / 2, t);
        for (auto& one : t) one = spread(one);
    }, [&](int64_t word) { return (char*)Code::codes(out, word / 4) + word % 4 * 4 * P + 64 * v; });
    int64_t each = G / Code::parts, scales = (it.width + each - 1) / each;
    for (int i = 0; i < W; i++)
        for (int64_t s = 0; s < scales; s++) {
            char byte = rows.numbers[i] < 0 ? 0 : it.scales[rows.numbers[i] * it.scale_stride + s];
            if constexpr (Code::factors) out[4 * P + s / 2 * Code::step + s % 2 * P + W * v + i] = byte;
            else out[s / 2 * Code::step + s % 2 * P + W * v + i] = byte;
        }
}

inline void pack_panel(const Packing& it, int64_t panel, char* out, int v) {
    Rows rows(it, panel, v);
    int64_t k = it.width;
    auto floats = [&](int64_t at, vi (&t)[W]) { rows.floats(at, t); };
    auto quantised = [&](auto bits, int64_t step) {
        for (int64_t g = 0; g < groups(k); g++, out += step) {
            vi x[2][W];
            for (int i = 0; i < 2; i++) floats(g * G + i * W, x[i]), turn(x[i]);
            quantise<decltype(bits)::value>((vf(&)[G])x, out + 2 * W * v, out + 2 * P + 64 * v);
        }
    };
    switch (it.form) {
        case 0: return turn_over(rows, k, floats, [&](int64_t word) { return out + word * 4 * P + 64 * v; });
        case 1: return turn_over(rows, (k + 1) / 2, [&](int64_t word, vi (&t)[W]) {
            if (it.kind == 1) return rows.words(4 * word, 2 * k, t);
            vi low[W], high[W];
            floats(2 * word, low);
            floats(2 * word + W, high);
            for (int i = 0; i < W; i++) {
                store(&t[i], narrow_all((vf)low[i]));
                store((char*)&t[i] + 32, narrow_all((vf)high[i]));
            }
        }, [&](int64_t word) { return out + word * 4 * P + 64 * v; });
        case 2: return quantised(std::integral_constant<int, 8>(), Whole<8>::step);
        case 3: return quantised(std::integral_constant<int, 4>(), Whole<4>::step);
        case 4: return pack_codes<Mx>(it, rows, out, v);
        case 5: {
            turn_over(rows, (k + 3) / 4, [&](int64_t word, vi (&t)[W]) {
                rows.words(4 * word, k, t);
                for (auto& one : t) one = turned(one);
            }, [&](int64_t word) { return out + word / 32 * F8::step + 4 * P + word % 32 * 4 * P + 64 * v; });
            for (int64_t g = 0; g < (k + F8::group - 1) / F8::group; g++)
                for (int i = 0; i < W; i++)
                    ((float*)(out + g * F8::step))[v * W + i] =
                        rows.numbers[i] < 0 ? 0 : load<float>(it.scales + rows.numbers[i] * it.scale_stride + 4 * g);
            return;
        }
        default:
            for (int i = 0; i < W; i++) ((float*)out)[v * W + i] = rows.numbers[i] < 0 ? 0 : it.factors[rows.numbers[i]];
            return pack_codes<Nv>(it, rows, out, v);
    }
}

inline int64_t pack(const Packing& it, int64_t threads) {
    int64_t each = it.halves ? W : P, panels = ((it.halves ? it.rows / 2 : it.rows) + each - 1) / each, bytes = 0;
    with_form(it.form, [&](auto form) { bytes = decltype(form)::panel_bytes(it.width); });
    auto share = [&](int64_t thread) {
        for (int64_t p = panels * thread / threads; p < panels * (thread + 1) / threads; p++) {
            char* out = it.out + p * bytes;
            if (it.form >= 4) std::memset(out, 0, bytes);  // what is left of a group
            for (int v = 0; v < 2; v++) pack_panel(it, p, out, v);
        }
    };
    std::vector<std::thread> others;
    int64_t fault = 0;
    try {
        for (int64_t t = 1; t < threads; t++) others.emplace_back(share, t);
        share(0);
    } catch (const std::system_error&) {
        fault = -1;
    }
    for (auto& one : others) one.join();
    return fault;
}

}  // namespace glmc
