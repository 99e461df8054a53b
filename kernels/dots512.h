// A few tokens with vectors of 512 bits: 64 weights of a K-quant lie in memory as their activations do, half of them in the
// upper bits of the same bytes. Twice as many products an instruction as in dots.h, which matters from three tokens on.
#pragma once

#include "dots.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
namespace bmx {
namespace {

// Which of the scales each number of 16 bits is multiplied with: kEach of them with the same one.
template <int kEach>
inline __m512i places(int index) {
    alignas(64) int16_t at[32];
    for (int i = 0; i < 32; i++) at[i] = int16_t(index + i / kEach);
    return _mm512_load_si512(at);
}

inline __m512i halves_of(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }

// by how much bits of the lower and of the upper half are shifted
inline __m512i counts(int low, int high) { return halves_of(_mm256_set1_epi16(short(low)), _mm256_set1_epi16(short(high))); }

inline __m512i load_64(const void * p) { return _mm512_loadu_si512(p); }

template <int kTokens, bool kFifthBit>
void dot_with_minimums_512(const uint8_t * row, const Activations & x, float * out) {
    constexpr int kBytes = kFifthBit ? 176 : 144;
    const __m512i four = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
    const __m512i of_pair[4] = {places<16>(0), places<16>(2), places<16>(4), places<16>(6)};
    __m512 sum[kTokens];
    __m128 minimum[kTokens];
    for (int t = 0; t < kTokens; t++) {
        sum[t] = _mm512_setzero_ps();
        minimum[t] = _mm_setzero_ps();
    }
    for (int64_t b = 0; b < x.n_blocks(); b++, row += kBytes) {
        fetch_ahead_of<kBytes>(row);
        const int64_t at = b * x.n_tokens;
        const int8_t * values = x.values + at * kBlock;
        const __m256i both = scales_and_minimums(row + 4);
        const __m512i scales = _mm512_castsi256_si512(both);
        const __m256i high = kFifthBit ? load_bytes(row + 16) : _mm256_setzero_si256();
        const uint8_t * nibbles = row + (kFifthBit ? 48 : 16);
        __m512i block[kTokens];
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) block[t] = _mm512_setzero_si512();
        BMX_UNROLL
        for (int pair = 0; pair < 4; pair++) {
            const __m256i v = load_bytes(nibbles + pair * 32);
            __m512i w = _mm512_and_si512(halves_of(v, _mm256_srli_epi16(v, 4)), four);
            if (kFifthBit) {
                const __m512i bits = _mm512_srlv_epi16(halves_of(high, high), counts(2 * pair, 2 * pair + 1));
                w = _mm512_or_si512(w, _mm512_and_si512(_mm512_slli_epi16(bits, 4), fifth));
            }
            const __m512i scale = _mm512_permutexvar_epi16(of_pair[pair], scales);
            BMX_UNROLL
            for (int t = 0; t < kTokens; t++) {
                const __m512i products = _mm512_maddubs_epi16(w, load_64(values + t * kBlock + pair * 64));
                block[t] = _mm512_dpwssd_epi32(block[t], products, scale);
            }
        }
        const float scale = half(row), of_minimums = half(row + 2);
        const __m128i minimums = _mm256_extracti128_si256(both, 1);
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const float of_token = x.scales[at + t];
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(block[t]), _mm512_set1_ps(of_token * scale), sum[t]);
            const __m128i sums = _mm_loadu_si128(reinterpret_cast<const __m128i *>(x.sums32 + (at + t) * 8));
            const __m128i m = _mm_madd_epi16(minimums, sums);
            minimum[t] = _mm_fmadd_ps(_mm_cvtepi32_ps(m), _mm_set1_ps(of_token * of_minimums), minimum[t]);
        }
    }
    for (int t = 0; t < kTokens; t++)
        out[t] = _mm512_reduce_add_ps(_mm512_sub_ps(sum[t], _mm512_zextps128_ps512(minimum[t])));
}

template <int kTokens>
void dot_q6_k_512(const uint8_t * row, const Activations & x, float * out) {
    const __m512i four = _mm512_set1_epi8(15), two = _mm512_set1_epi8(48);
    const __m512i of_pair[4] = {places<8>(0), places<8>(4), places<8>(8), places<8>(12)};
    const __m512i left = counts(4, 2), right = counts(0, 2);
    __m512 sum[kTokens];
    for (int t = 0; t < kTokens; t++) sum[t] = _mm512_setzero_ps();
    for (int64_t b = 0; b < x.n_blocks(); b++, row += 210) {
        fetch_ahead_of<210>(row);
        const int64_t at = b * x.n_tokens;
        const int8_t * values = x.values + at * kBlock;
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + 192));
        const __m512i scales = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(packed));
        const __m512i wide = _mm512_cvtepi8_epi32(packed);
        __m512i block[kTokens];
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++)
            // what the bytes being 32 too large adds, taken off: sums16 holds -32 times the sums
            block[t] = _mm512_mullo_epi32(wide, load_64(x.sums16 + (at + t) * 16));
        BMX_UNROLL
        for (int h = 0; h < 2; h++) {
            const __m256i bits = load_bytes(row + 128 + h * 32);
            const __m512i v = load_64(row + h * 64), high = halves_of(bits, bits);
            BMX_UNROLL
            for (int upper = 0; upper < 2; upper++) {
                const __m512i nibbles = _mm512_and_si512(upper ? _mm512_srli_epi16(v, 4) : v, four);
                const __m512i shifted = upper ? _mm512_srlv_epi16(high, right) : _mm512_sllv_epi16(high, left);
                const __m512i q = _mm512_or_si512(nibbles, _mm512_and_si512(shifted, two));
                const __m512i scale = _mm512_permutexvar_epi16(of_pair[h * 2 + upper], scales);
                BMX_UNROLL
                for (int t = 0; t < kTokens; t++) {
                    const __m512i products = _mm512_maddubs_epi16(q, load_64(values + t * kBlock + h * 128 + upper * 64));
                    block[t] = _mm512_dpwssd_epi32(block[t], products, scale);
                }
            }
        }
        const float scale = half(row + 208);
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++)
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(block[t]), _mm512_set1_ps(x.scales[at + t] * scale), sum[t]);
    }
    for (int t = 0; t < kTokens; t++) out[t] = _mm512_reduce_add_ps(sum[t]);
}

// as D in dots.h; K-quants in vectors of 512 bits
struct Dots512Vnni {
    static __m256i add_pairs(__m256i sum, __m256i a, __m256i b) { return _mm256_dpwssd_epi32(sum, a, b); }
    static __m256i add_bytes(__m256i sum, __m256i u, __m256i s) { return _mm256_dpbusd_epi32(sum, u, s); }
};

template <int kTokens>
struct KQuantDots<Dots512Vnni, kTokens> {
    static void q4_k(const uint8_t * row, const Activations & x, float * out) { dot_with_minimums_512<kTokens, false>(row, x, out); }
    static void q5_k(const uint8_t * row, const Activations & x, float * out) { dot_with_minimums_512<kTokens, true>(row, x, out); }
    static void q6_k(const uint8_t * row, const Activations & x, float * out) { dot_q6_k_512<kTokens>(row, x, out); }
};

}  // namespace
}  // namespace bmx
#endif
