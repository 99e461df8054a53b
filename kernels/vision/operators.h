// The image encoder's operators on one instruction set, independent of their caller.
#pragma once

#include "table.h"

namespace bmx {
namespace vision {

// Threads that share work.
class Workers {
public:
    using Task = void (*)(void * data, size_t index);
    // Calls task(data, 0 … n - 1) and returns when all have returned; may throw.
    virtual void run(size_t n, Task task, void * data) = 0;

protected:
    ~Workers() = default;
};

// Up to this many inputs, sums of products of bytes fit into 32 bits.
constexpr int64_t kMostInputs = 65536;

// y = act(x w + bias) + residual, x rounded to bytes by one scale and one zero point as DynamicQuantizeLinear does.
struct Linear {
    int64_t n_in, n_out;      // multiples of 64; n_in up to kMostInputs
    const int8_t * weights;   // [n_in][n_out]
    const float * scales;     // [n_out]
    const float * bias;       // [n_out]
    const int32_t * column_sums;  // [n_out], from Table::column_sums
    bool silu;
};

// Throws std::bad_alloc if there is no memory.
// x [n_tokens][n_in], residual (or null) and y [n_tokens][n_out].
void linear(const Table & table, const Linear & layer, const float * x, int64_t n_tokens, const float * residual, float * y, Workers & workers);

// The largest tested size; the code has no other limit.
constexpr int kMostHeadSize = 128;

// Every token attends to every token; q, k, v and y [n_tokens][n_heads * head_size], the head size a multiple of 32 up to
// kMostHeadSize.
struct Heads {
    const float * q, * k, * v;
    float * y;
    int64_t n_tokens, n_heads, head_size;
};

void attention(const Table & table, const Heads & heads, Workers & workers);

// Returns null, or the name of a result that differs from plain loops.
const char * self_test(const Table & table);

}  // namespace vision
}  // namespace bmx
