// The part of ggml's private headers that a backend plug-in must fill in: names, order and types are an ABI.
//
// llama-cpp-python installs only ggml's public headers. tests/kernels/test_abi.py compares each size and offset below with
// the headers in the source distribution of the pinned version; the plug-in registers with that version alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml-backend.h"
#include "ggml.h"

extern "C" {

#define BMX_GGML_BACKEND_API_VERSION 2

struct ggml_backend_graph_optimize_params {
    void (*add_alloc_dep)(void * user_data, struct ggml_tensor * tensor, struct ggml_tensor * until);
    void * user_data;
};

struct ggml_backend_i {
    const char * (*get_name)(ggml_backend_t);
    void (*free)(ggml_backend_t);
    void (*set_tensor_async)(ggml_backend_t, struct ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor_async)(ggml_backend_t, const struct ggml_tensor *, void *, size_t, size_t);
    void (*set_tensor_2d_async)(ggml_backend_t, struct ggml_tensor *, const void *, size_t, size_t, size_t, size_t, size_t);
    void (*get_tensor_2d_async)(ggml_backend_t, const struct ggml_tensor *, void *, size_t, size_t, size_t, size_t, size_t);
    bool (*cpy_tensor_async)(ggml_backend_t, ggml_backend_t, const struct ggml_tensor *, struct ggml_tensor *);
    void (*synchronize)(ggml_backend_t);
    ggml_backend_graph_plan_t (*graph_plan_create)(ggml_backend_t, const struct ggml_cgraph *);
    void (*graph_plan_free)(ggml_backend_t, ggml_backend_graph_plan_t);
    void (*graph_plan_update)(ggml_backend_t, ggml_backend_graph_plan_t, const struct ggml_cgraph *);
    enum ggml_status (*graph_plan_compute)(ggml_backend_t, ggml_backend_graph_plan_t);
    enum ggml_status (*graph_compute)(ggml_backend_t, struct ggml_cgraph *);
    void (*event_record)(ggml_backend_t, ggml_backend_event_t);
    void (*event_wait)(ggml_backend_t, ggml_backend_event_t);
    void (*graph_optimize)(ggml_backend_t, struct ggml_cgraph *, struct ggml_backend_graph_optimize_params *);
};

struct ggml_backend {
    ggml_guid_t guid;
    struct ggml_backend_i iface;
    ggml_backend_dev_t device;
    void * context;
};

struct ggml_backend_device_i {
    const char * (*get_name)(ggml_backend_dev_t);
    const char * (*get_description)(ggml_backend_dev_t);
    void (*get_memory)(ggml_backend_dev_t, size_t *, size_t *);
    enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t);
    void (*get_props)(ggml_backend_dev_t, struct ggml_backend_dev_props *);
    ggml_backend_t (*init_backend)(ggml_backend_dev_t, const char *);
    ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_type_t (*get_host_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_t (*buffer_from_host_ptr)(ggml_backend_dev_t, void *, size_t, size_t);
    bool (*supports_op)(ggml_backend_dev_t, const struct ggml_tensor *);
    bool (*supports_buft)(ggml_backend_dev_t, ggml_backend_buffer_type_t);
    bool (*offload_op)(ggml_backend_dev_t, const struct ggml_tensor *);
    ggml_backend_event_t (*event_new)(ggml_backend_dev_t);
    void (*event_free)(ggml_backend_dev_t, ggml_backend_event_t);
    void (*event_synchronize)(ggml_backend_dev_t, ggml_backend_event_t);
};

struct ggml_backend_device {
    struct ggml_backend_device_i iface;
    ggml_backend_reg_t reg;
    void * context;
};

struct ggml_backend_reg_i {
    const char * (*get_name)(ggml_backend_reg_t);
    size_t (*get_device_count)(ggml_backend_reg_t);
    ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t);
    void * (*get_proc_address)(ggml_backend_reg_t, const char *);
};

