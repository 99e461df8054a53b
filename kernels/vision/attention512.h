// The steps of attention beside its products, over vectors of 512 bits with AVX512_BF16.
#pragma once

#include "linear512.h"

namespace bmx {
namespace vision {
namespace {

struct Halves {
    using Sum = __m512;
    using Element = float;
    static Sum zero() { return _mm512_setzero_ps(); }
    static Sum dot(Sum sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
    static void store(float * c, Sum sum) { _mm512_store_ps(c, sum); }
};

// the first n lanes, all from 16 on
inline __mmask16 first_lanes(int n) { return __mmask16(n >= 16 ? 0xffff : (1u << n) - 1); }

// 32 floats to bfloat16, ties to even
inline __m512i narrow32(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
inline __m256i narrow16(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }

void narrow(const float * x, size_t stride, int n_rows, int head_size, float factor, uint16_t * to, size_t to_stride) {
    const __m512 by = _mm512_set1_ps(factor);
    for (int r = 0; r < n_rows; r++) {
        for (int i = 0; i < head_size; i += 32) {
            const float * const from = x + r * stride + i;
            const __m512i both = narrow32(_mm512_mul_ps(_mm512_loadu_ps(from), by), _mm512_mul_ps(_mm512_loadu_ps(from + 16), by));
            _mm512_storeu_si512(to + r * to_stride + i, both);
        }
    }
}

// Sixteen vectors become their lanes: lane j of vector i becomes lane i of vector j.
inline void transpose(__m512i (&v)[16]) {
    __m512i a[16];
    BMX_UNROLL
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    BMX_UNROLL
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    BMX_UNROLL
    for (int half = 0; half < 16; half += 8) {
        BMX_UNROLL
        for (int i = 0; i < 4; i++) {
            a[half + i] = _mm512_shuffle_i32x4(v[half + i], v[half + 4 + i], 0x88);
            a[half + 4 + i] = _mm512_shuffle_i32x4(v[half + i], v[half + 4 + i], 0xdd);
        }
    }
    BMX_UNROLL
    for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0x88);
        v[8 + i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0xdd);
    }
}

void pack_keys(const float * x, size_t stride, int n_rows, int head_size, uint16_t * to) {
    const int n_columns = (n_rows + 31) / 32 * 32;
    for (int first = 0; first < n_columns; first += kLanes) {
        const int panel = first / kPanelColumns * kPanelColumns, width = std::min(kPanelColumns, n_columns - panel);
        uint16_t * const start = to + (panel * (head_size / 2) + first - panel) * 2;
        for (int i = 0; i < head_size; i += 32) {
            __m512i rows[16];
            BMX_UNROLL
            for (int r = 0; r < kLanes; r++) {
                const float * const from = x + (first + r) * stride + i;
                rows[r] = first + r < n_rows ? narrow32(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)) : _mm512_setzero_si512();
            }
            transpose(rows);
            BMX_UNROLL
            for (int g = 0; g < 16; g++) _mm512_store_si512(start + (i / 2 + g) * width * 2, rows[g]);
        }
    }
}

void pack_values(const float * x, size_t stride, int n_rows, int head_size, uint16_t * to) {
    const int n_groups = (n_rows + 31) / 32 * 16;
    const auto row = [&](int r, int i) { return r < n_rows ? narrow16(_mm512_loadu_ps(x + r * stride + i)) : _mm256_setzero_si256(); };
    for (int panel = 0; panel < head_size; panel += kPanelColumns) {
        const int end = std::min(head_size, panel + kPanelColumns);
        for (int g = 0; g < n_groups; g++) {
            for (int i = panel; i < end; i += kLanes, to += 2 * kLanes) {
                const __m512i low = _mm512_cvtepu16_epi32(row(2 * g, i)), high = _mm512_cvtepu16_epi32(row(2 * g + 1, i));
                _mm512_store_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
    }
}

void weigh(const Scores & s) {
    for (int q = 0; q < s.n_queries; q++) {
        const float * const scores = s.scores + q * s.stride;
        uint16_t * const weights = s.weights + q * s.weights_stride;
        __m512 most[2] = {_mm512_set1_ps(-INFINITY), _mm512_set1_ps(-INFINITY)};
        int i = 0;
        for (; i + 32 <= s.n_keys; i += 32) {
            most[0] = _mm512_max_ps(most[0], _mm512_load_ps(scores + i));
            most[1] = _mm512_max_ps(most[1], _mm512_load_ps(scores + i + 16));
        }
        for (; i < s.n_keys; i += 16) most[0] = _mm512_mask_max_ps(most[0], first_lanes(s.n_keys - i), most[0], _mm512_load_ps(scores + i));
        const __m512 high = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1])));
        // sums the rounded weights, since these are multiplied with the values
        const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
        __m512 sum = _mm512_setzero_ps();
        for (i = 0; i < s.n_keys; i += 32) {
            __m512 low = exp2(_mm512_sub_ps(_mm512_load_ps(scores + i), high)), up = exp2(_mm512_sub_ps(_mm512_load_ps(scores + i + 16), high));
            if (i + 32 > s.n_keys) {
                low = _mm512_maskz_mov_ps(first_lanes(s.n_keys - i), low);
                up = _mm512_maskz_mov_ps(first_lanes(std::max(0, s.n_keys - i - 16)), up);
            }
            const __m512i both = narrow32(low, up);
            _mm512_store_si512(weights + i, both);
            sum = _mm512_dpbf16_ps(sum, (__m512bh)both, ones);
        }
        s.sums[q] = _mm512_reduce_add_ps(sum);
    }
}

void divide(const float * x, size_t x_stride, const float * sums, int n_rows, int head_size, float * y, size_t stride) {
    for (int r = 0; r < n_rows; r++) {
        const __m512 inverse = _mm512_set1_ps(1.0f / sums[r]);
        for (int i = 0; i < head_size; i += 16) _mm512_storeu_ps(y + r * stride + i, _mm512_mul_ps(_mm512_load_ps(x + r * x_stride + i), inverse));
    }
}

}  // namespace
}  // namespace vision
}  // namespace bmx
