// Unpacking weights into panels: vectors that hold the same columns of many rows.
#pragma once

#include <cstring>

#include "table.h"

namespace bmx {
namespace {

template <class S>
constexpr int panel_rows() {
    return S::kHigh * S::kLanes;
}

// 256 columns of a panel's rows. A vector of `weights` is four consecutive columns of S::kLanes rows.
template <class S>
struct Panel {
    alignas(64) uint8_t weights[64][S::kHigh][S::kLanes * 4];
    alignas(64) float scales[8][S::kHigh][S::kLanes];      // of blocks of 32: Q8_0, Q4_0
    alignas(64) int32_t factors[16][S::kHigh][S::kLanes];  // scales of a K-quant's blocks as whole numbers, and their common factor
    alignas(64) float of_factors[S::kHigh][S::kLanes];
    alignas(64) float of_minimums[S::kHigh][S::kLanes];
    alignas(64) int16_t minimums[4][S::kHigh][S::kLanes * 2];  // of two neighbouring blocks of 32 side by side
};

// `row` points at the block of the first of S::kLanes rows; h is their place in the panel

template <class S>
void put(Panel<S> & p, int group, int h, typename S::I v) {
    S::store(p.weights[group][h], v);
}

// A half-precision float of each row. Loading vectors and taking them apart is slower.
template <class S>
BMX_INLINE typename S::F halves_at(const char * row, size_t stride, size_t offset) {
    alignas(64) uint16_t halves[S::kLanes];
    for (int r = 0; r < S::kLanes; r++) memcpy(halves + r, row + r * stride + offset, 2);
    return S::load_halves(halves);
}

// The scales of the eight blocks of 32 of Q4_K and Q5_K, and their minimums; in registers, four bytes per lane.
template <class S>
struct EightScales {
    using I = typename S::I;
    using F = typename S::F;
    I factor_bytes[2], minimum_bytes[2];
    F of_factors, of_minimums;

    BMX_INLINE EightScales(const char * row, size_t stride) {
        const I six = S::set1(0x3f3f3f3f), four = S::set1(0x0f0f0f0f), two = S::set1(0x03030303);
        I head[4];
        S::load4(row, stride, 0, head);
        of_factors = S::low_halves(head[0]);
        of_minimums = S::high_halves(head[0]);
        factor_bytes[0] = S::and_(head[1], six);
        factor_bytes[1] = S::or_(S::and_(head[3], four), S::template sll<4>(S::and_(S::template srl<6>(head[1]), two)));
        minimum_bytes[0] = S::and_(head[2], six);
        minimum_bytes[1] =
            S::or_(S::and_(S::template srl<4>(head[3]), four), S::template sll<4>(S::and_(S::template srl<6>(head[2]), two)));
    }

    BMX_INLINE I factor(int s) const { return S::and_(S::srl_by(factor_bytes[s / 4], s % 4 * 8), S::set1(0xff)); }

    // those of blocks 2 i and 2 i + 1, in 16 bits each
    BMX_INLINE I minimums(int i) const {
        const I byte = S::set1(0xff), high = S::set1(0xff0000), m = minimum_bytes[i / 2];
        if (i % 2 == 0) return S::or_(S::and_(m, byte), S::and_(S::template sll<8>(m), high));
        return S::or_(S::and_(S::template srl<16>(m), byte), S::and_(S::template srl<8>(m), high));
    }
};

template <class S>
void unpack_scales_and_minimums(Panel<S> & p, int h, const char * row, size_t stride) {
    const EightScales<S> unpacked(row, stride);
    BMX_UNROLL
    for (int s = 0; s < 8; s++) S::store(p.factors[s][h], unpacked.factor(s));
    BMX_UNROLL
    for (int i = 0; i < 4; i++) S::store(p.minimums[i][h], unpacked.minimums(i));
    S::storef(p.of_factors[h], unpacked.of_factors);
    S::storef(p.of_minimums[h], unpacked.of_minimums);
}

// The values of Q4_K and Q5_K: passes on `first`, the four columns `group` of all rows, and `second`, the columns of
// `group` + 8, with the number of the block of 32 of `first`; `second` is in the next block.
template <class S, bool kFifthBit, class Put>
BMX_INLINE void unpack_nibbles(const char * row, size_t stride, Put put) {
    using I = typename S::I;
    const I four = S::set1(0x0f0f0f0f), fifth = S::set1(0x10101010);
    I high[8];
    if constexpr (kFifthBit)
        for (int c = 0; c < 2; c++) S::load4(row, stride, 16 + 16 * c, high + 4 * c);
    BMX_UNROLL
    for (int c = 0; c < 8; c++) {
        I v[4];
        S::load4(row, stride, (kFifthBit ? 48 : 16) + 16 * c, v);
        const int block = c / 2 * 2, group = block * 8 + c % 2 * 4;
        BMX_UNROLL
        for (int j = 0; j < 4; j++) {
            I first = S::and_(v[j], four), second = S::and_(S::template srl<4>(v[j]), four);
            if constexpr (kFifthBit) {
                // bit `block` of each byte belongs to the low nibble's column, the next to the high one's
                const I bits = S::template sll<4>(S::srl_by(high[c % 2 * 4 + j], block));
                first = S::or_(first, S::and_(bits, fifth));
                second = S::or_(second, S::and_(S::template srl<1>(bits), fifth));
            }
            put(block, group + j, first, second);
        }
    }
}

template <class S, bool kFifthBit>
void unpack_with_minimums(Panel<S> & p, int h, const char * row, size_t stride) {
    unpack_scales_and_minimums(p, h, row, stride);
    unpack_nibbles<S, kFifthBit>(row, stride, [&](int, int group, typename S::I first, typename S::I second) {
        put(p, group, h, first);
        put(p, group + 8, h, second);
    });
}

// The scales of the sixteen blocks of 16 of Q6_K.
template <class S>
struct SixteenScales {
    using I = typename S::I;
    using F = typename S::F;
    I bytes[4];
    F of_factors;

