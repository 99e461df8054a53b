// A few tokens with AVX2: each row of weights is multiplied in place, in the order of memory. Such products wait for memory,
// not for arithmetic, so vectors of 256 bits suffice (but see quads512.h). `D` adds up pairs of products:
//
//   D::add_pairs(sum, a, b)   eight sums of two products of 16-bit numbers
//   D::add_bytes(sum, u, s)   eight sums of four products of an unsigned and a signed byte that fit 16 bits in pairs
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstring>

#include "table.h"

namespace bmx {
namespace {

constexpr int64_t kMostDots = 4;  // from five on, unpacking into panels is faster; at four, rows are 8 % to 25 % faster
constexpr ptrdiff_t kAheadBytes = 8192;

inline __m256i load_bytes(const void * p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }

inline float half(const void * p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    return _cvtsh_ss(bits);
}

inline float sum_of(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Prefetches weights of a few rows later, `ahead` bytes on: the processor's own prefetcher stops at the end of each 4 KB
// page. It fetches into the second-level cache, since the first tracks too few lines in flight from memory.
template <int kBytes>
inline void fetch_ahead_of(const uint8_t * row, ptrdiff_t ahead) {
    for (int i = 0; i < kBytes; i += 64) BMX_PREFETCH(reinterpret_cast<const char *>(row + ahead + i));
}

// The eight scales, then the eight minimums, of Q4_K and Q5_K, as 16-bit numbers.
inline __m256i scales_and_minimums(const uint8_t * packed) {
    uint32_t s[3];
    memcpy(s, packed, 12);
    const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x03030303;
    const __m128i bytes = _mm_set_epi32(
        int((s[2] >> 4 & four) | (s[1] >> 6 & two) << 4), int(s[1] & six), int((s[2] & four) | (s[0] >> 6 & two) << 4), int(s[0] & six));
    return _mm256_cvtepu8_epi16(bytes);
}

inline __m256i repeated(__m256i scales, int index) {
    return _mm256_shuffle_epi8(scales, _mm256_set1_epi16(short(2 * index | (2 * index + 1) << 8)));
}

// y[m * panel_rows + r], as for a panel, for at most kMostDots tokens
template <class Format>
void row_by_row(const Rows & rows, const Activations & x, float * y, int panel_rows) {
    const char * const end = rows.data + rows.n_rows * rows.stride;
    for (int r = 0; r < rows.n_rows; r++) {
        const char * const start = rows.data + r * rows.stride;
        const ptrdiff_t ahead = kAheadBytes + (rows.after && start + kAheadBytes >= end ? rows.after - end : 0);
        const uint8_t * const row = reinterpret_cast<const uint8_t *>(start);
        float out[kMostDots];
        switch (x.n_tokens) {
            case 1: Format::template dot<1>(rows.weight, row, ahead, x, out); break;
            case 2: Format::template dot<2>(rows.weight, row, ahead, x, out); break;
            case 3: Format::template dot<3>(rows.weight, row, ahead, x, out); break;
            default: Format::template dot<4>(rows.weight, row, ahead, x, out);
        }
        for (int64_t m = 0; m < x.n_tokens; m++) y[m * panel_rows + r] = out[m];
    }
}

// Each of the following writes the products of one row with kTokens tokens to `out`.

template <class D, int kTokens, bool kFifthBit>
void dot_with_minimums(const uint8_t * row, ptrdiff_t ahead, const Activations & x, float * out) {
    constexpr int kBytes = kFifthBit ? 176 : 144;
    const __m256i four = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16);
    __m256 sum[kTokens];
    __m128 minimum[kTokens];
    for (int t = 0; t < kTokens; t++) {
        sum[t] = _mm256_setzero_ps();
        minimum[t] = _mm_setzero_ps();
    }
    for (int64_t b = 0; b < x.n_blocks(); b++, row += kBytes) {
        fetch_ahead_of<kBytes>(row, ahead);
        const int64_t at = b * x.n_tokens;
        const int8_t * values = x.values + at * kBlock;
        const __m256i both = scales_and_minimums(row + 4);
        const __m256i scales = _mm256_permute4x64_epi64(both, 0x44);
        const __m256i high = kFifthBit ? load_bytes(row + 16) : _mm256_setzero_si256();
        const uint8_t * nibbles = row + (kFifthBit ? 48 : 16);
        __m256i block[kTokens];
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) block[t] = _mm256_setzero_si256();
        BMX_UNROLL
        for (int pair = 0; pair < 4; pair++) {
            const __m256i v = load_bytes(nibbles + pair * 32);
            __m256i low = _mm256_and_si256(v, four), upper = _mm256_and_si256(_mm256_srli_epi16(v, 4), four);
            if (kFifthBit) {
                const __m256i bits = _mm256_srl_epi16(high, _mm_cvtsi32_si128(2 * pair));
                low = _mm256_or_si256(low, _mm256_and_si256(_mm256_slli_epi16(bits, 4), fifth));
                upper = _mm256_or_si256(upper, _mm256_and_si256(_mm256_slli_epi16(bits, 3), fifth));
            }
            const __m256i first_scale = repeated(scales, 2 * pair), second_scale = repeated(scales, 2 * pair + 1);
            BMX_UNROLL
            for (int t = 0; t < kTokens; t++) {
                const int8_t * of_token = values + t * kBlock + pair * 64;
                block[t] = D::add_pairs(block[t], _mm256_maddubs_epi16(low, load_bytes(of_token)), first_scale);
                block[t] = D::add_pairs(block[t], _mm256_maddubs_epi16(upper, load_bytes(of_token + 32)), second_scale);
            }
        }
        const float scale = half(row), of_minimums = half(row + 2);
        const __m128i minimums = _mm256_extracti128_si256(both, 1);
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const float of_token = x.scales[at + t];
            sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(block[t]), _mm256_set1_ps(of_token * scale), sum[t]);
            const __m128i sums = _mm_loadu_si128(reinterpret_cast<const __m128i *>(x.sums32 + (at + t) * 8));
            const __m128i m = _mm_madd_epi16(minimums, sums);
            minimum[t] = _mm_fmadd_ps(_mm_cvtepi32_ps(m), _mm_set1_ps(of_token * of_minimums), minimum[t]);
        }
    }
    for (int t = 0; t < kTokens; t++) out[t] = sum_of(_mm256_sub_ps(sum[t], _mm256_zextps128_ps256(minimum[t])));
}

