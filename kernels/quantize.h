// Quantizes to the same bytes as ggml, a vector of blocks at a time.
#pragma once

#include "plugin.h"

extern "C" {

// Whether this processor can quantize to a type, one of Q4_K, Q5_K, Q6_K, Q8_0, Q4_0.
BMX_EXPORT int bimedix_edge_quantizes(int type);

// Quantizes rows of finite float32 values to blocks; n_values is a multiple of the block. The bytes are those of ggml's
// quantize_row_*_ref. Returns 0, or 1 where bimedix_edge_quantizes returns 0.
BMX_EXPORT int bimedix_edge_quantize(int type, const float * x, void * y, long long n_values);
}
