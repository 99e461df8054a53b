// One or two tokens: each row of weights is multiplied where it lies, in the order in which memory holds it. Such products
// wait for memory, not for arithmetic, so vectors of 256 bits serve every instruction set; `D` adds up pairs of products:
//
//   D::add_pairs(sum, a, b)   eight sums of two products of 16-bit numbers
//   D::add_bytes(sum, u, s)   eight sums of four products of an unsigned and a signed byte that fit 16 bits in pairs
#pragma once

#include <immintrin.h>

#include <cstring>

#include "table.h"

namespace bmx {
namespace {

constexpr int64_t kMostDots = 2;
constexpr int kAheadBytes = 4096;

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

// Fetches what will be read a few rows later: the processor's own prefetcher stops at the end of every 4 KB page.
template <int kBytes>
inline void fetch_ahead_of(const uint8_t * row) {
    for (int i = 0; i < kBytes; i += 64) _mm_prefetch(reinterpret_cast<const char *>(row + kAheadBytes + i), _MM_HINT_T0);
}

// Rounded activations of one token: block b is `step` further than the one before it.
struct Token {
    const int8_t * values;
    const float * scales;
    const int32_t * sums16;
    const int16_t * sums32;
    int64_t step;
};

inline Token token_of(const Activations & x, int64_t m) {
    const int64_t scales = x.rounding == Rounding::per_32 ? 8 : 1;
    return {x.values + m * kBlock, x.scales + m * scales, x.sums16 + m * 16, x.sums32 + m * 8, x.n_tokens};
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

template <class D, bool kFifthBit>
float dot_with_minimums(const uint8_t * row, Token x, int64_t n_blocks) {
    constexpr int kBytes = kFifthBit ? 176 : 144;
    const __m256i four = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16);
    __m256 sum = _mm256_setzero_ps();
    __m128 minimum = _mm_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++, row += kBytes) {
        fetch_ahead_of<kBytes>(row);
        const int64_t at = b * x.step;
        const int8_t * values = x.values + at * kBlock;
        const __m256i both = scales_and_minimums(row + 4);
        const __m256i scales = _mm256_permute4x64_epi64(both, 0x44);
        const __m256i high = kFifthBit ? load_bytes(row + 16) : _mm256_setzero_si256();
        const uint8_t * nibbles = row + (kFifthBit ? 48 : 16);
        __m256i block = _mm256_setzero_si256();
        for (int pair = 0; pair < 4; pair++) {
            const __m256i v = load_bytes(nibbles + pair * 32);
            __m256i low = _mm256_and_si256(v, four), upper = _mm256_and_si256(_mm256_srli_epi16(v, 4), four);
            if (kFifthBit) {
                const __m256i bits = _mm256_srl_epi16(high, _mm_cvtsi32_si128(2 * pair));
                low = _mm256_or_si256(low, _mm256_and_si256(_mm256_slli_epi16(bits, 4), fifth));
                upper = _mm256_or_si256(upper, _mm256_and_si256(_mm256_slli_epi16(bits, 3), fifth));
            }
            const __m256i first = _mm256_maddubs_epi16(low, load_bytes(values + pair * 64));
            const __m256i second = _mm256_maddubs_epi16(upper, load_bytes(values + pair * 64 + 32));
            block = D::add_pairs(block, first, repeated(scales, 2 * pair));
            block = D::add_pairs(block, second, repeated(scales, 2 * pair + 1));
        }
        const float scale = x.scales[at];
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(block), _mm256_set1_ps(scale * half(row)), sum);
        const __m128i sums = _mm_loadu_si128(reinterpret_cast<const __m128i *>(x.sums32 + at * 8));
        const __m128i m = _mm_madd_epi16(_mm256_extracti128_si256(both, 1), sums);
        minimum = _mm_fmadd_ps(_mm_cvtepi32_ps(m), _mm_set1_ps(scale * half(row + 2)), minimum);
    }
    return sum_of(_mm256_sub_ps(sum, _mm256_zextps128_ps256(minimum)));
}

