// Attention over a cache of keys and values in half precision, on all threads.
#pragma once

#include "graph.h"

namespace bmx {

// Whether a node is attention that is computed here if its mask hides cells and does nothing else.
bool is_our_attention(const Table & table, const ggml_tensor * node);

// Computes it; its mask must have been computed. Returns `declined` where that mask is of another kind.
enum class Attended { done, declined, no_memory };
Attended compute_attention(Context & context, ggml_tensor * node);

}  // namespace bmx
