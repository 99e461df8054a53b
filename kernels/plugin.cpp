// The plug-in: one ACCEL device that llama.cpp's scheduler puts ahead of its CPU backend.
//
// It accepts all operations of the CPU backend, so that a graph stays in one piece. It computes products of quantized
// weights itself, fused with their neighbours, and hands the nodes between them to its own CPU backend. Weights stay in
// ggml's CPU buffers or memory maps.
#include "plugin.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <new>
#include <utility>

#include "attention.h"
#include "ceilings.h"
#include "processor.h"
#include "ggml-cpu.h"
#include "graph.h"
#include "self_test.h"

#ifndef BMX_GGML_VERSION
#error "the build names the version of llama-cpp-python whose headers it uses"
#endif

namespace {

using namespace bmx;

const Table * chosen = nullptr;

struct Named {
    const char * name;
    const Table * (*table)();
    bool Features::* feature;
};

// the best first
const Named kTables[] = {
    {"amx", amx_table, &Features::amx},
    {"avx512vnni", avx512vnni_table, &Features::avx512vnni},
    {"avxvnni", avxvnni_table, &Features::avxvnni},
    {"avx2", avx2_table, &Features::avx2},
};

const Table * usable(const Named & named, const Features & features) { return features.*named.feature ? named.table() : nullptr; }

// ---- backend

Context & context_of(ggml_backend_t backend) { return *static_cast<Context *>(backend->context); }

const char * backend_name(ggml_backend_t) { return "bimedix-edge"; }

void free_backend(ggml_backend_t backend) {
    Context * context = static_cast<Context *>(backend->context);
    ggml_backend_free(context->cpu);
    delete context;
    delete backend;
}

ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    // no exception may pass through C: a failed allocation becomes a status, and so does a thread that cannot start
    try {
        Context & context = context_of(backend);
        // a backend created while the kernels were off computes only after they are on again
        if (!context.table) context.table = chosen;
        return compute_graph(context, graph);
    } catch (const std::bad_alloc &) {
        return GGML_STATUS_ALLOC_FAILED;
    } catch (...) {
        return GGML_STATUS_FAILED;
    }
}

void optimize(ggml_backend_t, ggml_cgraph * graph, ggml_backend_graph_optimize_params *) { optimize_graph(graph); }

void set_n_threads(ggml_backend_t backend, int n_threads) {
    context_of(backend).n_threads = n_threads;
    ggml_backend_cpu_set_n_threads(context_of(backend).cpu, n_threads);
}

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    context_of(backend).abort_callback = callback;
    context_of(backend).abort_data = data;
    ggml_backend_cpu_set_abort_callback(context_of(backend).cpu, callback, data);
}

ggml_guid_t guid() {
    static ggml_guid id = {0xb1, 0x3e, 0xd1, 0x5e, 0xed, 0x6e, 0x4b, 0x33, 0x9a, 0x01, 0x5c, 0x2f, 0x77, 0x10, 0x42, 0x8d};
    return &id;
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char *) {
    ggml_backend_t cpu = ggml_backend_cpu_init();
    if (!cpu) return nullptr;
    Context * context = new (std::nothrow) Context{chosen, cpu, 1, nullptr, nullptr, {}};
    ggml_backend * backend = new (std::nothrow) ggml_backend{};
    if (!context || !backend) {
        ggml_backend_free(cpu);
        delete context;
        delete backend;
        return nullptr;
    }
    backend->guid = guid();
    backend->iface.get_name = backend_name;
    backend->iface.free = free_backend;
    backend->iface.graph_compute = compute;
    backend->iface.graph_optimize = optimize;
    backend->device = device;
    backend->context = context;
    return backend;
}

// ---- device

ggml_backend_dev_t cpu_device() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

const char * device_name(ggml_backend_dev_t) { return "bimedix-edge"; }

const char * device_description(ggml_backend_dev_t) { return chosen ? chosen->name : "off"; }

void device_memory(ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = 0; }

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    memset(props, 0, sizeof(*props));
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
    props->caps.buffer_from_host_ptr = true;
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t) { return ggml_backend_cpu_buffer_type(); }

ggml_backend_buffer_t buffer_from_host(ggml_backend_dev_t, void * data, size_t size, size_t) {
    return ggml_backend_cpu_buffer_from_ptr(data, size);
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    if (!chosen) return false;
    return is_ours(op) || ggml_backend_dev_supports_op(cpu_device(), op);
}

// also while the kernels are off: a scheduler asserts that each backend supports its own buffer type
bool supports_buffer_type(ggml_backend_dev_t, ggml_backend_buffer_type_t type) { return ggml_backend_buft_is_host(type); }

// ---- registration

const char * reg_name(ggml_backend_reg_t) { return "bimedix-edge"; }

size_t device_count(ggml_backend_reg_t) { return 1; }

ggml_backend_dev_t device_at(ggml_backend_reg_t reg, size_t) {
    static ggml_backend_device device = [&] {
        ggml_backend_device d = {};
        d.iface.get_name = device_name;
        d.iface.get_description = device_description;
        d.iface.get_memory = device_memory;
        d.iface.get_type = device_type;
        d.iface.get_props = device_props;
        d.iface.init_backend = init_backend;
        d.iface.get_buffer_type = device_buffer_type;
        d.iface.buffer_from_host_ptr = buffer_from_host;
        d.iface.supports_op = supports_op;
        d.iface.supports_buft = supports_buffer_type;
        d.reg = reg;
        return d;
    }();
    return &device;
}

