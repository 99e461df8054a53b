// A stand-in for graphics cards, for tests: devices of type GPU with memory of their own, computed by ggml's CPU backend.
//
// A device's memory can be touched only while that device copies or computes: its pages are protected at all other times, so
// that code which reads a weight in "video memory" as if it were in the machine's memory ends the process. Tests set the size
// of the memory, beyond which allocations fail, and the graph from which on computing fails.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "../../kernels/ggml_abi.h"
#include "ggml-cpu.h"

extern "C" {

// the rest of ggml-backend-impl.h of the pinned version
struct ggml_backend_buffer_type_i {
    const char * (*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
    size_t (*get_alignment)(ggml_backend_buffer_type_t);
    size_t (*get_max_size)(ggml_backend_buffer_type_t);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor *);
    bool (*is_host)(ggml_backend_buffer_type_t);
};

struct ggml_backend_buffer_type {
    ggml_backend_buffer_type_i iface;
    ggml_backend_dev_t device;
    void * context;
};

struct ggml_backend_buffer_i {
    void (*free_buffer)(ggml_backend_buffer_t);
    void * (*get_base)(ggml_backend_buffer_t);
    ggml_status (*init_tensor)(ggml_backend_buffer_t, ggml_tensor *);
    void (*memset_tensor)(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t);
    void (*set_tensor)(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor)(ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t);
    void (*set_tensor_2d)(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t, size_t, size_t, size_t);
    void (*get_tensor_2d)(ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t, size_t, size_t, size_t);
    bool (*cpy_tensor)(ggml_backend_buffer_t, const ggml_tensor *, ggml_tensor *);
    void (*clear)(ggml_backend_buffer_t, uint8_t);
    void (*reset)(ggml_backend_buffer_t);
};

struct ggml_backend_buffer {
    ggml_backend_buffer_i iface;
    ggml_backend_buffer_type_t buft;
    void * context;
    size_t size;
    ggml_backend_buffer_usage usage;
};

ggml_backend_buffer_t ggml_backend_buffer_init(ggml_backend_buffer_type_t, ggml_backend_buffer_i, void *, size_t);
}

namespace {

constexpr int kDevices = 2, kSmallestOffloaded = 32;  // tokens, CUDA's default
constexpr size_t kAlignment = 128, kPage = 4096;

struct Memory {
    size_t total = size_t(64) << 30, used_elsewhere = 0, used = 0, peak = 0;
    std::map<char *, size_t> buffers;
};

struct State {
    Memory memory[kDevices];
    int n_devices = 1, graphs_left = -1;
    bool refuses = false;
    long long graphs = 0, nodes = 0, products = 0, copied_weights = 0;
} state;

size_t whole_pages(size_t n) { return (n + kPage - 1) / kPage * kPage + kPage; }

// Opens all devices' memory for its lifetime.
class Open {
public:
    Open() {
        if (depth_++ == 0) protect(PROT_READ | PROT_WRITE);
    }
    ~Open() {
        if (--depth_ == 0) protect(PROT_NONE);
    }

private:
    static void protect(int how) {
        for (const Memory & memory : state.memory)
            for (const auto & [start, size] : memory.buffers) mprotect(start, size, how);
    }
    static inline int depth_ = 0;
};

int index_of(ggml_backend_dev_t device) { return int(reinterpret_cast<intptr_t>(device->context)); }

struct Held {
    int device;
    char * start;
    size_t size;
};

Held & held(ggml_backend_buffer_t buffer) { return *static_cast<Held *>(buffer->context); }

void free_buffer(ggml_backend_buffer_t buffer) {
    Held & it = held(buffer);
    Memory & memory = state.memory[it.device];
    memory.buffers.erase(it.start);
    memory.used -= it.size;
    munmap(it.start, it.size);
    delete &it;
}

void * base_of(ggml_backend_buffer_t buffer) { return held(buffer).start; }

char * at(const ggml_tensor * tensor, size_t offset) { return static_cast<char *>(tensor->data) + offset; }

void memset_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    Open open;
    memset(at(tensor, offset), value, size);
}

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    Open open;
    // a weight's copy for one graph is in a compute buffer under its name; matrices only, since norms are always copied
    const bool is_matrix = tensor->ne[1] > 1 && strstr(tensor->name, ".weight") != nullptr;
    if (buffer->usage == GGML_BACKEND_BUFFER_USAGE_COMPUTE && is_matrix) state.copied_weights++;
    memcpy(at(tensor, offset), data, size);
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    Open open;
    memcpy(data, at(tensor, offset), size);
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    Open open;
    memset(held(buffer).start, value, buffer->size);
}

const char * buffer_type_name(ggml_backend_buffer_type_t type) { return ggml_backend_dev_name(type->device); }

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    const int device = index_of(type->device);
    Memory & memory = state.memory[device];
    const size_t pages = whole_pages(size);
    if (state.refuses || memory.used + memory.used_elsewhere + pages > memory.total) return nullptr;
    void * start = mmap(nullptr, pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return nullptr;
    memory.buffers[static_cast<char *>(start)] = pages;
    memory.used += pages;
    if (memory.used > memory.peak) memory.peak = memory.used;
    const ggml_backend_buffer_i interface = {free_buffer, base_of, nullptr, memset_tensor, set_tensor, get_tensor, nullptr, nullptr, nullptr, clear, nullptr};
    return ggml_backend_buffer_init(type, interface, new Held{device, static_cast<char *>(start), pages}, size);
}

