// Operations on activations alone, over the same vector operations as panel.h: rounding, SwiGLU, sums of squares.
#pragma once

#include <algorithm>

#include "table.h"

namespace bmx {
namespace {

// ---- rounding activations; the same values as scalar.cpp's

template <class S>
void round_256(const float * x, int8_t * values, float & scale, int32_t * sums16, int16_t * sums32) {
    using F = typename S::F;
    F low = S::zerof(), high = S::zerof();
    for (int i = 0; i < kBlock; i += S::kLanes) {
        const F v = S::loadf(x + i);
        low = S::minf(v, low);
        high = S::maxf(v, high);
    }
    const float smallest = S::reduce_min(low), greatest = S::reduce_max(high);
    const float largest = greatest >= -smallest ? greatest : smallest;
    const float inverse = largest != 0 ? -127.0f / largest : 0.0f;
    scale = largest != 0 ? 1 / inverse : 0.0f;
    for (int i = 0; i < kBlock; i += 16) {
        const int sum = S::round16(x + i, inverse, values + i);
        sums16[i / 16] = -32 * sum;
        if (i % 32 == 0) sums32[i / 32] = int16_t(sum);
        else sums32[i / 32] = int16_t(sums32[i / 32] + sum);
    }
}

template <class S>
void round_32(const float * x, int8_t * values, float & scale, int32_t & sum) {
    using F = typename S::F;
    F low = S::zerof(), high = S::zerof();
    for (int i = 0; i < 32; i += S::kLanes) {
        const F v = S::loadf(x + i);
        low = S::minf(v, low);
        high = S::maxf(v, high);
    }
    const float largest = std::max(S::reduce_max(high), -S::reduce_min(low));
    scale = largest / 127.0f;
    const float inverse = scale != 0 ? 1 / scale : 0.0f;
    sum = -(S::kSignedBytes ? 8 : 128) * (S::round16(x, inverse, values) + S::round16(x + 16, inverse, values + 16));
}

template <class S>
void round_token(const Activations & to, int64_t token, const float * x) {
    for (int64_t b = 0; b < to.n_blocks(); b++, x += kBlock) {
        const int64_t at = b * to.n_tokens + token;
        int8_t * values = to.values + at * kBlock;
        if (to.rounding == Rounding::per_256) {
            round_256<S>(x, values, to.scales[at], to.sums16 + at * 16, to.sums32 + at * 8);
            continue;
        }
        const int n_sub = int(std::min<int64_t>(8, (to.n_columns - b * kBlock) / 32));
        for (int s = 0; s < n_sub; s++) round_32<S>(x + s * 32, values + s * 32, to.scales[at * 8 + s], to.sums16[at * 16 + s]);
    }
}

// ---- operations fused with products

// exp(x) for x up to 88: 2^k e^r with |r| <= ln 2 / 2, by the polynomial of Cephes' expf.
template <class S>
typename S::F exponential(typename S::F x) {
    using F = typename S::F;
    x = S::minf(S::set1f(88.0f), S::maxf(S::set1f(-87.0f), x));
    const typename S::I k = S::to_int(S::mul(x, S::set1f(1.44269504f)));
    F r = S::fnma(S::to_float(k), S::set1f(0.693359375f), x);
    r = S::fma(S::to_float(k), S::set1f(2.12194440e-4f), r);
    F e = S::set1f(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        e = S::fma(e, r, S::set1f(c));
    e = S::fma(S::mul(e, r), r, S::add(r, S::set1f(1.0f)));
    return S::mul(e, S::as_float(S::template sll<23>(S::add_int(k, S::set1(127)))));
}

// out = silu(gate) * up; all three have room for n rounded up to whole panels
template <class S>
void swiglu(const float * gate, const float * up, float * out, int n) {
    using F = typename S::F;
    const F one = S::set1f(1.0f);
    for (int i = 0; i < n; i += S::kLanes) {
        const F g = S::loadf(gate + i);
        const F e = exponential<S>(S::sub(S::zerof(), g));
        S::storef(out + i, S::mul(S::div(g, S::add(one, e)), S::loadf(up + i)));
    }
}

template <class S>
float sum_of_squares(const float * x, int64_t n) {
    // in short runs, so that rounding errors do not add up over a long row
    double total = 0;
    int64_t i = 0;
    while (i + S::kLanes <= n) {
        typename S::F sum = S::zerof();
        const int64_t end = std::min(n, i + 16 * S::kLanes);
        for (; i + S::kLanes <= end; i += S::kLanes) sum = S::fma(S::loadf(x + i), S::loadf(x + i), sum);
        total += S::reduce_add(sum);
    }
    for (; i < n; i++) total += double(x[i]) * x[i];
    return float(total);
}

}  // namespace
}  // namespace bmx
