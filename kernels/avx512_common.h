// Vectors of sixteen lanes with AVX-512 and VNNI, for the files of the instruction sets that have them.
#pragma once

#include <immintrin.h>

#include "attend.h"
#include "elementwise.h"
#include "strips.h"
#include "panel.h"
#include "peak.h"
#include "quads512.h"

namespace bmx {
namespace {

struct Few512;

struct Avx512Vnni {
    using Few = Few512;
    using I = __m512i;
    using F = __m512;
    static constexpr int kLanes = 16, kHigh = 2;
    static constexpr int kWide = 6;  // 12 sums of bytes, 12 of blocks; two weights and a broadcast: 27 of 32 registers
    static constexpr bool kSignedBytes = false;
    template <Sum>
    static constexpr int fold() { return 0; }

    static I load(const void * p) { return _mm512_load_si512(p); }
    static void store(void * p, I v) { _mm512_store_si512(p, v); }
    static F loadf(const float * p) { return _mm512_loadu_ps(p); }
    static void storef(float * p, F v) { _mm512_storeu_ps(p, v); }
    static I zero() { return _mm512_setzero_si512(); }
    static F zerof() { return _mm512_setzero_ps(); }
    static I set1(int v) { return _mm512_set1_epi32(v); }
    static F set1f(float v) { return _mm512_set1_ps(v); }
    static I broadcast(const void * p) {
        int v;
        memcpy(&v, p, 4);
        return _mm512_set1_epi32(v);
    }
    static F broadcastf(const float * p) { return _mm512_set1_ps(*p); }
    static I and_(I a, I b) { return _mm512_and_si512(a, b); }
    static I or_(I a, I b) { return _mm512_or_si512(a, b); }
    static I xor_(I a, I b) { return _mm512_xor_si512(a, b); }
    template <int n>
    static I srl(I v) { return _mm512_srli_epi32(v, n); }
    template <int n>
    static I sll(I v) { return _mm512_slli_epi32(v, n); }
    template <int n>
    static I sra(I v) { return _mm512_srai_epi32(v, n); }
    static I srl_by(I v, int n) { return _mm512_srl_epi32(v, _mm_cvtsi32_si128(n)); }
    static I sll_by(I v, int n) { return _mm512_sll_epi32(v, _mm_cvtsi32_si128(n)); }
    static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
    static I to_int(F v) { return _mm512_cvtps_epi32(v); }
    static F as_float(I v) { return _mm512_castsi512_ps(v); }
    static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
    static I mul_int(I a, I b) { return _mm512_mullo_epi32(a, b); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static float reduce_add(F v) { return _mm512_reduce_add_ps(v); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
    static F minf(F a, F b) { return _mm512_min_ps(a, b); }
    static F maxf(F a, F b) { return _mm512_max_ps(a, b); }
    static float reduce_min(F v) { return _mm512_reduce_min_ps(v); }
    static float reduce_max(F v) { return _mm512_reduce_max_ps(v); }
    static F low_halves(I v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
    static F high_halves(I v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(srl<16>(v))); }
    static F load_halves(const uint16_t * p) { return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i *>(p))); }
    static I dot(I sum, I bytes, I signed_bytes) { return _mm512_dpbusd_epi32(sum, bytes, signed_bytes); }
    static I dot16(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }

    // 16 bytes of each row become four vectors: the first four bytes of all rows, the next four, ...
    static void load4(const char * row, size_t stride, size_t offset, I * out) {
        row += offset;
        BMX_OPAQUE(stride);
        const char * const fours[4] = {row, row + 4 * stride, row + 8 * stride, row + 12 * stride};
        I v[4];
        BMX_UNROLL
        for (int i = 0; i < 4; i++) {
            const auto at = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(fours[r] + i * stride)); };
            // inserting a load needs no shuffle and less time than merging it (Zen 4: 0.57 cycles against 0.87)
            I one = _mm512_inserti32x4(_mm512_castsi128_si512(at(0)), at(1), 1);
            one = _mm512_inserti32x4(one, at(2), 2);
            v[i] = _mm512_inserti32x4(one, at(3), 3);
        }
        const I a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
        const I c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
        out[0] = _mm512_unpacklo_epi64(a, c);
        out[1] = _mm512_unpackhi_epi64(a, c);
        out[2] = _mm512_unpacklo_epi64(b, d);
        out[3] = _mm512_unpackhi_epi64(b, d);
    }

    // 16 values to int8; returns their sum
    static int round16(const float * x, float inverse, int8_t * to) {
        const I v = _mm512_min_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse))), set1(127));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtsepi32_epi8(v));
        return _mm512_reduce_add_epi32(v);
    }
};

// As `Few` in panel.h; one token of a K-quant has a path of its own.
struct Few512 : Strips<Avx512Vnni> {
    static void multiply(const Rows & rows, const Activations & x, float * y, int panel_rows, char * copy) {
        const bool quads_are_for = rows.weight == Weight::q4_k || rows.weight == Weight::q5_k || rows.weight == Weight::q6_k;
        if (x.n_tokens == 1 && quads_are_for) return quads(rows, x, y);
        Strips::multiply(rows, x, y, panel_rows, copy);
    }
};

}  // namespace
}  // namespace bmx