    BMX_INLINE SixteenScales(const char * row, size_t stride) {
        of_factors = halves_at<S>(row, stride, 208);
        S::load4(row, stride, 192, bytes);
    }

    BMX_INLINE I factor(int s) const { return S::template sra<24>(S::sll_by(bytes[s / 4], 24 - s % 4 * 8)); }
};

// The values of Q6_K, 0 to 63: passes on the four columns `group` of all rows, with the number of their block of 16.
template <class S, class Put>
BMX_INLINE void unpack_six_bits(const char * row, size_t stride, Put put) {
    using I = typename S::I;
    const I four = S::set1(0x0f0f0f0f), two = S::set1(0x30303030);
    for (int half = 0; half < 2; half++) {
        for (int c = 0; c < 2; c++) {
            I low[4], next[4], high[4];
            S::load4(row, stride, half * 64 + c * 16, low);
            S::load4(row, stride, half * 64 + 32 + c * 16, next);
            S::load4(row, stride, 128 + half * 32 + c * 16, high);
            BMX_UNROLL
            for (int j = 0; j < 4; j++) {
                const I bits = high[j];
                const int block = half * 8 + c, group = half * 32 + c * 4 + j;
                put(block, group, S::or_(S::and_(low[j], four), S::and_(S::template sll<4>(bits), two)));
                put(block + 2, group + 8, S::or_(S::and_(next[j], four), S::and_(S::template sll<2>(bits), two)));
                put(block + 4, group + 16, S::or_(S::and_(S::template srl<4>(low[j]), four), S::and_(bits, two)));
                put(block + 6, group + 24, S::or_(S::and_(S::template srl<4>(next[j]), four), S::and_(S::template srl<2>(bits), two)));
            }
        }
    }
}

template <class S>
void unpack_q6_k(Panel<S> & p, int h, const char * row, size_t stride) {
    unpack_six_bits<S>(row, stride, [&](int, int group, typename S::I values) { put(p, group, h, values); });
    const SixteenScales<S> unpacked(row, stride);
    BMX_UNROLL
    for (int s = 0; s < 16; s++) S::store(p.factors[s][h], unpacked.factor(s));
    S::storef(p.of_factors[h], unpacked.of_factors);
}

template <class S>
void unpack_q8_0(Panel<S> & p, int h, const char * row, size_t stride, int n_sub) {
    using I = typename S::I;
    const I flip = S::set1(S::kSignedBytes ? 0 : int(0x80808080));
    for (int s = 0; s < n_sub; s++) {
        I v[8];
        S::load4(row, stride, s * 34 + 2, v);
        S::load4(row, stride, s * 34 + 18, v + 4);
        BMX_UNROLL
        for (int j = 0; j < 8; j++) put(p, s * 8 + j, h, S::xor_(v[j], flip));
        S::storef(p.scales[s][h], halves_at<S>(row, stride, s * 34));
    }
}

// Nibbles 0 to 15 stand for -8 to 7. Where bytes are offset by 128, they are stored times 16, and the scale divides by 16.
template <class S>
void unpack_q4_0(Panel<S> & p, int h, const char * row, size_t stride, int n_sub) {
    using I = typename S::I;
    const I four = S::set1(0x0f0f0f0f), upper = S::set1(int(0xf0f0f0f0));
    for (int s = 0; s < n_sub; s++) {
        I v[4];
        S::load4(row, stride, s * 18 + 2, v);
        BMX_UNROLL
        for (int j = 0; j < 4; j++) {
            if (S::kSignedBytes) {
                put(p, s * 8 + j, h, S::and_(v[j], four));
                put(p, s * 8 + 4 + j, h, S::and_(S::template srl<4>(v[j]), four));
            } else {
                put(p, s * 8 + j, h, S::and_(S::template sll<4>(v[j]), upper));
                put(p, s * 8 + 4 + j, h, S::and_(v[j], upper));
            }
        }
        const typename S::F scale = halves_at<S>(row, stride, s * 18);
        S::storef(p.scales[s][h], S::kSignedBytes ? scale : S::mul(scale, S::set1f(1.0f / 16)));
    }
}

template <class S>
void unpack(Weight weight, Panel<S> & p, const char * row, size_t stride, int n_sub) {
    for (int h = 0; h < S::kHigh; h++, row += S::kLanes * stride) {
        switch (weight) {
            case Weight::q4_k: unpack_with_minimums<S, false>(p, h, row, stride); break;
            case Weight::q5_k: unpack_with_minimums<S, true>(p, h, row, stride); break;
            case Weight::q6_k: unpack_q6_k(p, h, row, stride); break;
            case Weight::q8_0: unpack_q8_0(p, h, row, stride, n_sub); break;
            default: unpack_q4_0(p, h, row, stride, n_sub);
        }
    }
}

}  // namespace
}  // namespace bmx