template <class D, int kTokens>
void dot_q6_k(const uint8_t * row, ptrdiff_t ahead, const Activations & x, float * out) {
    const __m256i four = _mm256_set1_epi8(15), two = _mm256_set1_epi8(48);
    __m256 sum[kTokens];
    for (int t = 0; t < kTokens; t++) sum[t] = _mm256_setzero_ps();
    for (int64_t b = 0; b < x.n_blocks(); b++, row += 210) {
        fetch_ahead_of<210>(row, ahead);
        const int64_t at = b * x.n_tokens;
        const int8_t * values = x.values + at * kBlock;
        const __m128i scales = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + 192));
        const __m256i first = _mm256_cvtepi8_epi32(scales), second = _mm256_cvtepi8_epi32(_mm_srli_si128(scales, 8));
        __m256i block[kTokens];
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) {
            // the bytes are 32 too large; this removes their contribution, as sums16 holds -32 times the sums
            const int32_t * sums = x.sums16 + (at + t) * 16;
            block[t] = _mm256_add_epi32(
                _mm256_mullo_epi32(first, load_bytes(sums)), _mm256_mullo_epi32(second, load_bytes(sums + 8)));
        }
        BMX_UNROLL
        for (int h = 0; h < 2; h++) {
            const __m256i high = load_bytes(row + 128 + h * 32);
            const __m256i v[2] = {load_bytes(row + h * 64), load_bytes(row + h * 64 + 32)};
            BMX_UNROLL
            for (int quarter = 0; quarter < 4; quarter++) {
                const __m256i nibbles = quarter < 2 ? v[quarter] : _mm256_srli_epi16(v[quarter - 2], 4);
                const __m256i bits = quarter == 0   ? _mm256_slli_epi16(high, 4)
                                     : quarter == 1 ? _mm256_slli_epi16(high, 2)
                                     : quarter == 2 ? high
                                                    : _mm256_srli_epi16(high, 2);
                const __m256i q = _mm256_or_si256(_mm256_and_si256(nibbles, four), _mm256_and_si256(bits, two));
                const int index = h * 8 + quarter * 2;
                const __m128i places = _mm_set_epi64x(0x0101010101010101 * (index + 1), 0x0101010101010101 * index);
                const __m256i scale = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, places));
                BMX_UNROLL
                for (int t = 0; t < kTokens; t++) {
                    const __m256i x32 = load_bytes(values + t * kBlock + h * 128 + quarter * 32);
                    block[t] = D::add_pairs(block[t], _mm256_maddubs_epi16(q, x32), scale);
                }
            }
        }
        const float scale = half(row + 208);
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++)
            sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(block[t]), _mm256_set1_ps(x.scales[at + t] * scale), sum[t]);
    }
    for (int t = 0; t < kTokens; t++) out[t] = sum_of(sum[t]);
}

