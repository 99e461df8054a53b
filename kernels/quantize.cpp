// The search for scales takes nearly all the time of a conversion to K-quants: for each block of 32 (or 16) values, about
// twenty scales are tried. Here eight blocks are searched side by side, one in each lane of a vector, and each lane does
// the same operations as ggml's scalar code in the same order: no sum is reassociated, no product fused with a sum (this
// file is compiled with -ffp-contract=off). So the bytes are equal; converters/decoder/quantize.py checks that against ggml
// before it relies on it.
//
// Source: ggml-quants.c of llama-cpp-python 0.3.36: make_qkx2_quants, make_qx_quants, quantize_row_q[456]_K_ref,
// quantize_row_q8_0_ref, quantize_row_q4_0_ref.
#include "quantize.h"

#include "processor.h"
#include "ggml.h"
#include "table.h"

#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace bmx {
namespace {

using F = __m256;
using I = __m256i;
constexpr int kLanes = 8;

F set(float v) { return _mm256_set1_ps(v); }
F choose(F no, F yes, F mask) { return _mm256_blendv_ps(no, yes, mask); }
F less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }

// ggml's nearest_int, whose trick gives garbage beyond 2^22; so does this one
I nearest(F v) {
    const I bits = _mm256_castps_si256(_mm256_add_ps(v, set(12582912.0f)));
    return _mm256_sub_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x007fffff)), _mm256_set1_epi32(0x00400000));
}

int nearest(float v) {
    v += 12582912.0f;
    int bits;
    memcpy(&bits, &v, 4);
    return (bits & 0x007fffff) - 0x00400000;
}

I clamp(I v, int low, int high) { return _mm256_max_epi32(_mm256_set1_epi32(low), _mm256_min_epi32(_mm256_set1_epi32(high), v)); }

// Value i of eight neighbouring blocks of kSize.
template <int kSize>
void transpose(const float * x, F * values) {
    const I places = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(kSize));
    for (int i = 0; i < kSize; i++) values[i] = _mm256_i32gather_ps(x + i, places, 4);
}

template <int kSize>
void store_transposed(const I * values, uint8_t * to) {
    alignas(32) int lanes[kLanes];
    for (int i = 0; i < kSize; i++) {
        _mm256_store_si256(reinterpret_cast<I *>(lanes), values[i]);
        for (int j = 0; j < kLanes; j++) to[j * kSize + i] = uint8_t(lanes[j]);
    }
}

// The result of the search for eight blocks, and the values from which their quants follow.
struct Search {
    F scale, minimum;
    F inverse, base;
    F flat;  // a mask: blocks of equal values
};

