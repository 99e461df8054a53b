"""The decoder: a GGUF model in llama.cpp, its sampler, and the kernels that compute it."""