size_t alignment(ggml_backend_buffer_type_t) { return kAlignment; }

ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t device) {
    static ggml_backend_buffer_type types[kDevices];
    ggml_backend_buffer_type & type = types[index_of(device)];
    type.iface = {buffer_type_name, alloc_buffer, alignment, nullptr, nullptr, nullptr};
    type.device = device;
    return &type;
}

// ---- backend

const char * backend_name(ggml_backend_t) { return "stand-in"; }

void free_backend(ggml_backend_t backend) {
    ggml_backend_free(static_cast<ggml_backend_t>(backend->context));
    delete backend;
}

ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    if (state.graphs_left == 0) return GGML_STATUS_FAILED;
    if (state.graphs_left > 0) state.graphs_left--;
    Open open;
    state.graphs++;
    state.nodes += graph->n_nodes;
    for (int i = 0; i < graph->n_nodes; i++) state.products += graph->nodes[i]->op == GGML_OP_MUL_MAT;
    return ggml_backend_graph_compute(static_cast<ggml_backend_t>(backend->context), graph);
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char *) {
    static ggml_guid id = {0x5a, 0x1d, 0x1e, 0x57, 0xa1, 0xd1, 0x40, 0x0b, 0x9a, 0x77, 0x20, 0x6c, 0x35, 0x02, 0x9e, 0x11};
    ggml_backend * backend = new ggml_backend{};
    backend->guid = &id;
    backend->iface.get_name = backend_name;
    backend->iface.free = free_backend;
    backend->iface.graph_compute = compute;
    backend->device = device;
    const ggml_backend_t cpu = ggml_backend_cpu_init();
    // ggml starts new threads for each graph, by default more than a small machine has cores
    ggml_backend_cpu_set_n_threads(cpu, 1);
    backend->context = cpu;
    return backend;
}

// ---- device

const char * device_name(ggml_backend_dev_t device) {
    static std::string names[kDevices];
    std::string & name = names[index_of(device)];
    if (name.empty()) name = "StandIn" + std::to_string(index_of(device));
    return name.c_str();
}

const char * device_description(ggml_backend_dev_t) { return "the CPU in place of a graphics card"; }

void device_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    const Memory & memory = state.memory[index_of(device)];
    *total = memory.total;
    *free = memory.total - memory.used - memory.used_elsewhere;
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    memset(props, 0, sizeof(*props));
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
    device_memory(device, &props->memory_free, &props->memory_total);
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
}

bool supports_buffer_type(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) { return type == buffer_type(device); }

bool offload_op(ggml_backend_dev_t, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS: return false;
        case GGML_OP_MUL_MAT: return op->ne[1] >= kSmallestOffloaded;
        case GGML_OP_ROPE: return op->ne[2] >= kSmallestOffloaded;
        default: return ggml_nrows(op) >= kSmallestOffloaded;
    }
}

// ---- registration

const char * reg_name(ggml_backend_reg_t) { return "StandIn"; }

size_t device_count(ggml_backend_reg_t) { return size_t(state.n_devices); }

ggml_backend_dev_t device_at(ggml_backend_reg_t reg, size_t index) {
    static ggml_backend_device devices[kDevices];
    ggml_backend_device & device = devices[index];
    device.iface.get_name = device_name;
    device.iface.get_description = device_description;
    device.iface.get_memory = device_memory;
    device.iface.get_type = device_type;
    device.iface.get_props = device_props;
    device.iface.init_backend = init_backend;
    device.iface.get_buffer_type = buffer_type;
    device.iface.supports_op = supports_op;
    device.iface.supports_buft = supports_buffer_type;
    device.iface.offload_op = offload_op;
    device.reg = reg;
    device.context = reinterpret_cast<void *>(intptr_t(index));
    return &device;
}

void * proc_address(ggml_backend_reg_t, const char *) { return nullptr; }

}  // namespace

extern "C" {

ggml_backend_reg_t ggml_backend_init(void) {
    static ggml_backend_reg reg = {BMX_GGML_BACKEND_API_VERSION, {reg_name, device_count, device_at, proc_address}, nullptr};
    return &reg;
}

// Sets the number of devices; call it before the registration.
void stand_in_devices(int n) { state.n_devices = n; }

void stand_in_memory(int device, size_t total, size_t used_elsewhere) {
    state.memory[device].total = total;
    state.memory[device].used_elsewhere = used_elsewhere;
    state.memory[device].peak = state.memory[device].used;
}

size_t stand_in_peak(int device) { return state.memory[device].peak; }

// Computing fails after this many further graphs; -1 never fails.
void stand_in_fail_after(int n_graphs) { state.graphs_left = n_graphs; }

// Whether all allocations fail, even if memory is free.
void stand_in_refuse(int refuses) { state.refuses = refuses != 0; }

// Counts since the last call: graphs, nodes, products; and weights that were copied for one graph.
void stand_in_counts(long long * counts) {
    counts[0] = state.graphs;
    counts[1] = state.nodes;
    counts[2] = state.products;
    counts[3] = state.copied_weights;
    state.graphs = state.nodes = state.products = state.copied_weights = 0;
}
}