// make_qkx2_quants of eight blocks of 32: scale and minimum by trying n_steps + 1 scales
Search search_with_minimum(const F * x, int most, float first, int n_steps) {
    constexpr int n = 32;
    const F zero = _mm256_setzero_ps(), sign = set(-0.0f);
    F weights[n];
    F squares = zero;
    for (int i = 0; i < n; i++) squares = _mm256_add_ps(squares, _mm256_mul_ps(x[i], x[i]));
    const F average = _mm256_sqrt_ps(_mm256_div_ps(squares, set(32)));
    for (int i = 0; i < n; i++) weights[i] = _mm256_add_ps(average, _mm256_andnot_ps(sign, x[i]));

    F least = x[0], greatest = x[0], sum_w = weights[0], sum_x = _mm256_mul_ps(sum_w, x[0]);
    for (int i = 1; i < n; i++) {
        least = choose(least, x[i], less(x[i], least));
        greatest = choose(greatest, x[i], less(greatest, x[i]));
        sum_w = _mm256_add_ps(sum_w, weights[i]);
        sum_x = _mm256_add_ps(sum_x, _mm256_mul_ps(weights[i], x[i]));
    }
    least = choose(least, zero, less(zero, least));

    Search s;
    s.flat = _mm256_cmp_ps(greatest, least, _CMP_EQ_OQ);
    s.inverse = _mm256_div_ps(set(float(most)), _mm256_sub_ps(greatest, least));
    s.scale = _mm256_div_ps(set(1), s.inverse);
    s.base = least;
    F minimum = least, best = zero;
    for (int i = 0; i < n; i++) {
        const F l = _mm256_cvtepi32_ps(clamp(nearest(_mm256_mul_ps(s.inverse, _mm256_sub_ps(x[i], minimum))), 0, most));
        const F error = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(s.scale, l), minimum), x[i]);
        best = _mm256_add_ps(best, _mm256_mul_ps(weights[i], _mm256_mul_ps(error, error)));
    }
    for (int step = 0; step <= n_steps; step++) {
        const float wanted = first + 0.1f * float(step) + float(most);
        const F inverse = _mm256_div_ps(set(wanted), _mm256_sub_ps(greatest, minimum));
        F quants[n], sum_l = zero, sum_l2 = zero, sum_xl = zero;
        for (int i = 0; i < n; i++) {
            const F l = _mm256_cvtepi32_ps(clamp(nearest(_mm256_mul_ps(inverse, _mm256_sub_ps(x[i], minimum))), 0, most));
            quants[i] = l;
            const F wl = _mm256_mul_ps(weights[i], l);
            sum_l = _mm256_add_ps(sum_l, wl);
            sum_l2 = _mm256_add_ps(sum_l2, _mm256_mul_ps(wl, l));
            sum_xl = _mm256_add_ps(sum_xl, _mm256_mul_ps(wl, x[i]));
        }
        const F d = _mm256_sub_ps(_mm256_mul_ps(sum_w, sum_l2), _mm256_mul_ps(sum_l, sum_l));
        F scale = _mm256_div_ps(_mm256_sub_ps(_mm256_mul_ps(sum_w, sum_xl), _mm256_mul_ps(sum_x, sum_l)), d);
        F low = _mm256_div_ps(_mm256_sub_ps(_mm256_mul_ps(sum_l2, sum_x), _mm256_mul_ps(sum_l, sum_xl)), d);
        const F above = less(zero, low);
        low = choose(low, zero, above);
        scale = choose(scale, _mm256_div_ps(sum_xl, sum_l2), above);
        F total = zero;
        for (int i = 0; i < n; i++) {
            const F error = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(scale, quants[i]), low), x[i]);
            total = _mm256_add_ps(total, _mm256_mul_ps(weights[i], _mm256_mul_ps(error, error)));
        }
        const F better = _mm256_and_ps(less(zero, d), less(total, best));
        s.inverse = choose(s.inverse, inverse, better);
        s.base = choose(s.base, minimum, better);
        best = choose(best, total, better);
        s.scale = choose(s.scale, scale, better);
        minimum = choose(minimum, low, better);
    }
    // ggml's search leaves flat blocks before it begins; the arithmetic above is not valid for them
    s.scale = _mm256_andnot_ps(s.flat, s.scale);
    s.minimum = _mm256_xor_ps(sign, choose(minimum, least, s.flat));
    return s;
}

float half_value(uint16_t half) { return ggml_fp16_to_fp32(half); }

// Six bits each: the packing of Q4_K and Q5_K
void pack(int index, uint8_t scale, uint8_t minimum, uint8_t * to) {
    if (index < 4) {
        to[index] = scale;
        to[index + 4] = minimum;
    } else {
        to[index + 4] = uint8_t((scale & 15) | (minimum & 15) << 4);
        to[index - 4] = uint8_t(to[index - 4] | (scale >> 4) << 6);
        to[index] = uint8_t(to[index] | (minimum >> 4) << 6);
    }
}