void * proc_address(ggml_backend_reg_t, const char * name) {
    if (!strcmp(name, "ggml_backend_set_n_threads")) return reinterpret_cast<void *>(set_n_threads);
    if (!strcmp(name, "ggml_backend_set_abort_callback")) return reinterpret_cast<void *>(set_abort_callback);
    return nullptr;
}

void say(char * message, int size, const char * format, const char * a, const char * b) { snprintf(message, size, format, a, b); }

// The kernels of this name, the scalar version included; null if this machine cannot run them.
const Table * table_named(const char * name) {
    if (!strcmp(name, "scalar")) return scalar_table();
    for (const Named & named : kTables)
        if (!strcmp(name, named.name)) return usable(named, processor_features());
    return nullptr;
}

}  // namespace

extern "C" {

const char * bimedix_edge_kernels_version(void) { return BMX_GGML_VERSION; }

int bimedix_edge_kernels_choose(const char * name, char * message, int size) {
    const Features features = processor_features();
    const bool any = !strcmp(name, "auto");
    for (const Named & named : kTables) {
        if (!any && strcmp(name, named.name)) continue;
        const Table * table = usable(named, features);
        if (!table && any) continue;
        if (!table) {
            say(message, size, "this %s cannot run %s", named.table() ? "processor" : "build", named.name);
            return 1;
        }
        if (const char * fault = self_test(*table)) {
            say(message, size, "%s fails its self-test: %s", table->name, fault);
            return 2;
        }
        chosen = table;
        say(message, size, "%s%s", table->name, "");
        return 0;
    }
    say(message, size, any ? "this processor has none of amx, avx512vnni, avxvnni, avx2%s%s" : "there are no kernels named %s%s", any ? "" : name, "");
    return 1;
}

void bimedix_edge_kernels_off(void) { chosen = nullptr; }

BMX_EXPORT ggml_backend_reg_t ggml_backend_init(void) {
    static ggml_backend_reg reg = {BMX_GGML_BACKEND_API_VERSION, {reg_name, device_count, device_at, proc_address}, nullptr};
    return chosen ? &reg : nullptr;
}

int bimedix_edge_kernels_registered(void) {
    for (size_t i = 0; i < ggml_backend_reg_count(); i++)
        if (!strcmp(ggml_backend_reg_name(ggml_backend_reg_get(i)), reg_name(nullptr))) return 1;
    return 0;
}

int bimedix_edge_kernels_attend(
    const char * name, const float * q, int n_tokens, int n_heads, int head_size, const void * k, const void * v, int n_cells,
    int n_kv_heads, const void * mask, float scale, float * out, int n_threads) {
    const Table * table = table_named(name);
    if (!table) return 1;
    const auto tensor = [](ggml_type type, const void * data, int64_t n0, int64_t n1, int64_t n2) {
        ggml_tensor result = {};
        result.type = type;
        result.data = const_cast<void *>(data);
        const int64_t sizes[] = {n0, n1, n2, 1};
        size_t stride = ggml_type_size(type);
        for (int i = 0; i < 4; i++) {
            result.ne[i] = sizes[i];
            result.nb[i] = stride;
            stride *= size_t(sizes[i]);
        }
        return result;
    };
    ggml_tensor queries = tensor(GGML_TYPE_F32, q, head_size, n_tokens, n_heads), hidden = tensor(GGML_TYPE_F16, mask, n_cells, n_tokens, 1);
    ggml_tensor keys = tensor(GGML_TYPE_F16, k, head_size, n_kv_heads, n_cells), values = tensor(GGML_TYPE_F16, v, head_size, n_kv_heads, n_cells);
    for (ggml_tensor * cache : {&keys, &values}) {
        std::swap(cache->ne[1], cache->ne[2]);
        std::swap(cache->nb[1], cache->nb[2]);
    }
    ggml_tensor node = tensor(GGML_TYPE_F32, out, head_size, n_heads, n_tokens);
    node.op = GGML_OP_FLASH_ATTN_EXT;
    memcpy(node.op_params, &scale, sizeof(scale));
    ggml_tensor * const sources[] = {&queries, &keys, &values, &hidden};
    std::copy(std::begin(sources), std::end(sources), node.src);
    Context context = {table, nullptr, n_threads, nullptr, nullptr, {}};
    if (!is_our_attention(*table, &node)) return 1;
    const Attended attended = compute_attention(context, &node);
    return attended == Attended::done ? 0 : attended == Attended::declined ? 1 : 2;
}

int bimedix_edge_kernels_multiply(
    const char * name, int weight, const void * w, long long stride, long long n_rows, const float * x, long long n_tokens,
    long long n_columns, float * y, int n_threads) {
    const Table * table = table_named(name);
    const int unit = block_size(Weight(weight)).columns;
    // the same conditions as `is_ours` has for a node
    if (!table || unit == 0 || n_columns <= 0 || n_columns % unit != 0 || n_columns % 32 != 0) return 1;
    Work work = {x, n_tokens, n_columns, nullptr, {}};
    const Matrix matrix = {Weight(weight), static_cast<const char *>(w), size_t(stride), n_rows};
    work.products.push_back({Product::Kind::store, matrix, {}, y, n_rows, nullptr});
    static thread_local Scratch scratch;  // kept between calls, as for a model
    return multiply(*table, work, n_threads, scratch) ? 0 : 2;
}

double bimedix_edge_kernels_read_bandwidth(int n_threads, double seconds) { return read_bandwidth(n_threads, seconds); }

double bimedix_edge_kernels_int8_ops(const char * name, int n_threads, double seconds) {
    const Table * table = table_named(name);
    return table && table->multiply_bytes ? int8_ops(*table, n_threads, seconds) : 0;
}

}  // extern "C"
