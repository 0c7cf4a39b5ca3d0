// How keys and values lie, so that both products of attention are those of a panel (native/tile.hpp). For a key head, slots L
// (a multiple of 32), channels D (values: Dp, filled to a multiple of 32):
//
//   float32    keys [L / 32][D][32]            values [L][Dp]
//   bfloat16   keys [L / 32][D / 2][32][2]     values [L / 2][Dp][2]      (D even)
#pragma once

#include <algorithm>

#include "native/tile.hpp"

namespace glmc {

struct Cache32 {
    typedef float T;
    static constexpr int pack = 1, terms = 6;  // terms of the weights' series: those that survive the rounding to T
    // Channels `first` to `first + n` of a slot's key; a key has `width`.
    static void put_key(char* keys, int64_t slot, const float* x, int64_t n, int64_t width, int64_t first = 0) {
        float* to = (float*)keys + slot / P * width * P + first * P + slot % P;
        for (int64_t i = 0; i < n; i++) to[i * P] = x[i];
    }
    static void put_value(char* values, int64_t slot, const float* x, int64_t width) {
        std::memcpy((float*)values + slot * filled(width), x, 4 * width);
    }
    static void take_value(const char* values, int64_t slot, float* x, int64_t width) {
        std::memcpy(x, (const float*)values + slot * filled(width), 4 * width);
    }
    // Values of slots a and b to slots 2 pair and 2 pair + 1; without a b (negative) zeros.
    static void copy_values(const char* from, int64_t a, int64_t b, char* to, int64_t pair, int64_t padded) {
        auto* out = (float*)to + 2 * pair * padded;
        std::memcpy(out, (const float*)from + a * padded, 4 * padded);
        if (b < 0) std::memset(out + padded, 0, 4 * padded);
        else std::memcpy(out + padded, (const float*)from + b * padded, 4 * padded);
    }
    static void put(float* y, vf x) { store(y, x); }
    static void prepare(const float* x, float* y, int64_t n, float scale) {
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale;
    }
};

struct Cache16 {
    typedef uint16_t T;
    static constexpr int pack = 2, terms = 4;
    static void put_key(char* keys, int64_t slot, const float* x, int64_t n, int64_t width, int64_t first = 0) {
        uint16_t* to = (uint16_t*)keys + slot / P * width * P + first * P + slot % P * 2;
        for (int64_t i = 0; i < n; i += 2) to[i * P] = narrow(x[i]), to[i * P + 1] = narrow(x[i + 1]);
    }
    static void put_value(char* values, int64_t slot, const float* x, int64_t width) {
        int64_t padded = filled(width);
        uint16_t* to = (uint16_t*)values + slot / 2 * padded * 2 + slot % 2;
        for (int64_t i = 0; i < width; i++) to[2 * i] = narrow(x[i]);
    }
    static void take_value(const char* values, int64_t slot, float* x, int64_t width) {
        auto* from = (const uint32_t*)values + slot / 2 * filled(width);
        int down = slot % 2 * 16;
        for (int64_t i = 0; i < width; i++) x[i] = widen(uint16_t(from[i] >> down));
    }
    static void copy_values(const char* from, int64_t a, int64_t b, char* to, int64_t pair, int64_t padded) {
        auto *first = (const uint32_t*)from + a / 2 * padded, *second = (const uint32_t*)from + std::max<int64_t>(b, 0) / 2 * padded;
        auto* out = (uint32_t*)to + pair * padded;
        int down = a % 2 * 16, other = b % 2 * 16;
        uint32_t kept = b < 0 ? 0 : 0xffff;
        for (int64_t i = 0; i < padded; i++) out[i] = (first[i] >> down & 0xffff) | (second[i] >> other & kept) << 16;
    }
    static void put(uint16_t* y, vf x) { store(y, narrow(x)); }
    static void prepare(const float* x, uint16_t* y, int64_t n, float scale) {
        int64_t i = 0;
        for (; i + W <= n; i += W) store(y + i, narrow(load<vf>(x + i) * scale));
        for (; i < n; i++) y[i] = narrow(x[i] * scale);
    }
};

// The key of slot `from` to slot `to` of other keys: 4 bytes are one float, or two neighbours.
inline void copy_key(const char* keys, int64_t from, char* out, int64_t to, int64_t words) {
    auto* a = (const uint32_t*)keys + from / P * words * P + from % P;
    auto* b = (uint32_t*)out + to / P * words * P + to % P;
    for (int64_t i = 0; i < words; i++) b[i * P] = a[i * P];
}

template <class F>
inline void with_cache(int64_t form, F f) {
    if (form == 0) f(Cache32{});
    else f(Cache16{});
}

}  // namespace glmc