// d, dmin, 12 bytes of scales, and the quants of a super-block of Q4_K or Q5_K
void super_block(const float * x, int most, float first, int n_steps, uint8_t * head, uint8_t * quants) {
    F values[32];
    transpose<32>(x, values);
    const Search s = search_with_minimum(values, most, first, n_steps);
    alignas(32) float scales[kLanes], minimums[kLanes], steps[kLanes], offsets[kLanes];
    _mm256_store_ps(scales, s.scale);
    _mm256_store_ps(minimums, s.minimum);
    float max_scale = 0, max_minimum = 0;
    for (int j = 0; j < kLanes; j++) {
        if (scales[j] > max_scale) max_scale = scales[j];
        if (minimums[j] > max_minimum) max_minimum = minimums[j];
    }
    const uint16_t d = ggml_fp32_to_fp16(max_scale / 63.0f), dmin = ggml_fp32_to_fp16(max_minimum / 63.0f);
    memcpy(head, &d, 2);
    memcpy(head + 2, &dmin, 2);
    const float inverse_scale = max_scale > 0 ? 63.0f / max_scale : 0.0f;
    const float inverse_minimum = max_minimum > 0 ? 63.0f / max_minimum : 0.0f;
    for (int j = 0; j < kLanes; j++) {
        const uint8_t scale = std::min<uint8_t>(63, uint8_t(nearest(inverse_scale * scales[j])));
        const uint8_t minimum = std::min<uint8_t>(63, uint8_t(nearest(inverse_minimum * minimums[j])));
        pack(j, scale, minimum, head + 4);
        steps[j] = half_value(d) * scale;
        offsets[j] = half_value(dmin) * minimum;
    }
    const F step = _mm256_load_ps(steps), offset = _mm256_load_ps(offsets);
    const F none = _mm256_cmp_ps(step, _mm256_setzero_ps(), _CMP_EQ_OQ);
    I found[32];
    for (int i = 0; i < 32; i++) found[i] = clamp(nearest(_mm256_div_ps(_mm256_add_ps(values[i], offset), step)), 0, most);
    if (_mm256_movemask_ps(none)) {
        // the scale was rounded to zero: the quants of the search stay
        for (int i = 0; i < 32; i++) {
            I searched = clamp(nearest(_mm256_mul_ps(s.inverse, _mm256_sub_ps(values[i], s.base))), 0, most);
            searched = _mm256_andnot_si256(_mm256_castps_si256(s.flat), searched);
            found[i] = _mm256_blendv_epi8(found[i], searched, _mm256_castps_si256(none));
        }
    }
    store_transposed<32>(found, quants);
}

void block_q4_k(const float * x, uint8_t * y) {
    uint8_t quants[256];
    super_block(x, 15, -1.0f, 20, y, quants);
    for (int j = 0; j < 256; j += 64)
        for (int l = 0; l < 32; l++) y[16 + j / 2 + l] = uint8_t(quants[j + l] | quants[j + l + 32] << 4);
}

void block_q5_k(const float * x, uint8_t * y) {
    uint8_t quants[256];
    super_block(x, 31, -0.5f, 15, y, quants);
    memset(y + 16, 0, 32);
    for (int j = 0; j < 256; j += 64)
        for (int l = 0; l < 32; l++) {
            const int a = quants[j + l], b = quants[j + l + 32];
            y[16 + l] = uint8_t(y[16 + l] | (a >> 4) << (j / 32) | (b >> 4) << (j / 32 + 1));
            y[48 + j / 2 + l] = uint8_t((a & 15) | (b & 15) << 4);
        }
}

