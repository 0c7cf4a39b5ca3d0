// Sixteen floats at a time, and the dot products that matrix work is made of.
//
// GCC's vector types become AVX-512, AVX2, NEON or plain code as the library is built; only the dot products are written with
// instructions of their own. Numbers: float32 inside; bfloat16 rounds to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace glmc {

constexpr int W = 16;  // lanes of a vector

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

template <class V>
inline V load(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
inline void store(void* p, V v) { std::memcpy(p, &v, sizeof v); }

inline vf set(float x) { return x - vf{}; }
inline vi seti(int32_t x) { return x - vi{}; }
inline vf select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
inline vf vmax(vf a, vf b) { return select(a > b, a, b); }
inline vf vmin(vf a, vf b) { return select(a < b, a, b); }
inline vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

inline float sum(vf v) {
    float s = 0;
    for (int i = 0; i < W; i++) s += v[i];
    return s;
}
inline float largest(vf v) {
    float m = v[0];
    for (int i = 1; i < W; i++) m = v[i] > m ? v[i] : m;
    return m;
}

// The lanes below n of memory that may end there; the others are `rest`.
inline vf load_part(const float* p, int n, float rest = 0) {
    float t[W];
    for (int i = 0; i < W; i++) t[i] = i < n ? p[i] : rest;
    return load<vf>(t);
}
inline void store_part(float* p, vf v, int n) { std::memcpy(p, &v, n * sizeof(float)); }

inline float widen(uint16_t h) {
    uint32_t u = uint32_t(h) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
inline vf widen(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }

inline uint16_t narrow(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return uint16_t(u >> 16 | 64);
    return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
// The same of sixteen, and the same bits in every build.
inline vh narrow_all(vf x) {
    vu u = (vu)x;
    vu rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    vu nan = (vu)((u & 0x7fffffff) > 0x7f800000);
    return __builtin_convertvector((rounded & ~nan) | ((u >> 16 | 64) & nan), vh);
}
// Quickly; what is below the normal numbers may become 0.
inline vh narrow(vf x) {
#if defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    return narrow_all(x);
#endif
}

// IEEE half to float, for the scales of quantised weights.
inline vf half(vh h) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    vf v;
    __m256 low = _mm256_cvtph_ps(load<__m128i>(&h)), high = _mm256_cvtph_ps(load<__m128i>((char*)&h + 16));
    std::memcpy(&v, &low, 32);
    std::memcpy((char*)&v + 32, &high, 32);
    return v;
#else
    vu u = __builtin_convertvector(h, vu), size = u & 0x7fff;
    vf scaled = (vf)(size << 13) * 0x1p112f;  // exact for what is finite
    vu more = (vu)(size >= 0x7c00) & 0x7f800000;
    return (vf)((vu)scaled | more | (u & 0x8000) << 16);
#endif
}
// Sixteen bytes as whole numbers, by hand, since the compiler would take them out one by one.
inline vh bytes(const void* p) {
#if defined(__AVX2__)
    return (vh)_mm256_cvtepu8_epi16(load<__m128i>(p));
#else
    typedef uint8_t vb __attribute__((vector_size(16)));
    return __builtin_convertvector(load<vb>(p), vh);
#endif
}

// acc[i] += w[i].low * x.low + w[i].high * x.high over pairs of bfloat16.
inline vf dot2(vf acc, vi w, vi x) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)x);
#else
    acc += (vf)(w << 16) * (vf)(x << 16);
    return acc + (vf)(w & (int32_t)0xffff0000) * (vf)(x & (int32_t)0xffff0000);
#endif
}

// acc[i] += the four products of unsigned bytes of w[i] and signed bytes of x[i].
inline vi dot4(vi acc, vi w, vi x) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
    for (int h = 0; h < 2; h++) {
        __m256i a, u, s;
        std::memcpy(&a, (char*)&acc + 32 * h, 32);
        std::memcpy(&u, (char*)&w + 32 * h, 32);
        std::memcpy(&s, (char*)&x + 32 * h, 32);
        const __m256i low = _mm256_set1_epi16(255);
        __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
        __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
        a = _mm256_add_epi32(a, _mm256_add_epi32(even, odd));
        std::memcpy((char*)&acc + 32 * h, &a, 32);
    }
    return acc;
