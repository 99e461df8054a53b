// One token and K-quants with AVX-512 VNNI, where only memory should take time: four rows of weights side by side, 16 bytes
// of each in one vector, as they lie in memory. One load of 16 activations serves all four rows, and a dot product of bytes
// adds four columns at a time. A block's sum is exact in int32; the result is bit-identical to strips.h and panel.h.
//
// In vectors of four rows, the first four lanes are the first row's, the next four the second's, ...
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "table.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
namespace bmx {
namespace {

constexpr int kQuad = 4;

struct Quad {
    const uint8_t * row[kQuad];
    const uint8_t * next;  // the first row after these
    size_t stride;

    // 16 bytes of each row
    __m512i load(size_t offset) const {
        const auto at = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(row[r] + offset)); };
        // inserting a load into 256 bits needs no shuffle, so only one shuffle is left
        const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(at(0)), at(1), 1);
        const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(at(2)), at(3), 1);
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }

    // four bytes of each row
    __m128i load_dwords(size_t offset) const {
        const auto at = [&](int r) {
            int v;
            memcpy(&v, row[r] + offset, 4);
            return v;
        };
        return _mm_setr_epi32(at(0), at(1), at(2), at(3));
    }

    void advance(size_t n_bytes) {
        for (const uint8_t *& r : row) r += n_bytes;
        next += n_bytes;
    }

    // Prefetches the same place of the next rows into the second-level cache: the first tracks too few lines in flight from
    // memory (on a Zen 4, 21 against 41 GB/s).
    template <int kBytes>
    void fetch() const {
        for (int r = 0; r < kQuad; r++)
            for (int i = 0; i < kBytes; i += 64) BMX_PREFETCH(reinterpret_cast<const char *>(next + r * stride + i));
    }
};

// Expands two half-precision floats of each row, from the 32 bits of its first lane, alternating over the row's lanes.
inline __m512 halves_of(__m512i head) {
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    const __m512 all = _mm512_castps256_ps512(_mm256_cvtph_ps(_mm512_castsi512_si128(_mm512_permutexvar_epi32(firsts, head))));
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7), all);
}

// The sums of each row's four lanes: of a in lanes 0 and 2, of b in lanes 1 and 3.
inline __m512i sums_of_rows(__m512i a, __m512i b) {
    const __m512i halves = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    return _mm512_add_epi32(halves, _mm512_shuffle_epi32(halves, _MM_PERM_ENUM(0x4e)));
}

inline __m512i sixteen_of(const void * activations) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i *>(activations)));
}

inline __m512i in_each_row(char a, char b, char c, char d) {
    // two bytes of a 16-bit number, four times; then those of a second one
    return _mm512_broadcast_i32x4(_mm_setr_epi8(a, b, a, b, a, b, a, b, c, d, c, d, c, d, c, d));
}

// The eight scales, then the eight minimums, of Q4_K and Q5_K, as bytes; `head` is the first 16 bytes of each row's block.
inline __m512i scales_and_minimums_of(__m512i head) {
    const auto each = [](int a, int b, int c, int d) { return _mm512_broadcast_i32x4(_mm_setr_epi32(a, b, c, d)); };
    const __m512i lower = _mm512_srlv_epi32(_mm512_shuffle_epi32(head, _MM_PERM_ENUM(0xed)), each(0, 0, 0, 4));
    const __m512i upper = _mm512_srli_epi32(_mm512_shuffle_epi32(head, _MM_PERM_ENUM(0xa5)), 2);
    return _mm512_or_si512(
        _mm512_and_si512(lower, each(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f)),
        _mm512_and_si512(upper, each(0, 0x30303030, 0, 0x30303030)));
}

// Two scales of each row, of the numbers a and b in the lower half of its bytes or 16-bit numbers, as 16-bit numbers.
inline __m512i two_of_bytes(__m512i bytes, int a, int b) {
    return _mm512_shuffle_epi8(bytes, in_each_row(char(a), char(0x80), char(b), char(0x80)));
}

inline __m512i two_of_words(__m512i words, int a, int b) {
    return _mm512_shuffle_epi8(words, in_each_row(char(2 * a), char(2 * a + 1), char(2 * b), char(2 * b + 1)));
}