// make_qx_quants of eight blocks of 16, errors weighed by the squares
Search search_symmetric(const F * x) {
    constexpr int n = 16, most = 32;
    const F zero = _mm256_setzero_ps(), sign = set(-0.0f);
    F size = zero, greatest = zero;
    for (int i = 0; i < n; i++) {
        const F of_one = _mm256_andnot_ps(sign, x[i]), larger = less(size, of_one);
        size = choose(size, of_one, larger);
        greatest = choose(greatest, x[i], larger);
    }
    Search s;
    s.flat = less(size, set(1e-15f));
    const auto sums = [&](F inverse, F & sum_lx, F & sum_l2) {
        sum_lx = sum_l2 = zero;
        for (int i = 0; i < n; i++) {
            const F l = _mm256_cvtepi32_ps(clamp(nearest(_mm256_mul_ps(inverse, x[i])), -most, most - 1));
            const F w = _mm256_mul_ps(x[i], x[i]);
            sum_lx = _mm256_add_ps(sum_lx, _mm256_mul_ps(_mm256_mul_ps(w, x[i]), l));
            sum_l2 = _mm256_add_ps(sum_l2, _mm256_mul_ps(_mm256_mul_ps(w, l), l));
        }
    };
    F sum_lx, sum_l2;
    s.inverse = _mm256_div_ps(set(-float(most)), greatest);
    sums(s.inverse, sum_lx, sum_l2);
    s.scale = _mm256_and_ps(_mm256_div_ps(sum_lx, sum_l2), _mm256_cmp_ps(sum_l2, zero, _CMP_NEQ_UQ));
    F best = _mm256_mul_ps(s.scale, sum_lx);
    for (int step = -9; step <= 9; step++) {
        if (step == 0) continue;
        const F inverse = _mm256_div_ps(set(-(float(most) + 0.1f * float(step))), greatest);
        sums(inverse, sum_lx, sum_l2);
        const F more = less(_mm256_mul_ps(best, sum_l2), _mm256_mul_ps(sum_lx, sum_lx));
        const F better = _mm256_and_ps(less(zero, sum_l2), more);
        s.inverse = choose(s.inverse, inverse, better);
        s.scale = choose(s.scale, _mm256_div_ps(sum_lx, sum_l2), better);
        best = choose(best, _mm256_mul_ps(s.scale, sum_lx), better);
    }
    s.scale = _mm256_andnot_ps(s.flat, s.scale);
    return s;
}

void block_q6_k(const float * x, uint8_t * y) {
    F values[2][16];
    Search found[2];
    alignas(32) float scales[16], steps[16];
    for (int h = 0; h < 2; h++) {
        transpose<16>(x + h * 128, values[h]);
        found[h] = search_symmetric(values[h]);
        _mm256_store_ps(scales + h * kLanes, found[h].scale);
    }
    float max_scale = 0, max_size = 0;
    for (const float scale : scales)
        if (std::fabs(scale) > max_size) {
            max_size = std::fabs(scale);
            max_scale = scale;
        }
    if (max_size < 1e-15f) {
        memset(y, 0, 210);
        return;
    }
    const float inverse = -128.0f / max_scale;
    const uint16_t d = ggml_fp32_to_fp16(1 / inverse);
    memcpy(y + 208, &d, 2);
    for (int j = 0; j < 16; j++) {
        const int8_t scale = int8_t(std::min(127, nearest(inverse * scales[j])));
        memcpy(y + 192 + j, &scale, 1);
        steps[j] = half_value(d) * float(scale);
    }
    uint8_t quants[256];
    for (int h = 0; h < 2; h++) {
        const F step = _mm256_load_ps(steps + h * kLanes);
        const I none = _mm256_castps_si256(_mm256_cmp_ps(step, _mm256_setzero_ps(), _CMP_EQ_OQ));
        const I offset = _mm256_set1_epi32(32);
        I lanes[16];
        for (int i = 0; i < 16; i++) {
            const I q = _mm256_add_epi32(clamp(nearest(_mm256_div_ps(values[h][i], step)), -32, 31), offset);
            I searched = _mm256_add_epi32(clamp(nearest(_mm256_mul_ps(found[h].inverse, values[h][i])), -32, 31), offset);
            searched = _mm256_andnot_si256(_mm256_castps_si256(found[h].flat), searched);
            lanes[i] = _mm256_blendv_epi8(q, searched, none);
        }
        store_transposed<16>(lanes, quants + h * 128);
    }
    for (int h = 0; h < 2; h++)
        for (int l = 0; l < 32; l++) {
            const uint8_t * q = quants + h * 128 + l;
            y[h * 64 + l] = uint8_t((q[0] & 15) | (q[64] & 15) << 4);
            y[h * 64 + 32 + l] = uint8_t((q[32] & 15) | (q[96] & 15) << 4);
            y[128 + h * 32 + l] = uint8_t(q[0] >> 4 | (q[32] >> 4) << 2 | (q[64] >> 4) << 4 | (q[96] >> 4) << 6);
        }
}

float largest_size(const F (&v)[4]) {
    const F sign = set(-0.0f);
    F m = _mm256_andnot_ps(sign, v[0]);
    for (int i = 1; i < 4; i++) m = _mm256_max_ps(m, _mm256_andnot_ps(sign, v[i]));
    __m128 n = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    n = _mm_max_ps(n, _mm_movehl_ps(n, n));
    return _mm_cvtss_f32(_mm_max_ss(n, _mm_movehdup_ps(n)));
}

