// Quantizing as ggml does it, to the same bytes, a vector of blocks at a time.
#pragma once

#include "plugin.h"

extern "C" {

// Whether this processor can, and for which types: Q4_K, Q5_K, Q6_K, Q8_0, Q4_0.
BMX_EXPORT int bimedix_edge_quantizes(int type);

// Rows of float32 values, all of them finite, to blocks; n_values is a multiple of the block. The bytes are those of ggml's
// quantize_row_*_ref. Returns 0, or 1 where bimedix_edge_quantizes says no.
BMX_EXPORT int bimedix_edge_quantize(int type, const float * x, void * y, long long n_values);
}
