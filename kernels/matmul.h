// Products of weight matrices with activations, and operations fused with them, on all threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "table.h"

namespace bmx {

struct Matrix {
    Weight weight;
    const char * data;
    size_t stride;  // bytes from row to row
    int64_t n_rows;
};

// y = W x, y = W x + residual, or y = silu(W x) * (V x), for every token.
struct Product {
    enum class Kind { store, add, swiglu } kind;
    Matrix w, v;
    float * y;
    int64_t y_stride;  // floats from token to token; the residual's is the same
    const float * residual;
};

// x is normalized first: x * weight / rms(x); the results are also stored where a pointer is given.
struct Norm {
    const float * weight;
    float epsilon;
    float * plain;  // without the weight; or null
    float * scaled;
};

// Products of the same activations, which are rounded once. Each y may share memory with x, or be its residual.
struct Work {
    const float * x;
    int64_t n_tokens, n_columns;
    const Norm * norm;  // or null
    std::vector<Product> products;
};

constexpr size_t kAlign = 64;  // bytes: a cache line, and the longest vector
inline size_t aligned(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

// Scratch memory that grows, and is kept between calls.
class Scratch {
public:
    ~Scratch();
    // 64-byte aligned; earlier content is lost. Null if there is no memory.
    char * at_least(size_t n_bytes);

private:
    char * data_ = nullptr;
    size_t size_ = 0;
};

// Tokens of one pass; a panel's results stay in the second-level cache. With more tokens, results must not share memory
// with x.
constexpr int64_t kMostTokens = 1024;

// Returns false if there is no memory for scratch; the results are incomplete then.
bool multiply(const Table & table, const Work & work, int n_threads, Scratch & scratch);

}  // namespace bmx
