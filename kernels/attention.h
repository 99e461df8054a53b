// Attention over a cache of keys and values in half precision, on all threads.
#pragma once

#include "graph.h"

namespace bmx {

// Whether a node is attention that we compute, provided that its mask only hides cells.
bool is_our_attention(const Table & table, const ggml_tensor * node);

// Computes the attention; its mask must be computed already. Returns `declined` if the mask does more than hide cells.
enum class Attended { done, declined, no_memory };
Attended compute_attention(Context & context, ggml_tensor * node);

}  // namespace bmx