#else
    for (int b = 0; b < 4; b++) acc += (vi)((vu)w >> (8 * b) & 255) * ((x << (24 - 8 * b)) >> 24);
    return acc;
#endif
}

// Bytes of 0 .. 15, codes of e2m1, as twice their value and 12: 0, .5, 1, 1.5, 2, 3, 4, 6 and the negatives.
inline vi doubled(vi codes) {
    constexpr int64_t positive = 0x181412100f0e0d0c, negative = 0x00040608090a0b0c;
#if defined(__AVX512BW__)
    return (vi)_mm512_shuffle_epi8(_mm512_set4_epi64(negative, positive, negative, positive), (__m512i)codes);
#elif defined(__AVX2__)
    const __m256i table = _mm256_set_epi64x(negative, positive, negative, positive);
    for (int h = 0; h < 2; h++) {
        __m256i part;
        std::memcpy(&part, (char*)&codes + 32 * h, 32);
        part = _mm256_shuffle_epi8(table, part);
        std::memcpy((char*)&codes + 32 * h, &part, 32);
    }
    return codes;
#else
    typedef uint8_t vb __attribute__((vector_size(64)));
    vb c = (vb)codes, size = c & 7;
    size += ((size - 4) & (vb)(size > 4)) + ((vb)(size > 6) & 2);
    return (vi)(((12 + size) & (vb)(c < 8)) | ((12 - size) & (vb)(c > 7)));
#endif
}

// e to the x, to two units in the last place; 0 far below. NaN stays NaN, and what overflows is large or infinite.
inline vf vexp(vf x) {
    constexpr float high = 0.693359375f, low = -2.12194440e-4f;  // their sum is the logarithm of 2
    auto series = [](vf r) {
        vf p = 1.9875691500e-4f * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        return p * r * r + r + 1.0f;
    };
#if defined(__AVX512F__)
    x = (vf)_mm512_max_ps(_mm512_set1_ps(-110.0f), (__m512)x);  // of a NaN the second is taken
    vf n = (vf)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
    return (vf)_mm512_scalef_ps((__m512)series((x - n * high) - n * low), (__m512)n);
#else
    const float magic = 12582912.0f;  // adding it rounds to a whole number
    vf within = vmax(vmin(x, set(88.0f)), set(-87.0f)), n = within * 1.44269504f + magic;
    vi exponent = (vi)n << 23;
    n -= magic;
    vf y = (vf)((vi)series((within - n * high) - n * low) + exponent);
    return select(x == x, select(x < -87.0f, vf{}, y), x);
#endif
}

// 2 to the x, for x up to 0: the series of 2^r, |r| <= 1/2, to the TERMS-th power; 6 is exact to float32, 4 to 4e-5. NaN stays NaN.
template <int TERMS>
inline vf vexp2(vf x) {
    constexpr float c[] = {1.0f, 0.693147181f, 0.240226507f, 0.0555041087f, 0.00961812911f, 0.00133335581f, 0.000154035304f};
    auto series = [&](vf r) {
        vf p = set(c[TERMS]);
        for (int i = TERMS - 1; i >= 0; i--) p = p * r + c[i];
        return p;
    };
#if defined(__AVX512F__)
    x = (vf)_mm512_max_ps(_mm512_set1_ps(-160.0f), (__m512)x);  // of a NaN the second is taken
    vf n = (vf)_mm512_roundscale_ps((__m512)x, 0);
    return (vf)_mm512_scalef_ps((__m512)series(x - n), (__m512)n);
#else
    const float magic = 12582912.0f;
    vf within = vmax(x, set(-125.0f)), n = within + magic;
    vi exponent = (vi)n << 23;
    n -= magic;
    vf y = (vf)((vi)series(within - n) + exponent);
    return select(x == x, select(x < -125.0f, vf{}, y), x);
#endif
}

inline vf silu(vf x) { return x / (1.0f + vexp(-x)); }

}  // namespace glmc