// Adds the sums over two blocks of bytes, times their scales.
inline __m512i add_scaled(__m512i block, __m512i first, __m512i second, __m512i scales) {
    // a lane holds at most 8 products of 31 * 127, or 4 of 63 * 127, which fit 16 bits
    return _mm512_dpwssd_epi32(block, _mm512_packs_epi32(first, second), scales);
}

// ---- Q4_K, Q5_K

// 64 columns: the lower halves of 32 bytes are the first 32 columns, the upper halves the others.
template <bool kFifthBit, int kPair>
inline __m512i pair_of_nibbles(const Quad & quad, const int8_t * x, const __m512i * fifth, __m512i scales, __m512i block) {
    const __m512i four = _mm512_set1_epi8(15), bit = _mm512_set1_epi8(16);
    __m512i low[2], high[2];
    BMX_UNROLL
    for (int i = 0; i < 2; i++) {
        const __m512i v = quad.load((kFifthBit ? 48 : 16) + kPair * 32 + i * 16);
        low[i] = _mm512_and_si512(v, four);
        high[i] = _mm512_and_si512(_mm512_srli_epi16(v, 4), four);
        if (kFifthBit) {
            // bit s of a byte belongs to block s: it goes to bit 4
            constexpr int s = 2 * kPair;
            const __m512i of_low = s < 4 ? _mm512_slli_epi16(fifth[i], s < 4 ? 4 - s : 0) : _mm512_srli_epi16(fifth[i], s < 4 ? 0 : s - 4);
            const __m512i of_high = s < 3 ? _mm512_slli_epi16(fifth[i], s < 3 ? 3 - s : 0) : _mm512_srli_epi16(fifth[i], s < 3 ? 0 : s - 3);
            low[i] = _mm512_or_si512(low[i], _mm512_and_si512(of_low, bit));
            high[i] = _mm512_or_si512(high[i], _mm512_and_si512(of_high, bit));
        }
    }
    x += kPair * 64;
    __m512i a = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low[0], sixteen_of(x));
    __m512i b = _mm512_dpbusd_epi32(_mm512_setzero_si512(), high[0], sixteen_of(x + 32));
    a = _mm512_dpbusd_epi32(a, low[1], sixteen_of(x + 16));
    b = _mm512_dpbusd_epi32(b, high[1], sixteen_of(x + 48));
    return add_scaled(block, a, b, two_of_bytes(scales, 2 * kPair, 2 * kPair + 1));
}

template <bool kFifthBit>
__m512 quad_with_minimums(Quad quad, const Activations & x) {
    constexpr int kBytes = kFifthBit ? 176 : 144;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t b = 0; b < x.n_blocks(); b++, quad.advance(kBytes)) {
        quad.fetch<kBytes>();
        const int8_t * values = x.values + b * kBlock;
        const __m512i head = quad.load(0), scales = scales_and_minimums_of(head);
        __m512i fifth[2] = {}, block = _mm512_setzero_si512();
        if (kFifthBit)
            for (int i = 0; i < 2; i++) fifth[i] = quad.load(16 + i * 16);
        block = pair_of_nibbles<kFifthBit, 0>(quad, values, fifth, scales, block);
        block = pair_of_nibbles<kFifthBit, 1>(quad, values, fifth, scales, block);
        block = pair_of_nibbles<kFifthBit, 2>(quad, values, fifth, scales, block);
        block = pair_of_nibbles<kFifthBit, 3>(quad, values, fifth, scales, block);
        const __m512i minimums = _mm512_unpackhi_epi8(scales, _mm512_setzero_si512());
        const __m512i m = _mm512_madd_epi16(minimums, sixteen_of(x.sums32 + b * 8));
        // alternating: the sum with its scale, the minimums' sum with theirs
        const __m512 sums = _mm512_cvtepi32_ps(sums_of_rows(block, m)), halves = halves_of(head);
        const __m512 of_minimums = _mm512_permute_ps(halves, 0xb1);
        const __m512 value = _mm512_fnmadd_ps(_mm512_permute_ps(sums, 0xb1), of_minimums, _mm512_mul_ps(sums, halves));
        sum = _mm512_fmadd_ps(value, _mm512_set1_ps(x.scales[b]), sum);
    }
    return sum;
}

// ---- Q6_K