// Signed bytes in blocks of 32, each with a scale on both sides
template <class D, int kTokens, Weight kWeight>
void dot_of_32(const uint8_t * row, ptrdiff_t ahead, const Activations & x, float * out) {
    constexpr int kBytes = kWeight == Weight::q8_0 ? 34 : 18;
    __m256 sum[kTokens];
    for (int t = 0; t < kTokens; t++) sum[t] = _mm256_setzero_ps();
    for (int64_t b = 0; b < x.n_columns / 32; b++, row += kBytes) {
        fetch_ahead_of<kBytes>(row, ahead);
        const int64_t at = b / 8 * x.n_tokens;
        __m256i q;
        if (kWeight == Weight::q8_0) {
            q = load_bytes(row + 2);
        } else {
            const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + 2));
            q = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
            q = _mm256_sub_epi8(q, _mm256_set1_epi8(8));
        }
        const __m256i size = _mm256_abs_epi8(q);
        const float scale = half(row);
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const __m256i values = load_bytes(x.values + (at + t) * kBlock + b % 8 * 32);
            const __m256i block = D::add_bytes(_mm256_setzero_si256(), size, _mm256_sign_epi8(values, q));
            const __m256 both = _mm256_set1_ps(scale * x.scales[(at + t) * 8 + b % 8]);
            sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(block), both, sum[t]);
        }
    }
    for (int t = 0; t < kTokens; t++) out[t] = sum_of(sum[t]);
}

template <int kTokens>
void dot_f16(const uint8_t * row, const float * x, int64_t n, float * out) {
    __m256 sum[kTokens][2];
    for (int t = 0; t < kTokens; t++) sum[t][0] = sum[t][1] = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        BMX_UNROLL
        for (int j = 0; j < 2; j++) {
            const __m256 w = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(row + 2 * i) + j));
            BMX_UNROLL
            for (int t = 0; t < kTokens; t++)
                sum[t][j] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x + t * n + i + j * 8), sum[t][j]);
        }
    }
    for (int t = 0; t < kTokens; t++) out[t] = sum_of(_mm256_add_ps(sum[t][0], sum[t][1]));
}

// As `Few` in panel.h for F16 weights
struct F16Dots {
    template <int kTokens>
    static void dot(Weight, const uint8_t * row, ptrdiff_t, const Activations & x, float * out) {
        dot_f16<kTokens>(row, x.floats, x.n_columns, out);
    }
};

// ... and for all other types, with `D` as described above
template <class D>
struct Dots {
    static constexpr int64_t most(Weight) { return kMostDots; }
    static void multiply(const Rows & rows, const Activations & x, float * y, int panel_rows, char *) { row_by_row<Dots>(rows, x, y, panel_rows); }

    template <int kTokens>
    static void dot(Weight weight, const uint8_t * row, ptrdiff_t ahead, const Activations & x, float * out) {
        switch (weight) {
            case Weight::f16: return dot_f16<kTokens>(row, x.floats, x.n_columns, out);
            case Weight::q4_k: return dot_with_minimums<D, kTokens, false>(row, ahead, x, out);
            case Weight::q5_k: return dot_with_minimums<D, kTokens, true>(row, ahead, x, out);
            case Weight::q6_k: return dot_q6_k<D, kTokens>(row, ahead, x, out);
            case Weight::q8_0: return dot_of_32<D, kTokens, Weight::q8_0>(row, ahead, x, out);
            default: return dot_of_32<D, kTokens, Weight::q4_0>(row, ahead, x, out);
        }
    }
};

}  // namespace
}  // namespace bmx
