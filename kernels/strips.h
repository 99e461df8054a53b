// A few tokens, up to kMostFew: S::kLanes rows at a time are unpacked and multiplied in registers, along their whole length.
// Only scales are written on the way. A token's result is bit-identical to that of panel.h: the same operations in the same
// order, so that it does not depend on the number of tokens.
#pragma once

#include "panel.h"

namespace bmx {
namespace {

constexpr int kMostFew = 8;

// 256 columns of S::kLanes rows, and the tokens they are multiplied with.
template <class S>
struct Strip {
    const char * row;  // the first
    size_t stride;
    const Activations & x;
    int64_t at;  // the first token's index into the activations
    Fetch & fetch;
    float * y;  // of the first token
    size_t y_stride;
};

// Adds to `sums` the products of kSteps vectors of weights, each four columns of all rows, with all tokens.
template <class S, int kTokens, int kSteps, class Weights>
BMX_INLINE void add_products(const int8_t * x, typename S::I (&sums)[kTokens], Weights weights) {
    BMX_UNROLL
    for (int k = 0; k < kSteps; k++) {
        const typename S::I w = weights(k);
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) sums[t] = S::dot(sums[t], w, S::broadcast(x + t * kBlock + k * 4));
    }
}

template <class S, int kTokens>
BMX_INLINE void add_times(const typename S::I (&sums)[kTokens], typename S::I factor, typename S::I (&g)[kTokens]) {
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++) g[t] = S::add_int(g[t], S::mul_int(sums[t], factor));
}

// Q4_K, Q5_K
template <class S, Weight kWeight, int kTokens>
BMX_INLINE void strip_with_minimums(const Strip<S> & strip) {
    using I = typename S::I;
    using F = typename S::F;
    constexpr bool kFifthBit = kWeight == Weight::q5_k;
    const I four = S::set1(0x0f0f0f0f), fifth = S::set1(0x10101010);
    const Activations & x = strip.x;
    const int8_t * values = x.values + strip.at * kBlock;
    const EightScales<S> scales(strip.row, strip.stride);
    I bits[8];
    if constexpr (kFifthBit)
        for (int c = 0; c < 2; c++) S::load4(strip.row, strip.stride, 16 + 16 * c, bits + 4 * c);
    I g[kTokens];
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++) g[t] = S::zero();
    BMX_UNROLL
    for (int part = 0; part < 4; part++) {
        I v[8];
        for (int c = 0; c < 2; c++) {
            strip.fetch.some();
            S::load4(strip.row, strip.stride, (kFifthBit ? 48 : 16) + 32 * part + 16 * c, v + 4 * c);
        }
        BMX_UNROLL
        for (int upper = 0; upper < 2; upper++) {
            I sums[kTokens];
            BMX_UNROLL
            for (int t = 0; t < kTokens; t++) sums[t] = S::zero();
            const int s = 2 * part + upper;
            add_products<S, kTokens, 8>(values + s * 32, sums, [&](int k) {
                const I nibbles = S::and_(upper ? S::template srl<4>(v[k]) : v[k], four);
                if (!kFifthBit) return nibbles;
                // bit s of a byte belongs to block s
                const I one = s < 4 ? S::sll_by(bits[k], s < 4 ? 4 - s : 0) : S::srl_by(bits[k], s < 4 ? 0 : s - 4);
                return S::or_(nibbles, S::and_(one, fifth));
            });
            add_times<S, kTokens>(sums, scales.factor(s), g);
        }
    }
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++) {
        const int16_t * sums = x.sums32 + (strip.at + t) * 8;
        I e = S::zero();
        BMX_UNROLL
        for (int j = 0; j < 4; j++) e = S::dot16(e, scales.minimums(j), S::broadcast(sums + 2 * j));
        const F value = block_value<S>(g[t], scales.of_factors, e, scales.of_minimums);
        float * const out = strip.y + t * strip.y_stride;
        S::storef(out, S::fma(value, S::set1f(x.scales[strip.at + t]), S::loadf(out)));
    }
}

