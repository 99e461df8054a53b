// The operations that the image encoder needs of an instruction set: products of bytes and of bfloat16, and the steps before
// and after them.
//
// Both kinds of product have one layout. A row of activations is a sequence of groups of 32 bits: four bytes, or two
// bfloat16. Weights are panels of 64 columns (the last one may have 32); a panel is, group by group, its columns' 32 bits
// side by side. Sixteen columns are one vector of 512 bits, and sixteen groups of these one of AMX's tiles.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../table.h"

namespace bmx {
namespace vision {

constexpr int kLanes = 16;          // columns of a vector
constexpr int kPanelColumns = 64;   // of a panel
constexpr int kGroupBytes = 4;      // of a row, and of a column
constexpr int kMostTokens = 32;     // of one product
// Rows are one cache line further apart than they are long: at multiples of 4 KB they would all map to the same few sets of
// the first-level cache.
constexpr int kSpareBytes = 64;

// Prefetches rows of some lines of 64 bytes, a few at a time, long before they are used.
class Fetch {
public:
    Fetch(const void * rows, size_t stride, int64_t n_rows, int n_lines)
        : row_(static_cast<const char *>(rows)), stride_(stride), left_(n_rows), n_lines_(n_lines) {}

    void step(int64_t n_rows) {
        for (int64_t i = std::min(n_rows, left_); i > 0; i--, left_--, row_ += stride_) {
            for (int line = 0; line < n_lines_; line++) BMX_PREFETCH(row_ + 64 * line);
        }
    }

private:
    const char * row_;
    size_t stride_;
    int64_t left_;
    int n_lines_;
};

// c[t][i] = sum over groups of a[t] and b[i]. 16 or 32 rows of a may be read, and of c overwritten, even with fewer tokens.
struct Product {
    const char * a;
    size_t a_stride;  // bytes from token to token
    int n_tokens;
    const char * b;   // panels, one after the other
    int n_columns;
    int64_t n_groups;  // a multiple of 16
    void * c;         // [n_tokens][c_stride] of int32 or float, 64-byte aligned
    size_t c_stride;  // in elements
    Fetch * fetch;  // for data that is multiplied later; or null
    int64_t n_fetch;  // rows to prefetch, spread evenly over the products
};

inline size_t panel_bytes(int64_t n_groups) { return size_t(n_groups) * kPanelColumns * kGroupBytes; }

// y = act(x w + bias) + residual for some tokens and columns, from the sums of rounded x times w.
struct Finish {
    const int32_t * sums;  // [n_tokens][sums_stride]
    size_t sums_stride;
    const int32_t * offsets;  // [n_columns]: contribution of x's zero point
    const float * factors;    // [n_columns]: scales of x and w
    const float * bias;       // [n_columns]
    const float * residual;   // [n_tokens][stride], or null
    bool silu;                // act(v) = v / (1 + exp(-v))
    float * y;                // [n_tokens][stride]
    size_t stride;
    int n_tokens, n_columns;
};

// One head's attention for some queries.
struct Scores {
    const float * scores;  // [n_queries][stride], for exp2
    size_t stride;
    int n_queries, n_keys;
    uint16_t * weights;  // bfloat16 [n_queries][weights_stride], zeros from n_keys on
    size_t weights_stride;
    float * sums;  // [n_queries], of the weights as they were rounded
};

struct Table {
    const char * name;
    int tokens;  // the best number for one product, at most kMostTokens
    // u8 times s8, to int32
    void (*multiply_bytes)(const Product & product);
    // smallest and largest of n values, a multiple of 64, and of zero; NaN if one is NaN or infinite
    void (*range)(const float * x, int64_t n, float * low, float * high);
    // round(x * inverse) + zero, ties to even, within 0 and 255
    void (*round)(const float * x, int64_t n, float inverse, int zero, uint8_t * to);
    // of weights [n_rows][n_columns], n_columns a multiple of 64
    void (*column_sums)(const int8_t * weights, int64_t n_rows, int64_t n_columns, int32_t * sums);
    // rows of weights, 4 n_groups of them, to n_panels whole panels, 64-byte aligned
    void (*pack)(const int8_t * weights, size_t stride, int64_t n_groups, int n_panels, char * to);
    void (*finish)(const Finish & finish);
    // bfloat16, to float; null, like the following, where ONNX Runtime's float32 is as fast
    void (*multiply_halves)(const Product & product);
    // n_rows of head_size floats, times a factor, to bfloat16; both strides in elements
    void (*narrow)(const float * x, size_t stride, int n_rows, int head_size, float factor, uint16_t * to, size_t to_stride);
    // the same as weights of a product whose columns are the rows; n_rows is padded with zeros to a multiple of 32
    void (*pack_keys)(const float * x, size_t stride, int n_rows, int head_size, uint16_t * to);
    // and of one whose columns are x's
    void (*pack_values)(const float * x, size_t stride, int n_rows, int head_size, uint16_t * to);
    void (*weigh)(const Scores & scores);
    // y = x / sums, row by row
    void (*divide)(const float * x, size_t x_stride, const float * sums, int n_rows, int head_size, float * y, size_t stride);
};

// Null if the library was built without this instruction set.
const Table * avx512vnni_table();
const Table * avx512bf16_table();
const Table * amx_table();

}  // namespace vision
}  // namespace bmx
