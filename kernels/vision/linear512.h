// Linear layers over vectors of 512 bits: rounding of activations, products in registers, and the steps after them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../avx512_common.h"
#include "table.h"

namespace bmx {
namespace vision {
namespace {

using S = Avx512Vnni;

void range(const float * x, int64_t n, float * low, float * high) {
    __m512 least[4], most[4], poison[4];  // a minimum forgets NaN; infinity and NaN times zero stay NaN
    for (int i = 0; i < 4; i++) least[i] = most[i] = poison[i] = _mm512_setzero_ps();
    for (int64_t at = 0; at < n; at += 64) {
        for (int i = 0; i < 4; i++) {
            const __m512 v = _mm512_loadu_ps(x + at + 16 * i);
            least[i] = _mm512_min_ps(v, least[i]);
            most[i] = _mm512_max_ps(v, most[i]);
            poison[i] = _mm512_fmadd_ps(v, _mm512_setzero_ps(), poison[i]);
        }
    }
    const float bad = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(poison[0], poison[1]), _mm512_add_ps(poison[2], poison[3])));
    *low = _mm512_reduce_min_ps(_mm512_min_ps(_mm512_min_ps(least[0], least[1]), _mm512_min_ps(least[2], least[3]))) + bad;
    *high = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]))) + bad;
}

void round(const float * x, int64_t n, float inverse, int zero, uint8_t * to) {
    const __m512 factor = _mm512_set1_ps(inverse);
    const __m512i middle = _mm512_set1_epi32(zero);
    for (int64_t at = 0; at < n; at += 16) {
        const __m512i v = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + at), factor)), middle);
        const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(v, _mm512_setzero_si512()));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to + at), bytes);
    }
}

void column_sums(const int8_t * weights, int64_t n_rows, int64_t n_columns, int32_t * sums) {
    std::fill(sums, sums + n_columns, 0);
    // row by row, as the weights lie in memory
    for (int64_t row = 0; row < n_rows; row++, weights += n_columns) {
        for (int64_t i = 0; i < n_columns; i += kLanes) {
            const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(weights + i)));
            _mm512_storeu_si512(sums + i, _mm512_add_epi32(_mm512_loadu_si512(sums + i), wide));
        }
    }
}

void pack(const int8_t * weights, size_t stride, int64_t n_groups, int n_panels, char * to) {
    // the next steps work within lanes of 128 bits, so groups of four columns are spread over the lanes in that order
    const __m512i dealt = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t g = 0; g < n_groups; g++, weights += kGroupBytes * stride) {
        for (int p = 0; p < n_panels; p++) {
            __m512i row[4];
            BMX_UNROLL
            for (int i = 0; i < 4; i++) row[i] = _mm512_permutexvar_epi32(dealt, _mm512_loadu_si512(weights + i * stride + p * kPanelColumns));
            const __m512i a = _mm512_unpacklo_epi8(row[0], row[1]), b = _mm512_unpackhi_epi8(row[0], row[1]);
            const __m512i c = _mm512_unpacklo_epi8(row[2], row[3]), d = _mm512_unpackhi_epi8(row[2], row[3]);
            char * const out = to + p * panel_bytes(n_groups) + g * (kPanelColumns * kGroupBytes);
            _mm512_store_si512(out, _mm512_unpacklo_epi16(a, c));
            _mm512_store_si512(out + 64, _mm512_unpackhi_epi16(a, c));
            _mm512_store_si512(out + 128, _mm512_unpacklo_epi16(b, d));
            _mm512_store_si512(out + 192, _mm512_unpackhi_epi16(b, d));
        }
    }
}

// 2^x for x up to 126, minus infinity included, with a relative error of 3.2e-6: least squares of the relative error in
// Chebyshev's points. A byte has a relative error of 4e-3, and bfloat16 of 2e-3.
inline __m512 exp2(__m512 x) {
    const __m512 k = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, k);
    __m512 e = _mm512_set1_ps(9.6004e-3f);
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(5.591689e-2f));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(2.4023718e-1f));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(6.9312199e-1f));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(e, k);
}

// v / (1 + e^-v); the quotient by one Newton step from 14 bits, in a quarter of a division's time
inline __m512 silu(__m512 v) {
    const __m512 e = exp2(_mm512_min_ps(_mm512_mul_ps(v, _mm512_set1_ps(-1.44269504f)), _mm512_set1_ps(126.0f)));
    const __m512 below = _mm512_add_ps(e, _mm512_set1_ps(1.0f));
    const __m512 near = _mm512_rcp14_ps(below);
    // below, the result is 0 to any precision; NaN, as the second operand, stays
    v = _mm512_max_ps(_mm512_set1_ps(-1e4f), v);
    return _mm512_mul_ps(v, _mm512_mul_ps(near, _mm512_fnmadd_ps(near, below, _mm512_set1_ps(2.0f))));
}

