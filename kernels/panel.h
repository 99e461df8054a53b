// The kernels, written once over a small set of vector operations; each instruction set's file defines these (`S`) and
// instantiates the kernels. Names follow table.h. Everything is inlined into that file, hence the unnamed namespace.
//
// S::Few multiplies at most S::Few::most(weight) tokens with rows as they lie in memory: dots.h, strips.h, quads512.h.
// S has kLanes of 32 bits; a panel has S::kHigh vectors of rows, and S::kWide tokens pass over it together: as many as the
// registers hold sums for. The inner loop is one dot product of four bytes per lane for each of kHigh * kWide sums, fed by
// kHigh loads of weights and kWide broadcasts of activations.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "dots.h"
#include "table.h"
#include "unpack.h"

namespace bmx {
namespace {

template <class S>
struct FloatPanel {
    static constexpr int kColumns = 128;
    alignas(64) float weights[kColumns][S::kHigh][S::kLanes];
};

// With few tokens a panel has more rows, so that two matrices whose panels alternate are read in longer runs.
template <class S>
int rows_of_a_panel(int64_t n_tokens) {
    return n_tokens <= kMostDots ? 4 * panel_rows<S>() : panel_rows<S>();
}

// Prefetches the next data a few lines at a time between products: the processor tracks few lines in flight from memory,
// and a load beyond that blocks all that follow it.
struct Fetch {
    const char * at;
    const char * end;
    int n_lines;

    bool left() const { return at < end; }

    // Sets the lines per call of `some` so that n_times calls fetch everything, with a minimum to finish early.
    void spread(int64_t n_times) { n_lines = std::max(kFewestLines, int((end - at + 64 * n_times - 1) / (64 * n_times))); }

    void some() {
        for (int i = 0; i < n_lines && left(); i++, at += 64) BMX_PREFETCH(at);
    }

    void all() {
        for (; left(); at += 64) BMX_PREFETCH(at);
    }

private:
    static constexpr int kFewestLines = 4;
};

// ---- The products of a K-quant's block with a token are whole numbers up to here. From here on, each file of kernels does
// the same operations in the same order, so that a result does not depend on the number of tokens.

// The value of a block with minimums, before the token's scale.
template <class S>
BMX_INLINE typename S::F block_value(typename S::I sum, typename S::F of_factors, typename S::I of_minimum, typename S::F of_minimums) {
    // rounded in between: written so that a compiler cannot fuse the product with the sum
    return S::fnma(S::to_float(of_minimum), of_minimums, S::mul(S::to_float(sum), of_factors));
}

// ---- products of one unpacked block with kTokens tokens; `at` is the first token's index into the activations

// How many products of two bytes can be summed in 16 bits, where the instruction set has no wider dot product; weights
// are at most 15, 31 or 63, or signed bytes.
enum class Sum { of_nibbles, of_5_bits, of_6_bits, of_bytes };

template <class S, int kTokens, int kSteps, Sum kSum>
inline void dot_products(const uint8_t (*w)[S::kHigh][S::kLanes * 4], const int8_t * x, typename S::I (&c)[kTokens][S::kHigh]) {
    using I = typename S::I;
    constexpr int kFold = S::template fold<kSum>();
    if constexpr (kFold == 0) {
        BMX_UNROLL
        for (int k = 0; k < kSteps; k++) {
            I v[S::kHigh];
            BMX_UNROLL
            for (int h = 0; h < S::kHigh; h++) v[h] = S::load(w[k][h]);
            BMX_UNROLL
            for (int t = 0; t < kTokens; t++) {
                const I four = S::broadcast(x + t * kBlock + k * 4);
                BMX_UNROLL
                for (int h = 0; h < S::kHigh; h++) c[t][h] = S::dot(c[t][h], v[h], four);
            }
        }
    } else {
        for (int k0 = 0; k0 < kSteps; k0 += kFold) {
            I sum[kTokens][S::kHigh];
            BMX_UNROLL
            for (int k = 0; k < kFold; k++) {
                I v[S::kHigh];
                BMX_UNROLL
                for (int h = 0; h < S::kHigh; h++) v[h] = S::load(w[k0 + k][h]);
                BMX_UNROLL
                for (int t = 0; t < kTokens; t++) {
                    const I four = S::broadcast(x + t * kBlock + (k0 + k) * 4);
                    BMX_UNROLL
                    for (int h = 0; h < S::kHigh; h++) {
                        const I two = kSum == Sum::of_bytes ? S::signed_pairs(v[h], four) : S::pairs(v[h], four);
                        sum[t][h] = k == 0 ? two : S::add16(sum[t][h], two);
                    }
                }
            }
            BMX_UNROLL
            for (int t = 0; t < kTokens; t++)
                BMX_UNROLL
                for (int h = 0; h < S::kHigh; h++) c[t][h] = S::widen_add(c[t][h], sum[t][h]);
        }
    }
}

// Adds sums over a block of a K-quant, times its scale: whole numbers of at most 27 bits, so that their order does not
// matter.
template <class S, int kTokens>
BMX_INLINE void add_times(const typename S::I (&c)[kTokens][S::kHigh], const int32_t (*factors)[S::kLanes], typename S::I (&g)[kTokens][S::kHigh]) {
    BMX_UNROLL
    for (int h = 0; h < S::kHigh; h++) {
        const typename S::I factor = S::load(factors[h]);
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) g[t][h] = S::add_int(g[t][h], S::mul_int(c[t][h], factor));
    }
}

// Q4_K, Q5_K: eight blocks of 32, each with a scale and a minimum
template <class S, int kTokens, Sum kSum>
void block_with_minimums(const Panel<S> & p, const Activations & x, int64_t at, int, float * y, Fetch & fetch) {
    using I = typename S::I;
    using F = typename S::F;
    I g[kTokens][S::kHigh];
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++)
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) g[t][h] = S::zero();
    for (int s = 0; s < 8; s++) {
        fetch.some();
        I c[kTokens][S::kHigh];
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++)
            BMX_UNROLL
            for (int h = 0; h < S::kHigh; h++) c[t][h] = S::zero();
        dot_products<S, kTokens, 8, kSum>(p.weights + s * 8, x.values + at * kBlock + s * 32, c);
        add_times<S, kTokens>(c, p.factors[s], g);
    }
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++) {
        const int16_t * sums = x.sums32 + (at + t) * 8;
        const F scale = S::set1f(x.scales[at + t]);
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) {
            I e = S::zero();
            BMX_UNROLL
            for (int j = 0; j < 4; j++) e = S::dot16(e, S::load(p.minimums[j][h]), S::broadcast(sums + 2 * j));
            const F value = block_value<S>(g[t][h], S::loadf(p.of_factors[h]), e, S::loadf(p.of_minimums[h]));
            float * out = y + t * panel_rows<S>() + h * S::kLanes;
            S::storef(out, S::fma(value, scale, S::loadf(out)));
        }
    }
}

