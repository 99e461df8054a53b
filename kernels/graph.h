// Walks a graph of ggml: the kernels compute what they can, fused where possible; ggml's CPU backend computes the rest.
#pragma once

#include "ggml_abi.h"
#include "matmul.h"

namespace bmx {

struct Context {
    const Table * table;
    ggml_backend_t cpu;
    int n_threads;
    ggml_abort_callback abort_callback;
    void * abort_data;
    Scratch scratch;
};

// Whether a node is a product that the kernels compute.
bool is_ours(const ggml_tensor * node);

ggml_status compute_graph(Context & context, ggml_cgraph * graph);

// Moves products of the same activations next to each other: llama.cpp computes Q, rotates it, then computes K and V.
void optimize_graph(ggml_cgraph * graph);

}  // namespace bmx