template <class D>
float dot_q6_k(const uint8_t * row, Token x, int64_t n_blocks) {
    const __m256i four = _mm256_set1_epi8(15), two = _mm256_set1_epi8(48);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++, row += 210) {
        fetch_ahead_of<210>(row);
        const int64_t at = b * x.step;
        const int8_t * values = x.values + at * kBlock;
        const __m128i scales = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + 192));
        // what the bytes being 32 too large adds, taken off: sums16 holds -32 times the sums
        const __m256i first = load_bytes(x.sums16 + at * 16), second = load_bytes(x.sums16 + at * 16 + 8);
        __m256i block = _mm256_mullo_epi32(_mm256_cvtepi8_epi32(scales), first);
        block = _mm256_add_epi32(block, _mm256_mullo_epi32(_mm256_cvtepi8_epi32(_mm_srli_si128(scales, 8)), second));
        for (int h = 0; h < 2; h++) {
            const __m256i high = load_bytes(row + 128 + h * 32);
            const __m256i v[2] = {load_bytes(row + h * 64), load_bytes(row + h * 64 + 32)};
            for (int quarter = 0; quarter < 4; quarter++) {
                const __m256i nibbles = quarter < 2 ? v[quarter] : _mm256_srli_epi16(v[quarter - 2], 4);
                const __m256i bits = quarter == 0   ? _mm256_slli_epi16(high, 4)
                                     : quarter == 1 ? _mm256_slli_epi16(high, 2)
                                     : quarter == 2 ? high
                                                    : _mm256_srli_epi16(high, 2);
                const __m256i q = _mm256_or_si256(_mm256_and_si256(nibbles, four), _mm256_and_si256(bits, two));
                const __m256i pairs = _mm256_maddubs_epi16(q, load_bytes(values + h * 128 + quarter * 32));
                const int index = h * 8 + quarter * 2;
                const __m128i places = _mm_set_epi64x(0x0101010101010101 * (index + 1), 0x0101010101010101 * index);
                block = D::add_pairs(block, pairs, _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, places)));
            }
        }
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(block), _mm256_set1_ps(x.scales[at] * half(row + 208)), sum);
    }
    return sum_of(sum);
}

// Signed bytes in blocks of 32, each with a scale on both sides
template <class D, Weight kWeight>
float dot_of_32(const uint8_t * row, Token x, int64_t n_blocks) {
    constexpr int kBytes = kWeight == Weight::q8_0 ? 34 : 18;
    __m256 sum = _mm256_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++, row += kBytes) {
        const int64_t at = b / 8 * x.step;
        __m256i q;
        if (kWeight == Weight::q8_0) {
            q = load_bytes(row + 2);
        } else {
            const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + 2));
            q = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
            q = _mm256_sub_epi8(q, _mm256_set1_epi8(8));
        }
        const __m256i values = load_bytes(x.values + at * kBlock + b % 8 * 32);
        const __m256i block = D::add_bytes(_mm256_setzero_si256(), _mm256_abs_epi8(q), _mm256_sign_epi8(values, q));
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(block), _mm256_set1_ps(half(row) * x.scales[at * 8 + b % 8]), sum);
    }
    return sum_of(sum);
}

inline float dot_f16(const uint8_t * row, const float * x, int64_t n) {
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t i = 0; i < n; i += 32)
        for (int j = 0; j < 4; j++) {
            const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + 2 * i) + j);
            sum[j] = _mm256_fmadd_ps(_mm256_cvtph_ps(halves), _mm256_loadu_ps(x + i + j * 8), sum[j]);
        }
    return sum_of(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

template <class D>
float dot(Weight weight, const uint8_t * row, const Activations & x, int64_t m) {
    switch (weight) {
        case Weight::q4_k: return dot_with_minimums<D, false>(row, token_of(x, m), x.n_blocks());
        case Weight::q5_k: return dot_with_minimums<D, true>(row, token_of(x, m), x.n_blocks());
        case Weight::q6_k: return dot_q6_k<D>(row, token_of(x, m), x.n_blocks());
        case Weight::q8_0: return dot_of_32<D, Weight::q8_0>(row, token_of(x, m), x.n_columns / 32);
        case Weight::q4_0: return dot_of_32<D, Weight::q4_0>(row, token_of(x, m), x.n_columns / 32);
        case Weight::f16: break;
    }
    return dot_f16(row, x.floats + m * x.n_columns, x.n_columns);
}

// y[m * n_high + r], as a panel's.
template <class D>
void dots(const Rows & rows, const Activations & x, float * y, int panel_rows) {
    for (int r = 0; r < rows.n_rows; r++) {
        const uint8_t * row = reinterpret_cast<const uint8_t *>(rows.data) + r * rows.stride;
        for (int64_t m = 0; m < x.n_tokens; m++) y[m * panel_rows + r] = dot<D>(rows.weight, row, x, m);
    }
}

}  // namespace
}  // namespace bmx
