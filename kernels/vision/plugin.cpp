// The image encoder's operators for ONNX Runtime, and the functions that Python calls.
//
// A graph declares each operator of the domain `bimedix_edge` as a function of standard operators. ONNX Runtime uses our
// kernel if it is registered, and otherwise the function's nodes: no graph depends on us.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#include "../processor.h"
#include "operators.h"
#include "ort_abi.h"

#ifdef _MSC_VER
#define BMX_EXPORT __declspec(dllexport)
#else
#define BMX_EXPORT __attribute__((visibility("default")))
#endif

namespace bmx {
namespace vision {
namespace {

struct Named {
    const char * name;
    const Table * (*table)();
    bool (*runs)(const Features & has);
    bool (*pays)(const Features & has, bool tiles);  // whether it is the fastest where it runs
};

// the best first
constexpr Named kTables[] = {
    {"amx", amx_table, [](const Features & has) { return has.amx && has.avx512bf16; }, [](const Features &, bool tiles) { return tiles; }},
    {"avx512bf16", avx512bf16_table, [](const Features & has) { return has.avx512bf16; }, [](const Features & has, bool) { return has.fast_bf16; }},
    {"avx512vnni", avx512vnni_table, [](const Features & has) { return has.avx512vnni; }, [](const Features &, bool) { return true; }}};
constexpr int kTableCount = sizeof(kTables) / sizeof(kTables[0]);

std::atomic<int> chosen{-1};  // index into kTables for the next registration
std::atomic<const ort::Api *> loaded{nullptr};  // one per process

const ort::Api * api() { return loaded; }

// A failure that ONNX Runtime reports, as an exception until it is returned.
struct Failure {
    ort::Status * status;
};

void check(ort::Status * status) {
    if (status) throw Failure{status};
}

[[noreturn]] void refuse(const char * what) { throw Failure{ort::CreateStatus::call(api(), ort::kInvalidArgument, what)}; }

template <class F>
ort::Status * guarded(F && body) {
    try {
        body();
        return nullptr;
    } catch (const Failure & failure) {
        return failure.status;
    } catch (const std::bad_alloc &) {
        return ort::CreateStatus::call(api(), ort::kFail, "no memory for an operator of the image encoder");
    } catch (...) {
        return ort::CreateStatus::call(api(), ort::kFail, "an operator of the image encoder failed");
    }
}

class SessionWorkers : public Workers {
public:
    explicit SessionWorkers(const ort::KernelContext * context) : context_(context) {}

    void run(size_t n, Task task, void * data) override {
        Call call = {task, data, {false}};
        // as many batches as tasks, so that an idle thread takes the next one
        check(ort::ParallelFor::call(api(), context_, one, n, n, &call));
        if (call.failed) throw std::bad_alloc();
    }

private:
    struct Call {
        Task task;
        void * data;
        std::atomic<bool> failed;
    };

    // no exception may pass through ONNX Runtime's threads
    static void one(void * data, size_t index) {
        Call & call = *static_cast<Call *>(data);
        try {
            call.task(call.data, index);
        } catch (...) {  // a task fails only for lack of memory
            call.failed = true;
        }
    }

    const ort::KernelContext * context_;
};

struct Tensor {
    std::vector<int64_t> shape;
    void * data;

    explicit Tensor(const ort::Value * value) {
        ort::TensorInfo * info;
        check(ort::TensorShape::call(api(), value, &info));
        size_t rank = 0;
        ort::Status * status = ort::DimensionCount::call(api(), info, &rank);
        shape.resize(rank);
        if (!status) status = ort::Dimensions::call(api(), info, shape.data(), rank);
        ort::ReleaseTensorShape::call(api(), info);
        check(status);
        check(ort::TensorData::call(api(), value, &data));
    }

