// Vectors of eight lanes, shared by AVX2 and AVX-VNNI.
#pragma once

#include <immintrin.h>

#include "dots.h"
#include "attend.h"
#include "elementwise.h"
#include "panel.h"
#include "peak.h"

namespace bmx {
namespace {

struct Avx2Base {
    using I = __m256i;
    using F = __m256;
    static constexpr int kLanes = 8, kHigh = 2;

    static I load(const void * p) { return _mm256_load_si256(static_cast<const I *>(p)); }
    static void store(void * p, I v) { _mm256_store_si256(static_cast<I *>(p), v); }
    static F loadf(const float * p) { return _mm256_loadu_ps(p); }
    static void storef(float * p, F v) { _mm256_storeu_ps(p, v); }
    static I zero() { return _mm256_setzero_si256(); }
    static F zerof() { return _mm256_setzero_ps(); }
    static I set1(int v) { return _mm256_set1_epi32(v); }
    static F set1f(float v) { return _mm256_set1_ps(v); }
    static I broadcast(const void * p) {
        int v;
        memcpy(&v, p, 4);
        return _mm256_set1_epi32(v);
    }
    static F broadcastf(const float * p) { return _mm256_broadcast_ss(p); }
    static I and_(I a, I b) { return _mm256_and_si256(a, b); }
    static I or_(I a, I b) { return _mm256_or_si256(a, b); }
    static I xor_(I a, I b) { return _mm256_xor_si256(a, b); }
    template <int n>
    static I srl(I v) { return _mm256_srli_epi32(v, n); }
    template <int n>
    static I sll(I v) { return _mm256_slli_epi32(v, n); }
    template <int n>
    static I sra(I v) { return _mm256_srai_epi32(v, n); }
    static I srl_by(I v, int n) { return _mm256_srl_epi32(v, _mm_cvtsi32_si128(n)); }
    static I sll_by(I v, int n) { return _mm256_sll_epi32(v, _mm_cvtsi32_si128(n)); }
    static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
    static I to_int(F v) { return _mm256_cvtps_epi32(v); }
    static F as_float(I v) { return _mm256_castsi256_ps(v); }
    static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
    static I mul_int(I a, I b) { return _mm256_mullo_epi32(a, b); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static float reduce_add(F v) { return sum_of(v); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
    static F minf(F a, F b) { return _mm256_min_ps(a, b); }
    static F maxf(F a, F b) { return _mm256_max_ps(a, b); }
    static float reduce_min(F v) {
        __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        m = _mm_min_ps(m, _mm_movehl_ps(m, m));
        return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
    }
    static float reduce_max(F v) {
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
    }
    static F low_halves(I v) {
        const I low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
        const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
        return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
    }
    static F high_halves(I v) { return low_halves(srl<16>(v)); }
    static F load_halves(const uint16_t * p) { return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i *>(p))); }

    static void load4(const char * row, size_t stride, size_t offset, I * out) {
        row += offset;
        I v[4];
        BMX_UNROLL
        for (int i = 0; i < 4; i++) {
            const auto at = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(row + (r + i) * stride)); };
            v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(at(0)), at(4), 1);
        }
        const I a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
        const I c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
        out[0] = _mm256_unpacklo_epi64(a, c);
        out[1] = _mm256_unpackhi_epi64(a, c);
        out[2] = _mm256_unpacklo_epi64(b, d);
        out[3] = _mm256_unpackhi_epi64(b, d);
    }

    static int round16(const float * x, float inverse, int8_t * to) {
        const F factor = _mm256_set1_ps(inverse);
        const I most = _mm256_set1_epi32(127);
        const I a = _mm256_min_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor)), most);
        const I b = _mm256_min_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), factor)), most);
        const I words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to), bytes);
        I sum = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
        sum = _mm256_hadd_epi32(sum, sum);
        sum = _mm256_hadd_epi32(sum, sum);
        return _mm256_extract_epi32(sum, 0) + _mm256_extract_epi32(sum, 4);
    }
};

}  // namespace
}  // namespace bmx
