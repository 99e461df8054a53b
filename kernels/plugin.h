// The library's functions beside ggml's entry point; bimedix_edge/decoder/kernels.py calls them through ctypes.
#pragma once

#if defined(_WIN32)
#define BMX_EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define BMX_EXPORT __attribute__((visibility("default")))
#else
#define BMX_EXPORT
#endif

extern "C" {

// The version of llama-cpp-python that the library was built for.
BMX_EXPORT const char * bimedix_edge_kernels_version(void);

// Chooses kernels by name, or the best with `auto`, and tests them. Returns 0 with their name in `message`, 1 if this
// processor has no kernels, or 2 with the reason if they failed the test. Call it before ggml_backend_init.
BMX_EXPORT int bimedix_edge_kernels_choose(const char * name, char * message, int size);

// From now on the plug-in declines all operations.
BMX_EXPORT void bimedix_edge_kernels_off(void);

// Whether this library is registered with the ggml it is linked to, llama.cpp's. A process may have loaded ggml twice.
BMX_EXPORT int bimedix_edge_kernels_registered(void);

// y[m][n] = sum_k w[n][k] x[m][k] with the named kernels, for tests and benchmarks: `weight` is a ggml_type, `stride` the
// bytes from row to row. Returns 0; 1 if the kernels cannot run on this machine or do not compute such a product; 2 if there
// is no memory.
BMX_EXPORT int bimedix_edge_kernels_multiply(
    const char * name, int weight, const void * w, long long stride, long long n_rows, const float * x, long long n_tokens,
    long long n_columns, float * y, int n_threads);

// Attention with the named kernels, for tests: q[n_heads][n_tokens][head_size], k and v[n_cells][n_kv_heads][head_size] in half
// precision, mask[n_tokens][n_cells], 0 or minus infinity in half precision, out[n_tokens][n_heads][head_size]. Returns as above.
BMX_EXPORT int bimedix_edge_kernels_attend(
    const char * name, const float * q, int n_tokens, int n_heads, int head_size, const void * k, const void * v, int n_cells,
    int n_kv_heads, const void * mask, float scale, float * out, int n_threads);

// Upper bounds of this machine's speed, for benchmarks, measured in about `seconds`: sustained reading, and best products.
// Bytes per second that all threads together read from memory; 0 if there is no memory for the test.
BMX_EXPORT double bimedix_edge_kernels_read_bandwidth(int n_threads, double seconds);

// Multiplications and additions of bytes per second of the named kernels' instructions on registers; 0 if they cannot run
// on this machine.
BMX_EXPORT double bimedix_edge_kernels_int8_ops(const char * name, int n_threads, double seconds);
}
