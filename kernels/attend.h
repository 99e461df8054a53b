// Attention of some rows of queries over the same cells of the cache, written over the vector operations of panel.h.
//
// Each row visits the cells it sees in order, a panel's rows of them at a time, and keeps running sums in float32. So its
// result depends on these cells alone, not on other cells between them, nor on the rows computed in the same call.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "elementwise.h"
#include "panel.h"

namespace bmx {
namespace {

template <class S>
struct AttentionWorkspace {
    static constexpr int kCells = panel_rows<S>();
    FloatPanel<S> panel;
    alignas(64) float weights[kMostAttentionRows][kCells];  // per cell: first the products, then the factors of the values
    float most[kMostAttentionRows], sums[kMostAttentionRows];
    alignas(64) uint16_t copy[kCells][kMostHeadSize];
};

// Gathers cells into adjacent rows; the last cell is repeated up to a panel's number of rows.
template <class S>
struct Cells {
    const char * data;
    size_t stride;

    Cells(const char * base, size_t base_stride, const int32_t * cells, int n, int head_size, uint16_t (*copy)[kMostHeadSize])
        : data(base + cells[0] * base_stride), stride(base_stride) {
        constexpr int kCells = panel_rows<S>();
        if (n == kCells && cells[n - 1] - cells[0] == n - 1) return;
        for (int i = 0; i < kCells; i++) memcpy(copy[i], base + cells[std::min(i, n - 1)] * base_stride, head_size * sizeof(uint16_t));
        data = reinterpret_cast<const char *>(copy[0]);
        stride = sizeof(copy[0]);
    }
};

// Turns products into weights, exp(product - the largest so far), and rescales the earlier sums accordingly.
template <class S>
void weigh(float * weights, int n_seen, float & most, float & sum, float * out, int head_size) {
    using F = typename S::F;
    constexpr int kCells = panel_rows<S>();
    for (int i = n_seen; i < kCells; i++) weights[i] = -std::numeric_limits<float>::infinity();
    F high = S::loadf(weights);
    for (int i = S::kLanes; i < kCells; i += S::kLanes) high = S::maxf(high, S::loadf(weights + i));
    const float now = std::max(most, S::reduce_max(high));
    F total = S::zerof();
    for (int i = 0; i < kCells; i += S::kLanes) S::storef(weights + i, exponential<S>(S::sub(S::loadf(weights + i), S::set1f(now))));
    for (int i = n_seen; i < kCells; i++) weights[i] = 0;
    for (int i = 0; i < kCells; i += S::kLanes) total = S::add(total, S::loadf(weights + i));
    if (now != most) {
        const float less = std::exp(most - now);  // 0 the first time
        sum *= less;
        for (int i = 0; i < head_size; i += S::kLanes) S::storef(out + i, S::mul(S::loadf(out + i), S::set1f(less)));
        most = now;
    }
    sum += S::reduce_add(total);
}

// Values, whose columns become the panel's rows.
template <class S>
void unpack_values(FloatPanel<S> & p, const char * data, size_t stride, int n) {
    for (int i = 0; i < n; i++) {
        for (int h = 0; h < S::kHigh; h++) {
            alignas(64) uint16_t halves[S::kLanes];
            memcpy(halves, data + i * stride + h * sizeof(halves), sizeof(halves));
            S::storef(p.weights[i][h], S::load_halves(halves));
        }
    }
}

template <class S>
void attend(const AttentionRows & rows, char * scratch) {
    AttentionWorkspace<S> & work = *reinterpret_cast<AttentionWorkspace<S> *>(scratch);
    constexpr int kCells = AttentionWorkspace<S>::kCells;
    const int head_size = rows.head_size;
    memset(rows.out, 0, size_t(rows.n_rows) * head_size * sizeof(float));
    for (int r = 0; r < rows.n_rows; r++) {
        work.most[r] = -std::numeric_limits<float>::infinity();
        work.sums[r] = 0;
    }
    for (int first = 0; first < rows.n_cells; first += kCells) {
        const int n = std::min(kCells, rows.n_cells - first);
        int begin = 0;  // earlier rows see no cell of this part
        while (rows.n_seen[begin] <= first) begin++;
        const int n_rows = rows.n_rows - begin;
        const Cells<S> keys(rows.keys, rows.key_stride, rows.cells + first, n, head_size, work.copy);
        unpack_f16(work.panel, keys.data, keys.stride, head_size);
        memset(work.weights[begin], 0, n_rows * sizeof(work.weights[0]));
        multiply_floats(work.panel, rows.queries + begin * head_size, head_size, head_size, n_rows, work.weights[begin], kCells);
        for (int r = begin; r < rows.n_rows; r++)
            weigh<S>(work.weights[r], std::min(n, rows.n_seen[r] - first), work.most[r], work.sums[r], rows.out + r * head_size, head_size);
        const Cells<S> values(rows.values, rows.value_stride, rows.cells + first, n, head_size, work.copy);
        for (int column = 0; column < head_size; column += panel_rows<S>()) {
            unpack_values(work.panel, values.data + column * sizeof(uint16_t), values.stride, n);
            multiply_floats(work.panel, work.weights[begin], kCells, n, n_rows, rows.out + begin * head_size + column, head_size);
        }
    }
    for (int r = 0; r < rows.n_rows; r++) {
        float * const out = rows.out + r * head_size;
        for (int i = 0; i < head_size; i += S::kLanes) S::storef(out + i, S::div(S::loadf(out + i), S::set1f(work.sums[r])));
    }
}

}  // namespace
}  // namespace bmx