template <bool with_silu, bool with_residual>
void finish_rows(const Finish & f) {
    for (int t = 0; t < f.n_tokens; t++) {
        for (int i = 0; i < f.n_columns; i += 16) {
            const __m512i sums = _mm512_load_si512(f.sums + t * f.sums_stride + i);
            const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_loadu_si512(f.offsets + i)));
            __m512 v = _mm512_fmadd_ps(whole, _mm512_loadu_ps(f.factors + i), _mm512_loadu_ps(f.bias + i));
            if (with_silu) v = silu(v);
            if (with_residual) v = _mm512_add_ps(v, _mm512_loadu_ps(f.residual + t * f.stride + i));
            _mm512_storeu_ps(f.y + t * f.stride + i, v);
        }
    }
}

void finish(const Finish & f) {
    if (f.silu) return f.residual ? finish_rows<true, true>(f) : finish_rows<true, false>(f);
    return f.residual ? finish_rows<false, true>(f) : finish_rows<false, false>(f);
}

// ---- products

struct Bytes {
    using Sum = __m512i;
    using Element = int32_t;
    static Sum zero() { return _mm512_setzero_si512(); }
    static Sum dot(Sum sum, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(sum, a, b); }
    static void store(int32_t * c, Sum sum) { _mm512_store_si512(c, sum); }
};

constexpr int kRowsAtOnce = 6;  // by 4 vectors of a panel: 24 sums, the 4 vectors and a broadcast, 29 of 32 registers

template <class Kind, int kVectors, int kRows>
void multiply_rows(const Product & p, int first, const char * panel, typename Kind::Element * c) {
    const char * a = p.a + first * p.a_stride;
    typename Kind::Sum sums[kRows][kVectors];
    BMX_UNROLL
    for (int t = 0; t < kRows; t++) {
        BMX_UNROLL
        for (int i = 0; i < kVectors; i++) sums[t][i] = Kind::zero();
    }
    for (int64_t g = 0; g < p.n_groups; g++, a += kGroupBytes, panel += kVectors * 64) {
        __m512i w[kVectors];
        BMX_UNROLL
        for (int i = 0; i < kVectors; i++) w[i] = _mm512_load_si512(panel + i * 64);
        BMX_UNROLL
        for (int t = 0; t < kRows; t++) {
            const __m512i x = S::broadcast(a + t * p.a_stride);
            BMX_UNROLL
            for (int i = 0; i < kVectors; i++) sums[t][i] = Kind::dot(sums[t][i], x, w[i]);
        }
    }
    BMX_UNROLL
    for (int t = 0; t < kRows; t++) {
        BMX_UNROLL
        for (int i = 0; i < kVectors; i++) Kind::store(c + (first + t) * p.c_stride + i * kLanes, sums[t][i]);
    }
}

template <class Kind, int kVectors>
void multiply_panel(const Product & p, const char * panel, typename Kind::Element * c) {
    const int64_t n_passes = int64_t(p.n_tokens / kRowsAtOnce) * (p.n_columns / kPanelColumns), n_fetch = n_passes ? (p.n_fetch + n_passes - 1) / n_passes : 0;
    int t = 0;
    for (; t + kRowsAtOnce <= p.n_tokens; t += kRowsAtOnce) {
        multiply_rows<Kind, kVectors, kRowsAtOnce>(p, t, panel, c);
        if (p.fetch) p.fetch->step(n_fetch);
    }
    switch (p.n_tokens - t) {
        case 1: return multiply_rows<Kind, kVectors, 1>(p, t, panel, c);
        case 2: return multiply_rows<Kind, kVectors, 2>(p, t, panel, c);
        case 3: return multiply_rows<Kind, kVectors, 3>(p, t, panel, c);
        case 4: return multiply_rows<Kind, kVectors, 4>(p, t, panel, c);
        case 5: return multiply_rows<Kind, kVectors, 5>(p, t, panel, c);
    }
}

template <class Kind>
void multiply(const Product & p) {
    auto * c = static_cast<typename Kind::Element *>(p.c);
    const char * panel = p.b;
    int left = p.n_columns;
    for (; left >= kPanelColumns; left -= kPanelColumns, c += kPanelColumns, panel += panel_bytes(p.n_groups)) multiply_panel<Kind, 4>(p, panel, c);
    // the remaining columns are a multiple of 32
    if (left) multiply_panel<Kind, 2>(p, panel, c);
}

}  // namespace
}  // namespace vision
}  // namespace bmx