void put_half(float value, uint8_t * to) {
    const uint16_t half = uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
    memcpy(to, &half, 2);
}

// To int8 as C casts it on this architecture: values that do not fit, and NaN, lose their upper bits
I wrapped(F v) { return _mm256_srai_epi32(_mm256_slli_epi32(_mm256_cvttps_epi32(v), 24), 24); }

// Eight integers each, in order, to bytes
__m256i to_bytes(const I (&q)[4]) {
    const I words = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    return _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

void block_q8_0(const float * x, uint8_t * y) {
    F v[4];
    for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + 8 * i);
    const float d = largest_size(v) / 127.0f;
    put_half(d, y);
    const F inverse = set(d != 0 ? 1.0f / d : 0.0f), sign = set(-0.0f);
    I q[4];
    for (int i = 0; i < 4; i++) {
        // roundf: halves round away from zero
        const F scaled = _mm256_mul_ps(v[i], inverse);
        const F whole = _mm256_round_ps(scaled, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
        const F rest = _mm256_andnot_ps(sign, _mm256_sub_ps(scaled, whole));
        const F one = _mm256_or_ps(_mm256_and_ps(sign, scaled), set(1));
        q[i] = wrapped(_mm256_add_ps(whole, _mm256_and_ps(one, _mm256_cmp_ps(rest, set(0.5f), _CMP_GE_OQ))));
    }
    _mm256_storeu_si256(reinterpret_cast<I *>(y + 2), to_bytes(q));
}

void block_q4_0(const float * x, uint8_t * y) {
    F v[4];
    for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + 8 * i);
    const float size = largest_size(v);
    // the first of the largest values; its sign decides the scale's
    int first = 0;
    for (int i = 3; i >= 0; i--) {
        const int found = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_andnot_ps(set(-0.0f), v[i]), set(size), _CMP_EQ_OQ));
        for (int j = 7; j >= 0 && found; j--)
            if (found >> j & 1) first = 8 * i + j;
    }
    const float d = (size > 0 ? x[first] : 0.0f) / -8;
    put_half(d, y);
    const F inverse = set(d != 0 ? 1.0f / d : 0.0f);
    I q[4];
    for (int i = 0; i < 4; i++) {
        q[i] = _mm256_min_epi32(_mm256_set1_epi32(15), wrapped(_mm256_add_ps(_mm256_mul_ps(v[i], inverse), set(8.5f))));
    }
    const I bytes = to_bytes(q);
    const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(y + 2), _mm_or_si128(low, _mm_slli_epi16(high, 4)));
}

using BlockFunction = void (*)(const float *, uint8_t *);

BlockFunction function_of(int type) {
    switch (type) {
        case GGML_TYPE_Q4_K: return block_q4_k;
        case GGML_TYPE_Q5_K: return block_q5_k;
        case GGML_TYPE_Q6_K: return block_q6_k;
        case GGML_TYPE_Q8_0: return block_q8_0;
        case GGML_TYPE_Q4_0: return block_q4_0;
        default: return nullptr;
    }
}

}  // namespace
}  // namespace bmx

extern "C" int bimedix_edge_quantizes(int type) { return bmx::function_of(type) && bmx::processor_features().avx2; }

extern "C" int bimedix_edge_quantize(int type, const float * x, void * y, long long n_values) {
    if (!bimedix_edge_quantizes(type)) return 1;
    const bmx::BlockFunction function = bmx::function_of(type);
    const bmx::BlockSize size = bmx::block_size(bmx::Weight(type));
    if (n_values % size.columns) return 1;
    uint8_t * to = static_cast<uint8_t *>(y);
    for (long long i = 0; i < n_values; i += size.columns, to += size.bytes) function(x + i, to);
    return 0;
}
#else
extern "C" int bimedix_edge_quantizes(int) { return 0; }
extern "C" int bimedix_edge_quantize(int, const float *, void *, long long) { return 1; }
#endif
