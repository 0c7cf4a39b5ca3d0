// How keys and values lie, so that both products of attention are those of a panel (native/tile.hpp). For a key head, slots L
// (a multiple of 32), channels D (values: Dp, filled to a multiple of 32):
//
//   float32    keys [L / 32][D][32]            values [L][Dp]
//   bfloat16   keys [L / 32][D / 2][32][2]     values [L / 2][Dp][2]      (D even)
#pragma once

#include "native/tile.hpp"

namespace glmc {

struct Cache32 {
    typedef float T;
    static constexpr int pack = 1, terms = 6;  // terms of the weights' series: those that survive the rounding to T
    static void put_key(char* keys, int64_t slot, const float* x, int64_t width) {
        float* to = (float*)keys + slot / P * width * P + slot % P;
        for (int64_t i = 0; i < width; i++) to[i * P] = x[i];
    }
    static void put_value(char* values, int64_t slot, const float* x, int64_t width) {
        std::memcpy((float*)values + slot * ((width + P - 1) / P * P), x, 4 * width);
    }
    static void put(float* y, vf x) { store(y, x); }
    static void prepare(const float* x, float* y, int64_t n, float scale) {
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale;
    }
};

struct Cache16 {
    typedef uint16_t T;
    static constexpr int pack = 2, terms = 4;
    static void put_key(char* keys, int64_t slot, const float* x, int64_t width) {
        uint16_t* to = (uint16_t*)keys + slot / P * width * P + slot % P * 2;
        for (int64_t i = 0; i < width; i += 2) to[i * P] = narrow(x[i]), to[i * P + 1] = narrow(x[i + 1]);
    }
    static void put_value(char* values, int64_t slot, const float* x, int64_t width) {
        int64_t padded = (width + P - 1) / P * P;
        uint16_t* to = (uint16_t*)values + slot / 2 * padded * 2 + slot % 2;
        for (int64_t i = 0; i < width; i++) to[2 * i] = narrow(x[i]);
    }
    static void put(uint16_t* y, vf x) { store(y, narrow(x)); }
    static void prepare(const float* x, uint16_t* y, int64_t n, float scale) {
        int64_t i = 0;
        for (; i + W <= n; i += W) store(y + i, narrow(load<vf>(x + i) * scale));
        for (; i < n; i++) y[i] = narrow(x[i] * scale);
    }
};

template <class F>
inline void with_cache(int64_t form, F f) {
    if (form == 0) f(Cache32{});
    else f(Cache16{});
}

}  // namespace glmc