// Q6_K: sixteen blocks of 16, each with a scale; bytes are 32 too large, and the sums start with the correction
template <class S, int kTokens, Sum>
void block_q6_k(const Panel<S> & p, const Activations & x, int64_t at, int, float * y, Fetch & fetch) {
    using I = typename S::I;
    using F = typename S::F;
    I g[kTokens][S::kHigh];
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++)
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) g[t][h] = S::zero();
    for (int s = 0; s < 16; s++) {
        fetch.some();
        I c[kTokens][S::kHigh];
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const I start = S::broadcast(x.sums16 + (at + t) * 16 + s);
            BMX_UNROLL
            for (int h = 0; h < S::kHigh; h++) c[t][h] = start;
        }
        dot_products<S, kTokens, 4, Sum::of_6_bits>(p.weights + s * 4, x.values + at * kBlock + s * 16, c);
        add_times<S, kTokens>(c, p.factors[s], g);
    }
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++) {
        const F scale = S::set1f(x.scales[at + t]);
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) {
            float * out = y + t * panel_rows<S>() + h * S::kLanes;
            S::storef(out, S::fma(S::mul(S::to_float(g[t][h]), S::loadf(p.of_factors[h])), scale, S::loadf(out)));
        }
    }
}

// Q8_0, Q4_0: blocks of 32, each with a scale for weights and one for activations
template <class S, int kTokens, Sum kSum>
void block_of_32(const Panel<S> & p, const Activations & x, int64_t at, int n_sub, float * y, Fetch & fetch) {
    using I = typename S::I;
    using F = typename S::F;
    F g[kTokens][S::kHigh];
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++)
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) g[t][h] = S::loadf(y + t * panel_rows<S>() + h * S::kLanes);
    for (int s = 0; s < n_sub; s++) {
        fetch.some();
        I c[kTokens][S::kHigh];
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const I start = kSum == Sum::of_bytes && S::kSignedBytes ? S::zero() : S::broadcast(x.sums16 + (at + t) * 16 + s);
            BMX_UNROLL
            for (int h = 0; h < S::kHigh; h++) c[t][h] = start;
        }
        dot_products<S, kTokens, 8, kSum>(p.weights + s * 8, x.values + at * kBlock + s * 32, c);
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) {
            const F scale = S::loadf(p.scales[s][h]);
            BMX_UNROLL
            for (int t = 0; t < kTokens; t++) {
                const F both = S::mul(scale, S::broadcastf(x.scales + (at + t) * 8 + s));
                g[t][h] = S::fma(S::to_float(c[t][h]), both, g[t][h]);
            }
        }
    }
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++)
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) S::storef(y + t * panel_rows<S>() + h * S::kLanes, g[t][h]);
}

