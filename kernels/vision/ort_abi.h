// The part of ONNX Runtime's C interface that our operators need; no package on PyPI has its header.
//
// ONNX Runtime only appends to these structs, so a slot keeps its number; version 17 of the interface came with
// ONNX Runtime 1.17. tests/kernels/test_vision_operators.py runs all functions declared here.
// Source: onnxruntime_c_api.h of ONNX Runtime 1.23, OrtApiBase, OrtApi, OrtCustomOp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bmx {
namespace ort {

constexpr uint32_t kVersion = 17;

struct Status;
struct Value;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct OperatorDomain;
struct TensorInfo;

enum ElementType : int { kFloat = 1, kInt8 = 3 };
enum Characteristic : int { kRequired = 0 };
enum MemoryType : int { kDefaultMemory = 0 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

struct Api {
    const void * slots[275];  // up to the last one used
};

struct ApiBase {
    const Api * (*api)(uint32_t version);  // null if ONNX Runtime is older
    const char * (*version)();
};

// A function of the interface: its slot, and its type.
template <size_t slot, class R, class... A>
struct Function {
    static R call(const Api * api, A... a) { return reinterpret_cast<R (*)(A...)>(const_cast<void *>(api->slots[slot]))(a...); }
};

using CreateStatus = Function<0, Status *, ErrorCode, const char *>;
using CreateDomain = Function<26, Status *, const char *, OperatorDomain **>;
using AddToDomain = Function<27, Status *, OperatorDomain *, const struct Operator *>;
using AddDomain = Function<28, Status *, SessionOptions *, OperatorDomain *>;
using TensorData = Function<51, Status *, const Value *, void **>;
using DimensionCount = Function<61, Status *, const TensorInfo *, size_t *>;
using Dimensions = Function<62, Status *, const TensorInfo *, int64_t *, size_t>;
using TensorShape = Function<65, Status *, const Value *, TensorInfo **>;
using IntegerAttribute = Function<86, Status *, const KernelInfo *, const char *, int64_t *>;
using Input = Function<90, Status *, const KernelContext *, size_t, const Value **>;
using Output = Function<91, Status *, KernelContext *, size_t, const int64_t *, size_t, Value **>;
using ReleaseTensorShape = Function<99, void, TensorInfo *>;
using ConstantInput = Function<249, Status *, const KernelInfo *, size_t, int *, const Value **>;
// Calls a function for 0 to total - 1 on the session's threads; with a batch count of 0, ONNX Runtime chooses it.
using ParallelFor = Function<274, Status *, const KernelContext *, void (*)(void *, size_t), size_t, size_t, void *>;

// One operator, as ONNX Runtime reads it; null for defaults of version 17.
struct Operator {
    uint32_t version;
    void * (*create_kernel)(const Operator *, const Api *, const KernelInfo *);
    const char * (*name)(const Operator *);
    const char * (*provider)(const Operator *);  // null: the CPU
    ElementType (*input_type)(const Operator *, size_t);
    size_t (*input_count)(const Operator *);
    ElementType (*output_type)(const Operator *, size_t);
    size_t (*output_count)(const Operator *);
    void (*compute)(void *, KernelContext *);
    void (*destroy_kernel)(void *);
    Characteristic (*input_characteristic)(const Operator *, size_t);
    Characteristic (*output_characteristic)(const Operator *, size_t);
    MemoryType (*input_memory)(const Operator *, size_t);
    int (*variadic[4])(const Operator *);
    Status * (*try_create_kernel)(const Operator *, const Api *, const KernelInfo *, void **);
    Status * (*try_compute)(void *, KernelContext *);
    Status * (*infer_shape)(const Operator *, void *);
    int (*first_version)(const Operator *);
    int (*last_version)(const Operator *);
    const void * later[4];  // of version 18; null
};

}  // namespace ort
}  // namespace bmx