    const float * floats() const { return static_cast<const float *>(data); }
};

Tensor input(const ort::KernelContext * context, size_t index) {
    const ort::Value * value;
    check(ort::Input::call(api(), context, index, &value));
    return Tensor(value);
}

float * output(ort::KernelContext * context, const std::vector<int64_t> & shape) {
    ort::Value * value;
    void * data;
    check(ort::Output::call(api(), context, 0, shape.data(), shape.size(), &value));
    check(ort::TensorData::call(api(), value, &data));
    return static_cast<float *>(data);
}

class Kernel {
public:
    explicit Kernel(const Table & of) : table(of) {}
    virtual ~Kernel() = default;
    virtual void compute(ort::KernelContext * context) = 0;

protected:
    const Table & table;
};

// (x, weights, scales, bias[, residual]); see converters/vision/functions.py
class LinearKernel : public Kernel {
public:
    LinearKernel(const Table & of, const ort::KernelInfo * info, bool silu, bool residual) : Kernel(of), silu_(silu), residual_(residual) {
        const ort::Value * value;
        int constant = 0;
        check(ort::ConstantInput::call(api(), info, 1, &constant, &value));
        if (!constant) refuse("expected constant weights");
        const Tensor weights(value);
        const std::vector<int64_t> & shape = weights.shape;
        if (shape.size() != 2 || shape[0] < 1 || shape[0] % 64 != 0 || shape[0] > kMostInputs || shape[1] < 1 || shape[1] % kPanelColumns != 0)
            refuse("expected weights (k, n), multiples of 64, k up to 65536");
        column_sums_.resize(size_t(shape[1]));
        table.column_sums(static_cast<const int8_t *>(weights.data), shape[0], shape[1], column_sums_.data());
    }

    void compute(ort::KernelContext * context) override {
        const Tensor x = input(context, 0), weights = input(context, 1), scales = input(context, 2), bias = input(context, 3);
        const int64_t n_in = weights.shape[0], n_out = int64_t(column_sums_.size());
        const std::vector<int64_t> columns = {n_out};
        if (x.shape.size() != 2 || x.shape[1] != n_in || scales.shape != columns || bias.shape != columns) refuse("expected x (t, k), scales (n), bias (n)");
        const std::vector<int64_t> shape = {x.shape[0], n_out};
        const float * residual = nullptr;
        if (residual_) {
            const Tensor other = input(context, 4);
            if (other.shape != shape) refuse("expected a residual (t, n)");
            residual = other.floats();
        }
        const Linear layer = {n_in, n_out, static_cast<const int8_t *>(weights.data), scales.floats(), bias.floats(), column_sums_.data(), silu_};
        SessionWorkers workers(context);
        linear(table, layer, x.floats(), shape[0], residual, output(context, shape), workers);
    }

private:
    bool silu_, residual_;
    std::vector<int32_t> column_sums_;
};

class AttentionKernel : public Kernel {
public:
    AttentionKernel(const Table & of, const ort::KernelInfo * info) : Kernel(of) {
        check(ort::IntegerAttribute::call(api(), info, "num_heads", &n_heads_));
        if (n_heads_ < 1) refuse("expected one head or more");
    }