template <class S>
using BlockFunction = void (*)(const Panel<S> &, const Activations &, int64_t at, int n_sub, float * y, Fetch & fetch);

// All tokens over one block, in as few passes of at most kWide tokens as possible and of similar width, since a narrow pass
// waits for its own latency.
template <class S>
void all_tokens(
    const BlockFunction<S> * by_tokens, const Panel<S> & p, const Activations & x, int64_t block, int n_sub, float * y, Fetch fetch) {
    const int64_t start = block * x.n_tokens;
    const int64_t n_passes = (x.n_tokens + S::kWide - 1) / S::kWide;
    fetch.spread(8 * n_passes);
    for (int64_t i = 0, m = 0; i < n_passes; i++) {
        const int64_t end = x.n_tokens * (i + 1) / n_passes;
        by_tokens[end - m - 1](p, x, start + m, n_sub, y + m * panel_rows<S>(), fetch);
        m = end;
    }
}

#define BMX_BY_TOKENS(name, function, sum)                                                                        \
    template <class S, int... kTokens>                                                             \
    const BlockFunction<S> * name(std::integer_sequence<int, kTokens...>) {                                       \
        static const BlockFunction<S> functions[] = {function<S, kTokens + 1, sum>...};                 \
        return functions;                                                                                         \
    }
BMX_BY_TOKENS(q4_k_functions, block_with_minimums, Sum::of_nibbles)
BMX_BY_TOKENS(q5_k_functions, block_with_minimums, Sum::of_5_bits)
BMX_BY_TOKENS(q6_k_functions, block_q6_k, Sum::of_6_bits)
BMX_BY_TOKENS(q8_0_functions, block_of_32, Sum::of_bytes)
BMX_BY_TOKENS(q4_0_functions, block_of_32, Sum::of_nibbles)
#undef BMX_BY_TOKENS

template <class S>
const BlockFunction<S> * functions_of(Weight weight) {
    const auto counts = std::make_integer_sequence<int, S::kWide>();
    switch (weight) {
        case Weight::q4_k: return q4_k_functions<S>(counts);
        case Weight::q5_k: return q5_k_functions<S>(counts);
        case Weight::q6_k: return q6_k_functions<S>(counts);
        case Weight::q8_0: return q8_0_functions<S>(counts);
        default: return q4_0_functions<S>(counts);
    }
}

// ---- F16 weights: float32 products with unrounded activations

template <class S, int kTokens>
void block_f16(const FloatPanel<S> & p, const float * x, size_t stride, int n, float * y, int y_stride) {
    using F = typename S::F;
    F g[kTokens][S::kHigh];
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++)
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) g[t][h] = S::loadf(y + t * y_stride + h * S::kLanes);
    for (int k = 0; k < n; k++) {
        F v[S::kHigh];
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) v[h] = S::loadf(p.weights[k][h]);
        BMX_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const F one = S::broadcastf(x + t * stride + k);
            BMX_UNROLL
            for (int h = 0; h < S::kHigh; h++) g[t][h] = S::fma(v[h], one, g[t][h]);
        }
    }
    BMX_UNROLL
    for (int t = 0; t < kTokens; t++)
        BMX_UNROLL
        for (int h = 0; h < S::kHigh; h++) S::storef(y + t * y_stride + h * S::kLanes, g[t][h]);
}

template <class S>
using FloatFunction = void (*)(const FloatPanel<S> &, const float *, size_t, int, float *, int);

template <class S, int... kTokens>
const FloatFunction<S> * f16_functions(std::integer_sequence<int, kTokens...>) {
    static const FloatFunction<S> functions[] = {block_f16<S, kTokens + 1>...};
    return functions;
}