// A half of a block, 128 columns, and of each 32 of them the first or second 16.
template <int kHalf, int kPart>
inline __m512i eighth_of_q6_k(const Quad & quad, const int8_t * values, __m512i scales, __m512i block) {
    const __m512i four = _mm512_set1_epi8(15), two = _mm512_set1_epi8(48);
    const __m512i v[2] = {quad.load(kHalf * 64 + kPart * 16), quad.load(kHalf * 64 + 32 + kPart * 16)};
    const __m512i high = quad.load(128 + kHalf * 32 + kPart * 16);
    const __m512i bits[4] = {_mm512_slli_epi16(high, 4), _mm512_slli_epi16(high, 2), high, _mm512_srli_epi16(high, 2)};
    BMX_UNROLL
    for (int upper = 0; upper < 2; upper++) {
        __m512i q[2];
        BMX_UNROLL
        for (int i = 0; i < 2; i++) {
            const __m512i nibbles = _mm512_and_si512(upper ? _mm512_srli_epi16(v[i], 4) : v[i], four);
            q[i] = _mm512_or_si512(nibbles, _mm512_and_si512(bits[upper * 2 + i], two));
        }
        const int8_t * x = values + kHalf * 128 + upper * 64 + kPart * 16;
        const __m512i a = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[0], sixteen_of(x));
        const __m512i b = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[1], sixteen_of(x + 32));
        block = add_scaled(block, a, b, two_of_words(scales, kPart + upper * 4, kPart + upper * 4 + 2));
    }
    return block;
}

inline __m512 quad_q6_k(Quad quad, const Activations & x) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t b = 0; b < x.n_blocks(); b++, quad.advance(210)) {
        quad.fetch<210>();
        const int8_t * values = x.values + b * kBlock;
        const __m512i zero = _mm512_setzero_si512(), packed = quad.load(192);
        const __m512i scales[2] = {
            _mm512_srai_epi16(_mm512_unpacklo_epi8(zero, packed), 8), _mm512_srai_epi16(_mm512_unpackhi_epi8(zero, packed), 8)};
        // the bytes are 32 too large; this removes their contribution, as sums16 holds -32 times the sums
        const __m512i wide = _mm512_srai_epi32(_mm512_loadu_si512(x.sums16 + b * 16), 5);
        const __m512i sums = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(wide));
        const __m512i of_first = _mm512_madd_epi16(scales[0], _mm512_shuffle_i32x4(sums, sums, 0));
        __m512i block = _mm512_slli_epi32(_mm512_dpwssd_epi32(of_first, scales[1], _mm512_shuffle_i32x4(sums, sums, 0x55)), 5);
        block = eighth_of_q6_k<0, 0>(quad, values, scales[0], block);
        block = eighth_of_q6_k<0, 1>(quad, values, scales[0], block);
        block = eighth_of_q6_k<1, 0>(quad, values, scales[1], block);
        block = eighth_of_q6_k<1, 1>(quad, values, scales[1], block);
        // the scale is the last two of these bytes
        const __m512i last = _mm512_zextsi128_si512(quad.load_dwords(206));
        const __m512i spread = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 4, 4, 1, 4, 4, 4, 2, 4, 4, 4, 3, 4, 4, 4), last);
        const __m512 halves = _mm512_permute_ps(halves_of(spread), 0xf5);
        const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums_of_rows(block, block)), halves);
        sum = _mm512_fmadd_ps(value, _mm512_set1_ps(x.scales[b]), sum);
    }
    return sum;
}

// ---- all rows of a panel

// y[r]
inline void quads(const Rows & rows, const Activations & x, float * y) {
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    for (int first = 0; first < rows.n_rows; first += kQuad) {
        const char * const data = rows.data + first * rows.stride;
        const bool last = first + kQuad >= rows.n_rows;
        Quad quad;
        // missing rows repeat the last one; their results go to unused places
        for (int r = 0; r < kQuad; r++)
            quad.row[r] = reinterpret_cast<const uint8_t *>(data + std::min(r, rows.n_rows - 1 - first) * rows.stride);
        quad.next = reinterpret_cast<const uint8_t *>(last && rows.after ? rows.after : data + kQuad * rows.stride);
        quad.stride = rows.stride;
        const __m512 sum = rows.weight == Weight::q6_k   ? quad_q6_k(quad, x)
                           : rows.weight == Weight::q5_k ? quad_with_minimums<true>(quad, x)
                                                         : quad_with_minimums<false>(quad, x);
        _mm_storeu_ps(y + first, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, sum)));
    }
}

}  // namespace
}  // namespace bmx
#endif