template <class S, int kTokens>
BMX_INLINE void strip_q6_k(const Strip<S> & strip) {
    using I = typename S::I;
    using F = typename S::F;
    const I four = S::set1(0x0f0f0f0f), two = S::set1(0x30303030);
    const Activations & x = strip.x;
    const int8_t * values = x.values + strip.at * kBlock;
    // in memory: the registers are needed for weights
    alignas(64) int32_t factors[16][S::kLanes];
    const SixteenScales<S> scales(strip.row, strip.stride);
    BMX_UNROLL
    for (int s = 0; s < 16; s++) S::store(factors[s], scales.factor(s));
    I g[kTokens];
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++) g[t] = S::zero();
    for (int part = 0; part < 4; part++) {
        const int half = part / 2, c = part % 2;
        I nibbles[2][4], high[4];
        S::load4(strip.row, strip.stride, half * 64 + c * 16, nibbles[0]);
        strip.fetch.some();
        S::load4(strip.row, strip.stride, half * 64 + 32 + c * 16, nibbles[1]);
        strip.fetch.some();
        S::load4(strip.row, strip.stride, 128 + half * 32 + c * 16, high);
        BMX_UNROLL
        for (int i = 0; i < 4; i++) {
            const int s = half * 8 + c + 2 * i;
            I sums[kTokens];
            BMX_UNROLL
            for (int t = 0; t < kTokens; t++) sums[t] = S::broadcast(x.sums16 + (strip.at + t) * 16 + s);
            add_products<S, kTokens, 4>(values + s * 16, sums, [&](int k) {
                const I v = nibbles[i % 2][k];
                const I bits = i == 0 ? S::template sll<4>(high[k]) : i == 1 ? S::template sll<2>(high[k]) : i == 2 ? high[k] : S::template srl<2>(high[k]);
                return S::or_(S::and_(i < 2 ? v : S::template srl<4>(v), four), S::and_(bits, two));
            });
            add_times<S, kTokens>(sums, S::load(factors[s]), g);
        }
    }
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++) {
        float * const out = strip.y + t * strip.y_stride;
        const F value = S::mul(S::to_float(g[t]), scales.of_factors);
        S::storef(out, S::fma(value, S::set1f(x.scales[strip.at + t]), S::loadf(out)));
    }
}

// Q8_0, Q4_0: n_sub blocks of 32 columns
template <class S, Weight kWeight, int kTokens>
BMX_INLINE void strip_of_32(const Strip<S> & strip, int n_sub) {
    using I = typename S::I;
    using F = typename S::F;
    constexpr bool kWhole = kWeight == Weight::q8_0;
    static_assert(!S::kSignedBytes, "bytes are 128 too large, nibbles are stored times 16, which the scale undoes");
    const I flip = S::set1(int(0x80808080)), upper = S::set1(int(0xf0f0f0f0));
    const Activations & x = strip.x;
    F g[kTokens];
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++) g[t] = S::loadf(strip.y + t * strip.y_stride);
    for (int s = 0; s < n_sub; s++) {
        strip.fetch.some();
        I v[kWhole ? 8 : 4];
        S::load4(strip.row, strip.stride, s * (kWhole ? 34 : 18) + 2, v);
        if constexpr (kWhole) S::load4(strip.row, strip.stride, s * 34 + 18, v + 4);
        const F half = halves_at<S>(strip.row, strip.stride, s * (kWhole ? 34 : 18));
        const F scale = kWhole ? half : S::mul(half, S::set1f(1.0f / 16));
        I sums[kTokens];
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) sums[t] = S::broadcast(x.sums16 + (strip.at + t) * 16 + s);
        add_products<S, kTokens, 8>(x.values + strip.at * kBlock + s * 32, sums, [&](int k) {
            if constexpr (kWhole) return S::xor_(v[k], flip);
            else return S::and_(k < 4 ? S::template sll<4>(v[k]) : v[k - 4], upper);
        });
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++)
            g[t] = S::fma(S::to_float(sums[t]), S::mul(scale, S::broadcastf(x.scales + (strip.at + t) * 8 + s)), g[t]);
    }
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++) S::storef(strip.y + t * strip.y_stride, g[t]);
}

