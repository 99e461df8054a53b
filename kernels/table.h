// The kernels of one instruction set as a table of functions, and the data they share.
//
// A matrix product y[m][n] = sum_k w[n][k] x[m][k] is computed panel by panel: `rows` rows of w are unpacked, 256 columns
// at a time, into a layout in which one vector holds four consecutive columns of many rows; then all tokens m pass over
// it while it is in the first-level cache. Activations are rounded to int8 as ggml rounds them, once for all consumers.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__GNUC__)
#define BMX_INLINE inline __attribute__((always_inline))
#define BMX_UNROLL _Pragma("GCC unroll 16")
#define BMX_PREFETCH(address) __builtin_prefetch(address, 0, 2)
// Keeps the compiler from computing values that depend on a number too early, which would use up the registers.
#define BMX_OPAQUE(number) __asm__("" : "+r"(number))
#else
#define BMX_INLINE inline
#define BMX_UNROLL
#define BMX_PREFETCH(address) (void)(address)
#define BMX_OPAQUE(number) (void)(number)
#endif

namespace bmx {

constexpr int kBlock = 256;  // columns unpacked at a time: a K-quant's super-block

// How weights are stored; the numbers are ggml's own, see ggml_type.
enum class Weight : int { f16 = 1, q4_0 = 2, q8_0 = 8, q4_k = 12, q5_k = 13, q6_k = 14 };

// How activations are rounded: one scale per 256 (as ggml's Q8_K), per 32 (as Q8_0), or not at all.
enum class Rounding : int { per_256, per_32, none };

inline Rounding rounding_of(Weight weight) {
    if (weight == Weight::f16) return Rounding::none;
    return weight == Weight::q4_0 || weight == Weight::q8_0 ? Rounding::per_32 : Rounding::per_256;
}

// Bytes of 256 columns of a row (32 for Q4_0 and Q8_0, one for F16), and this number of columns.
struct BlockSize {
    int columns, bytes;
};

inline BlockSize block_size(Weight weight) {
    switch (weight) {
        case Weight::f16: return {1, 2};
        case Weight::q4_0: return {32, 18};
        case Weight::q8_0: return {32, 34};
        case Weight::q4_k: return {256, 144};
        case Weight::q5_k: return {256, 176};
        case Weight::q6_k: return {256, 210};
    }
    return {0, 0};
}

// Rounded activations of one product: block b of token m is at index b * n_tokens + m of each array.
struct Activations {
    Rounding rounding;
    int64_t n_tokens, n_columns;
    int8_t * values;   // [256]
    float * scales;    // [1], or [8] with per_32
    int32_t * sums16;  // [16]: sums of 16 values each; with per_32 the first 8 are sums of 32
    int16_t * sums32;  // [8]: sums of 32 values each, for the minimums of Q4_K and Q5_K
    uint16_t * split_sums;  // [16]: sums32 as bfloat16, multiples of 32, then remainders; where the table splits them
    const float * floats;  // [n_tokens][n_columns], with Rounding::none
    int64_t n_blocks() const { return (n_columns + kBlock - 1) / kBlock; }
};

// Some rows of a weight matrix, at most as many as the table's panels have.
struct Rows {
    Weight weight;
    const char * data;
    size_t stride;  // bytes from row to row
    int n_rows;
    const char * next;  // the next rows of the same matrix, for prefetching; or null
    size_t next_bytes;
    const char * after;  // the rows multiplied right after these, if they are in another matrix; or null
};

// Rows of attention over the same cells, at most kMostAttentionRows, each of head_size values: a multiple of 32, at most
// kMostHeadSize.
constexpr int kMostAttentionRows = 64, kMostHeadSize = 128;
struct AttentionRows {
    const float * queries;  // [n_rows][head_size], scaled
    float * out;            // [n_rows][head_size]
    int n_rows, head_size;
    const int32_t * cells;  // cells that are seen, in the order of the sum
    int n_cells;
    const int32_t * n_seen;  // how many of them each row sees, from the first on; at least as many as the row before
    const char * keys;       // of a cell, in half precision
    size_t key_stride;       // bytes from cell to cell
    const char * values;
    size_t value_stride;
};

struct Table {
    const char * name;
    int (*rows)(int64_t n_tokens);  // of a panel
    // Number of tokens after the last one whose activations may be read but do not count; with any, sums are split too.
    int spare_tokens;
    // Rounds one token, x[n_columns], into its place in the blocks.
    void (*round)(const Activations & to, int64_t token, const float * x);
    // y[m][r] = products of all tokens with the rows; y holds n_tokens * rows(n_tokens) floats, scratch holds
    // scratch_bytes, both 64-byte aligned.
    void (*panel)(const Rows & rows, const Activations & x, float * y, char * scratch);
    size_t scratch_bytes;
    // out[i] = silu(gate[i]) * up[i]; n is a multiple of the vectors' length
    void (*swiglu)(const float * gate, const float * up, float * out, int n);
    float (*sum_of_squares)(const float * x, int64_t n);
    // Multiplies and adds bytes on registers alone, for benchmarks; returns the number of operations, and changes *sum, so
    // that the compiler leaves none out. Null where the number would mean nothing.
    int64_t (*multiply_bytes)(int64_t rounds, int32_t * sum);
    // Scratch holds attention_bytes, 64-byte aligned. Null where ggml's attention is used.
    void (*attend)(const AttentionRows & rows, char * scratch);
    size_t attention_bytes;
};

const Table * scalar_table();
// Null if the library was built without this instruction set.
const Table * avx2_table();
const Table * avxvnni_table();
const Table * avx512vnni_table();
const Table * amx_table();

float half_to_float(uint16_t half);

}  // namespace bmx