template <class S>
void unpack_f16(FloatPanel<S> & p, const char * row, size_t stride, int n) {
    for (int h = 0; h < S::kHigh; h++, row += S::kLanes * stride) {
        for (int k = 0; k < n; k += 8) {
            typename S::I v[4];
            S::load4(row, stride, 2 * size_t(k), v);
            BMX_UNROLL
            for (int j = 0; j < 4; j++) {
                S::storef(p.weights[k + 2 * j][h], S::low_halves(v[j]));
                S::storef(p.weights[k + 2 * j + 1][h], S::high_halves(v[j]));
            }
        }
    }
}

// All tokens, or rows of attention, over n columns of a panel.
template <class S>
void multiply_floats(const FloatPanel<S> & p, const float * x, size_t stride, int n, int64_t n_tokens, float * y, int y_stride) {
    const auto * functions = f16_functions<S>(std::make_integer_sequence<int, S::kWide>());
    for (int64_t m = 0; m < n_tokens; m += S::kWide) {
        const int tokens = int(std::min<int64_t>(S::kWide, n_tokens - m));
        functions[tokens - 1](p, x + m * stride, stride, n, y + m * y_stride, y_stride);
    }
}

// ---- a whole panel

// Part `index` of `count` of the data that is read next; in address order, so that each page is translated once.
inline Fetch next_part(const Rows & rows, int64_t index, int64_t count) {
    if (!rows.next) return {nullptr, nullptr, 0};
    return {rows.next + rows.next_bytes * index / count, rows.next + rows.next_bytes * (index + 1) / count, 1};
}

// Some columns of a panel's rows. Missing rows repeat the last one; their results are not used.
template <int kRows>
struct Tile {
    const char * data;
    size_t stride;

    Tile(const Rows & rows, size_t offset, size_t n_bytes, char * copy) : data(rows.data + offset), stride(rows.stride) {
        if (rows.n_rows == kRows) return;
        for (int r = 0; r < kRows; r++) memcpy(copy + r * n_bytes, data + std::min(r, rows.n_rows - 1) * stride, n_bytes);
        data = copy;
        stride = n_bytes;
    }
};

template <class S>
struct Workspace {
    union {
        Panel<S> panel;
        FloatPanel<S> floats;
    };
    alignas(64) char copy[panel_rows<S>() * 8 * 34];  // the largest type for 256 columns is Q8_0
};

template <class S>
void float_panel(const Rows & rows, const Activations & x, float * y, int y_stride, Workspace<S> & work) {
    FloatPanel<S> & p = work.floats;
    const int64_t n_steps = (x.n_columns + p.kColumns - 1) / p.kColumns;
    for (int64_t step = 0; step < n_steps; step++) {
        const int64_t k = step * p.kColumns;
        const int n = int(std::min<int64_t>(p.kColumns, x.n_columns - k));
        const Tile<panel_rows<S>()> tile(rows, 2 * k, 2 * n, work.copy);
        unpack_f16(p, tile.data, tile.stride, n);
        next_part(rows, step, n_steps).all();
        multiply_floats(p, x.floats + k, x.n_columns, n, x.n_tokens, y, y_stride);
    }
}

template <class S>
void panel(const Rows & rows, const Activations & x, float * y, char * scratch) {
    Workspace<S> & work = *reinterpret_cast<Workspace<S> *>(scratch);
    if (x.n_tokens <= S::Few::most(rows.weight)) return S::Few::multiply(rows, x, y, rows_of_a_panel<S>(x.n_tokens), work.copy);
    memset(y, 0, x.n_tokens * panel_rows<S>() * sizeof(float));
    if (rows.weight == Weight::f16) return float_panel<S>(rows, x, y, panel_rows<S>(), work);
    const auto * functions = functions_of<S>(rows.weight);
    const BlockSize size = block_size(rows.weight);
    const int64_t n_blocks = x.n_blocks();
    for (int64_t b = 0; b < n_blocks; b++) {
        const int n_columns = int(std::min<int64_t>(kBlock, x.n_columns - b * kBlock));
        const size_t n_bytes = size_t(n_columns / size.columns) * size.bytes;
        const Tile<panel_rows<S>()> tile(rows, b * (kBlock / size.columns) * size.bytes, n_bytes, work.copy);
        unpack<S>(rows.weight, work.panel, tile.data, tile.stride, n_columns / 32);
        all_tokens<S>(functions, work.panel, x, b, n_columns / 32, y, next_part(rows, b, n_blocks));
    }
}

template <class S>
constexpr size_t scratch_bytes() {
    return sizeof(Workspace<S>);
}

}  // namespace
}  // namespace bmx