// All columns of some rows.
template <class S, Weight kWeight, int kTokens>
void strips(const Rows & rows, const Activations & x, float * y, int panel_rows, char * copy) {
    const BlockSize size = block_size(kWeight);
    const int64_t n_blocks = x.n_blocks();
    for (int first = 0; first < rows.n_rows; first += S::kLanes) {
        Rows part = rows;
        part.data += first * rows.stride;
        part.n_rows = std::min(S::kLanes, rows.n_rows - first);
        const bool last = first + S::kLanes >= rows.n_rows;
        part.next = last && rows.after ? rows.after : part.data + S::kLanes * rows.stride;
        part.next_bytes = S::kLanes * rows.stride;
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) S::storef(y + t * panel_rows + first, S::zerof());
        for (int64_t b = 0; b < n_blocks; b++) {
            const int n_columns = int(std::min<int64_t>(kBlock, x.n_columns - b * kBlock));
            const Tile<S::kLanes> tile(part, b * (kBlock / size.columns) * size.bytes, size_t(n_columns / size.columns) * size.bytes, copy);
            Fetch fetch = next_part(part, b, n_blocks);
            fetch.spread(8);
            const Strip<S> strip = {tile.data, tile.stride, x, b * x.n_tokens, fetch, y + first, size_t(panel_rows)};
            if constexpr (kWeight == Weight::q6_k) strip_q6_k<S, kTokens>(strip);
            else if constexpr (kWeight == Weight::q4_k || kWeight == Weight::q5_k) strip_with_minimums<S, kWeight, kTokens>(strip);
            else strip_of_32<S, kWeight, kTokens>(strip, n_columns / 32);
        }
    }
}

template <class S, Weight kWeight>
void strips_of(const Rows & rows, const Activations & x, float * y, int panel_rows, char * copy) {
    switch (x.n_tokens) {
        case 1: return strips<S, kWeight, 1>(rows, x, y, panel_rows, copy);
        case 2: return strips<S, kWeight, 2>(rows, x, y, panel_rows, copy);
        case 3: return strips<S, kWeight, 3>(rows, x, y, panel_rows, copy);
        case 4: return strips<S, kWeight, 4>(rows, x, y, panel_rows, copy);
        case 5: return strips<S, kWeight, 5>(rows, x, y, panel_rows, copy);
        case 6: return strips<S, kWeight, 6>(rows, x, y, panel_rows, copy);
        case 7: return strips<S, kWeight, 7>(rows, x, y, panel_rows, copy);
        default: return strips<S, kWeight, 8>(rows, x, y, panel_rows, copy);
    }
}

// As `Few` in panel.h
template <class S>
struct Strips {
    static constexpr int64_t most(Weight weight) { return weight == Weight::f16 ? kMostDots : kMostFew; }
    static void multiply(const Rows & rows, const Activations & x, float * y, int panel_rows, char * copy) {
        switch (rows.weight) {
            case Weight::f16: return row_by_row<F16Dots>(rows, x, y, panel_rows);
            case Weight::q4_k: return strips_of<S, Weight::q4_k>(rows, x, y, panel_rows, copy);
            case Weight::q5_k: return strips_of<S, Weight::q5_k>(rows, x, y, panel_rows, copy);
            case Weight::q6_k: return strips_of<S, Weight::q6_k>(rows, x, y, panel_rows, copy);
            case Weight::q8_0: return strips_of<S, Weight::q8_0>(rows, x, y, panel_rows, copy);
            default: return strips_of<S, Weight::q4_0>(rows, x, y, panel_rows, copy);
        }
    }
};

}  // namespace
}  // namespace bmx