struct ggml_backend_reg {
    int api_version;
    struct ggml_backend_reg_i iface;
    void * context;
};

struct ggml_hash_set {
    size_t size;
    uint32_t * used;
    struct ggml_tensor ** keys;
};

struct ggml_cgraph {
    int size;
    int n_nodes;
    int n_leafs;
    struct ggml_tensor ** nodes;
    struct ggml_tensor ** grads;
    struct ggml_tensor ** grad_accs;
    struct ggml_tensor ** leafs;
    int32_t * use_counts;  // by slot of visited_hash_set
    struct ggml_hash_set visited_hash_set;
    int order;  // enum ggml_cgraph_eval_order
    uint64_t uid;
};
}

// The values of that test for 64-bit pointers, so that a mistaken edit does not compile.
#define BMX_LAYOUT(condition) static_assert(sizeof(void *) != 8 || (condition), "not the layout that ggml expects")
BMX_LAYOUT(sizeof(ggml_backend_graph_optimize_params) == 16);
BMX_LAYOUT(sizeof(ggml_backend_i) == 128);
BMX_LAYOUT(offsetof(ggml_backend_i, get_name) == 0);
BMX_LAYOUT(offsetof(ggml_backend_i, free) == 8);
BMX_LAYOUT(offsetof(ggml_backend_i, synchronize) == 56);
BMX_LAYOUT(offsetof(ggml_backend_i, graph_compute) == 96);
BMX_LAYOUT(offsetof(ggml_backend_i, graph_optimize) == 120);
BMX_LAYOUT(sizeof(ggml_backend) == 152);
BMX_LAYOUT(offsetof(ggml_backend, iface) == 8);
BMX_LAYOUT(offsetof(ggml_backend, device) == 136);
BMX_LAYOUT(offsetof(ggml_backend, context) == 144);
BMX_LAYOUT(sizeof(ggml_backend_device_i) == 120);
BMX_LAYOUT(offsetof(ggml_backend_device_i, get_type) == 24);
BMX_LAYOUT(offsetof(ggml_backend_device_i, get_props) == 32);
BMX_LAYOUT(offsetof(ggml_backend_device_i, init_backend) == 40);
BMX_LAYOUT(offsetof(ggml_backend_device_i, get_buffer_type) == 48);
BMX_LAYOUT(offsetof(ggml_backend_device_i, buffer_from_host_ptr) == 64);
BMX_LAYOUT(offsetof(ggml_backend_device_i, supports_op) == 72);
BMX_LAYOUT(offsetof(ggml_backend_device_i, supports_buft) == 80);
BMX_LAYOUT(sizeof(ggml_backend_device) == 136);
BMX_LAYOUT(offsetof(ggml_backend_device, reg) == 120);
BMX_LAYOUT(sizeof(ggml_backend_reg_i) == 32);
BMX_LAYOUT(offsetof(ggml_backend_reg_i, get_proc_address) == 24);
BMX_LAYOUT(sizeof(ggml_backend_reg) == 48);
BMX_LAYOUT(offsetof(ggml_backend_reg, iface) == 8);
BMX_LAYOUT(sizeof(ggml_hash_set) == 24);
BMX_LAYOUT(offsetof(ggml_hash_set, keys) == 16);
BMX_LAYOUT(sizeof(ggml_cgraph) == 96);
BMX_LAYOUT(offsetof(ggml_cgraph, n_nodes) == 4);
BMX_LAYOUT(offsetof(ggml_cgraph, nodes) == 16);
BMX_LAYOUT(offsetof(ggml_cgraph, leafs) == 40);
BMX_LAYOUT(offsetof(ggml_cgraph, use_counts) == 48);
BMX_LAYOUT(offsetof(ggml_cgraph, visited_hash_set) == 56);
BMX_LAYOUT(offsetof(ggml_cgraph, uid) == 88);
#undef BMX_LAYOUT