    void compute(ort::KernelContext * context) override {
        const Tensor q = input(context, 0), k = input(context, 1), v = input(context, 2);
        if (q.shape.size() != 2 || k.shape != q.shape || v.shape != q.shape) refuse("expected q, k, v (t, c)");
        const int64_t head_size = q.shape[1] / n_heads_;
        if (q.shape[1] % n_heads_ != 0 || head_size < 32 || head_size % 32 != 0 || head_size > kMostHeadSize) refuse("expected heads of 32, 64, 96 or 128");
        const Heads heads = {q.floats(), k.floats(), v.floats(), output(context, q.shape), q.shape[0], n_heads_, head_size};
        SessionWorkers workers(context);
        attention(table, heads, workers);
    }

private:
    int64_t n_heads_ = 0;
};

enum Kind : int { kLinear, kLinearSilu, kLinearAdd, kAttention, kKinds };
constexpr const char * kNames[kKinds] = {"Int8Linear", "Int8LinearSilu", "Int8LinearAdd", "Attention"};
constexpr size_t kInputs[kKinds] = {4, 4, 5, 3};

// The description that ONNX Runtime gets, and hands back when it creates a kernel.
struct Described {
    ort::Operator head;
    Kind kind;
    const Table * table;
};

const Described & described(const ort::Operator * op) { return *reinterpret_cast<const Described *>(op); }

Kernel * made(const Described & what, const ort::KernelInfo * info) {
    if (what.kind == kAttention) return new AttentionKernel(*what.table, info);
    return new LinearKernel(*what.table, info, what.kind == kLinearSilu, what.kind == kLinearAdd);
}

ort::Operator head() {
    using ort::Operator;
    Operator o = {};
    o.version = ort::kVersion;
    o.name = [](const Operator * op) { return kNames[described(op).kind]; };
    o.provider = [](const Operator *) -> const char * { return nullptr; };
    o.input_type = [](const Operator * op, size_t index) { return described(op).kind != kAttention && index == 1 ? ort::kInt8 : ort::kFloat; };
    o.input_count = [](const Operator * op) { return kInputs[described(op).kind]; };
    o.output_type = [](const Operator *, size_t) { return ort::kFloat; };
    o.output_count = [](const Operator *) { return size_t(1); };
    o.input_characteristic = o.output_characteristic = [](const Operator *, size_t) { return ort::kRequired; };
    o.input_memory = [](const Operator *, size_t) { return ort::kDefaultMemory; };
    o.try_create_kernel = [](const Operator * op, const ort::Api *, const ort::KernelInfo * info, void ** kernel) {
        return guarded([&] { *kernel = made(described(op), info); });
    };
    o.try_compute = [](void * kernel, ort::KernelContext * context) { return guarded([&] { static_cast<Kernel *>(kernel)->compute(context); }); };
    o.destroy_kernel = [](void * kernel) { delete static_cast<Kernel *>(kernel); };
    return o;
}

// The operators on one table. ONNX Runtime keeps pointers to them in each session; they live as long as the library.
ort::OperatorDomain * made_domain(const Table & table, Described (&operators)[kKinds]) {
    ort::OperatorDomain * domain;
    check(ort::CreateDomain::call(api(), "bimedix_edge", &domain));
    for (int kind = 0; kind < kKinds; kind++) {
        operators[kind] = {head(), Kind(kind), &table};
        if (kind != kAttention || table.multiply_halves) check(ort::AddToDomain::call(api(), domain, &operators[kind].head));
    }
    return domain;
}

ort::OperatorDomain * domain_of(int index) {
    static Described operators[kTableCount][kKinds];
    static ort::OperatorDomain * domains[kTableCount];
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!domains[index]) domains[index] = made_domain(*kTables[index].table(), operators[index]);
    return domains[index];
}

// Chooses by name, or the best (`auto`), or the best without tiles (`vectors`); returns 0, or writes a reason to message.
int choose(const char * name, char * message, size_t size) {
    const bool tiles = !strcmp(name, "auto"), any = tiles || !strcmp(name, "vectors");
    const Features has = processor_features();
    int result = 1;
    snprintf(message, size, any ? "this processor has none of amx, avx512bf16, avx512vnni" : "there are none named %s", name);
    for (int i = 0; i < kTableCount; i++) {
        const Named & named = kTables[i];
        if (any ? !named.pays(has, tiles) : strcmp(name, named.name) != 0) continue;
        const Table * table = named.runs(has) ? named.table() : nullptr;
        if (!table) {
            if (!any) snprintf(message, size, "this %s cannot run %s", named.table() ? "processor" : "build", named.name);
            continue;
        }
        if (const char * fault = self_test(*table)) {
            // with `auto`, the next table may pass
            snprintf(message, size, "%s fails its self-test: %s", named.name, fault);
            result = 2;
            continue;
        }
        chosen = i;
        snprintf(message, size, "%s", named.name);
        return 0;
    }
    return result;
}

}  // namespace
}  // namespace vision
}  // namespace bmx

extern "C" {

// Chooses the table for sessions that are registered later (see above); writes its name or a reason to message, and returns
// 0 if it can be used.
BMX_EXPORT int bimedix_edge_vision_choose(const char * name, char * message, int size) {
    try {
        return bmx::vision::choose(name, message, size_t(size));
    } catch (...) {
        snprintf(message, size_t(size), "no memory for the self-test");
        return 2;
    }
}

// SessionOptions.register_custom_ops_library calls this.
BMX_EXPORT bmx::ort::Status * RegisterCustomOps(bmx::ort::SessionOptions * options, const bmx::ort::ApiBase * base) {
    using namespace bmx;
    using namespace bmx::vision;
    const ort::Api * const found = base->api(ort::kVersion);
    // version 1 of the interface suffices to report it
    if (!found) return ort::CreateStatus::call(base->api(1), ort::kFail, "expected ONNX Runtime 1.17 or later");
    loaded = found;
    return guarded([&] {
        const int index = chosen;
        if (index < 0) refuse("expected bimedix_edge_vision_choose to be called before");
        check(ort::AddDomain::call(api(), options, domain_of(index)));
    });
}

}  // extern "C"
