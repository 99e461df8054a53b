// Random graphs in ggml's scheduler, with the plug-in ahead of the CPU backend and with the CPU backend alone.
//
//   random_graphs PLUGIN KERNELS FIRST COUNT
//
// builds the graphs of COUNT seeds from FIRST on, each twice from the same numbers, and compares each result that is
// flagged as an output, token by token. Prints one line for each result that differs, and a summary:
// `worst <share of what is allowed> nodes <given to the plug-in> of <all>`. Returns 1 if any graph differs.
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

constexpr int kWidth = 256, kHeads = 4, kHead = kWidth / kHeads, kMaxNodes = 1024;
// Both round activations to int8, after sums in different orders: sometimes a value rounds the other way, and in a chain of
// products such steps add up. This much is allowed for each; real errors are of the order of 1.
constexpr double kTolerance = 0.02;
const char * const kMask = "mask";
// Values that grow beyond this are scaled down, as a model's norms do: ggml rounds activations of F16 weights to F16, whose
// largest number is 65,504, and ours do not.
constexpr double kLargest = 30;

struct Random {
    std::mt19937 engine;
    explicit Random(unsigned seed) : engine(seed) {}
    int below(int n) { return int(engine() % unsigned(n)); }
    bool chance(int percent) { return below(100) < percent; }
    // a sum of four uniform numbers with unit variance, near enough to normal
    float normal() {
        float sum = -2;
        for (int i = 0; i < 4; i++) sum += float(engine() >> 8) / float(1 << 24);
        return sum * 1.732f;
    }
    template <class T>
    T of(std::initializer_list<T> values) { return *(values.begin() + below(int(values.size()))); }
};

const ggml_type kSupported[] = {GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_F16};
const ggml_type kOthers[] = {GGML_TYPE_F32, GGML_TYPE_Q5_0, GGML_TYPE_IQ4_XS, GGML_TYPE_Q2_K, GGML_TYPE_BF16};

// A graph under construction. All choices depend on the seed alone, so that two builds give the same graph.
class Builder {
public:
    explicit Builder(unsigned seed) : random_(seed) {
        leafs_ = ggml_init({ggml_tensor_overhead() * 512, nullptr, true});
        nodes_ = ggml_init({ggml_tensor_overhead() * kMaxNodes + ggml_graph_overhead_custom(kMaxNodes, false), nullptr, true});
        graph_ = ggml_new_graph_custom(nodes_, kMaxNodes, false);
        n_tokens_ = random_.chance(4) ? random_.of({512, 513, 520}) : random_.of({1, 1, 2, 3, 4, 5, 7, 8, 13, 33});
    }
    ~Builder() {
        ggml_backend_buffer_free(buffer_);
        ggml_free(nodes_);
        ggml_free(leafs_);
    }
    Builder(const Builder &) = delete;

    void build() {
        if (random_.chance(55)) build_layers();
        else build_anything();
        for (ggml_tensor * value : values_)
            if (random_.chance(10)) output(value);
        output(values_.back());
        buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(leafs_, ggml_backend_cpu_buffer_type());
        if (buffer_) ggml_backend_buffer_set_usage(buffer_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (ggml_tensor * t = ggml_get_first_tensor(leafs_); t; t = ggml_get_next_tensor(leafs_, t)) {
            const std::vector<char> data = random_data(t);
            memcpy(t->data, data.data(), data.size());
        }
        for (ggml_tensor * t : inputs_) input_data_.push_back(random_data(t));
    }

    // The scheduler reuses an input's memory after its last use, so each run must set it again.
    void set_inputs() {
        for (size_t i = 0; i < inputs_.size(); i++)
            if (inputs_[i]->buffer) ggml_backend_tensor_set(inputs_[i], input_data_[i].data(), 0, input_data_[i].size());
    }

    ggml_cgraph * graph() { return graph_; }
    const std::vector<ggml_tensor *> & outputs() const { return outputs_; }
    double size(const ggml_tensor * output) const { return size_of(output); }

private:
    // ---- leafs

    ggml_tensor * leaf(ggml_type type, int64_t n0, int64_t n1 = 1, int64_t n2 = 1) {
        return ggml_new_tensor_3d(leafs_, type, n0, n1, n2);
    }

    ggml_tensor * input(ggml_type type, int64_t n0, int64_t n1) {
        inputs_.push_back(ggml_new_tensor_2d(nodes_, type, n0, n1));
        ggml_set_input(inputs_.back());
        return inputs_.back();
    }

    ggml_tensor * weight(int64_t n_columns, int64_t n_rows) {
        ggml_type type = random_.chance(88) ? kSupported[random_.below(6)] : kOthers[random_.below(5)];
        if (n_columns % ggml_blck_size(type)) type = random_.of({GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_F16});
        if (n_columns % ggml_blck_size(type)) type = random_.of({GGML_TYPE_F16, GGML_TYPE_F32});
        if (random_.chance(6)) return input(type, n_columns, n_rows);
        if (!random_.chance(8)) return leaf(type, n_columns, n_rows);
        // some adjacent rows of a matrix, or every second row
        const int step = 1 + random_.below(2);
        ggml_tensor * whole = leaf(type, n_columns, (n_rows + 3) * step);
        return ggml_view_2d(nodes_, whole, n_columns, n_rows, whole->nb[1] * step, whole->nb[1] * random_.below(4));
    }

    std::vector<char> random_data(const ggml_tensor * t) {
        std::vector<char> data(ggml_nbytes(t));
        if (t->type == GGML_TYPE_F16 && !strcmp(t->name, kMask)) {
            const std::vector<ggml_fp16_t> mask = random_mask(t);
            memcpy(data.data(), mask.data(), data.size());
            return data;
        }
        if (t->type == GGML_TYPE_I32) {
            for (int32_t i = 0; i < ggml_nelements(t); i++) memcpy(&data[i * sizeof i], &i, sizeof i);
            return data;
        }
        const std::vector<char> & rows = rows_of(t->type, t->ne[0]);
        const size_t row = ggml_row_size(t->type, t->ne[0]), spare = rows.size() - data.size();
        memcpy(data.data(), &rows[random_.below(int(spare / row + 1)) * row], data.size());
        return data;
    }

    // Mixed cells of a few sequences; a token sees those of its own sequence up to its position, and at least one.
    std::vector<ggml_fp16_t> random_mask(const ggml_tensor * t) {
        const int64_t n_cells = t->ne[0], n_tokens = t->ne[1];
        const int n_sequences = random_.of({1, 1, 2, 5});
        const bool biased = random_.chance(10);
        std::vector<int> of_cell(n_cells);
        for (int & sequence : of_cell) sequence = random_.below(n_sequences);
        const ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY);
        std::vector<ggml_fp16_t> mask(n_cells * n_tokens, hidden);
        int sequence = random_.below(n_sequences);
        for (int64_t token = 0; token < n_tokens; token++) {
            if (random_.chance(20)) sequence = random_.below(n_sequences);
            const int64_t limit = 1 + (n_cells - 1) * (token + 1) / n_tokens;
            for (int64_t cell = 0; cell < limit; cell++)
                if (of_cell[cell] == sequence) mask[token * n_cells + cell] = ggml_fp32_to_fp16(biased ? -float(cell % 3) : 0.0f);
            mask[token * n_cells + random_.below(int(limit))] = 0;
        }
        return mask;
    }

    // A pool of rows of one type and length, from which each tensor takes some, since quantizing takes time.
    static const std::vector<char> & rows_of(ggml_type type, int64_t n_columns) {
        constexpr int64_t kRows = 64 * 32 + 64;  // the largest tensor of `batches`, and a choice
        static std::map<std::pair<ggml_type, int64_t>, std::vector<char>> made;
        std::vector<char> & rows = made[{type, n_columns}];
        if (!rows.empty()) return rows;
        Random random(unsigned(type * 10000 + n_columns));
        std::vector<float> values(kRows * n_columns);
        const float size = type == GGML_TYPE_F32 ? 1.0f : 1.0f / std::sqrt(float(n_columns));
        for (float & value : values) value = random.normal() * size;
        rows.resize(kRows * ggml_row_size(type, n_columns));
        if (type == GGML_TYPE_F32) memcpy(rows.data(), values.data(), rows.size());
        else ggml_quantize_chunk(type, values.data(), rows.data(), 0, kRows, n_columns, nullptr);
        return rows;
    }

    // ---- values: float32, [width, n_tokens], contiguous

    // Estimates the size of a tensor's values, so that a graph can be built without computing it.
    double size_of(const ggml_tensor * t) const {
        const auto size = [&](int i) { return size_of(t->src[i]); };
        const auto known = sizes_.find(t);
        if (known != sizes_.end()) return known->second;
        switch (t->op) {
            case GGML_OP_NONE: return t->type == GGML_TYPE_F32 ? 1 : 1 / std::sqrt(double(t->ne[0]));
            case GGML_OP_RMS_NORM:
            case GGML_OP_SOFT_MAX: return 1;
            case GGML_OP_MUL_MAT: return std::sqrt(double(t->src[0]->ne[0])) * size(0) * size(1);
            case GGML_OP_ADD: return size(0) + size(1);
            case GGML_OP_MUL: return size(0) * size(1);
            case GGML_OP_GLU: return size(0) * size(t->src[1] ? 1 : 0);
            case GGML_OP_SCALE: return 1;
            default: return size(0);
        }
    }

    ggml_tensor * keep(ggml_tensor * value) {
        const double size = size_of(value);
        if (size > kLargest) value = ggml_scale(nodes_, value, float(1 / size));
        sizes_[value] = std::min(size, size > kLargest ? 1 : kLargest);
        values_.push_back(value);
        // in the order of creation, as llama.cpp does, or in that of the results
        if (random_.chance(70)) ggml_build_forward_expand(graph_, value);
        return value;
    }

    void output(ggml_tensor * value) {
        if (std::find(outputs_.begin(), outputs_.end(), value) != outputs_.end()) return;
        ggml_set_output(value);
        ggml_build_forward_expand(graph_, value);
        outputs_.push_back(value);
    }

    ggml_tensor * any(int64_t width = 0) {
        std::vector<ggml_tensor *> found;
        // recent ones are likelier, since chains are fused
        for (size_t i = 0; i < values_.size(); i++)
            if (!width || values_[i]->ne[0] == width) found.insert(found.end(), i + 3 > values_.size() ? 4 : 1, values_[i]);
        if (found.empty()) return product(any(), width);
        return found[random_.below(int(found.size()))];
    }

    ggml_tensor * product(ggml_tensor * x, int64_t n_rows) { return keep(ggml_mul_mat(nodes_, weight(x->ne[0], n_rows), x)); }

    ggml_tensor * norm(ggml_tensor * x) {
        ggml_tensor * plain = random_.chance(95) ? ggml_rms_norm(nodes_, x, 1e-5f) : ggml_rms_norm(nodes_, x, 1e-2f);
        if (random_.chance(8)) keep(plain);
        if (random_.chance(4)) return keep(ggml_mul(nodes_, plain, plain));
        if (random_.chance(4)) return keep(ggml_mul(nodes_, plain, any(x->ne[0])));
        if (random_.chance(3)) return keep(ggml_mul(nodes_, plain, ggml_view_1d(nodes_, random_.chance(50) ? plain : x, x->ne[0], 0)));
        return keep(ggml_mul(nodes_, plain, leaf(GGML_TYPE_F32, x->ne[0])));
    }

    ggml_tensor * feed_forward(ggml_tensor * x, int64_t hidden) {
        const int mutation = random_.below(24);
        ggml_tensor * first = product(x, hidden);
        ggml_tensor * second = mutation == 0 ? first : product(mutation == 1 ? any() : x, hidden);
        if (mutation == 2) output(first);
        if (mutation == 3) output(second);
        if (mutation == 4) keep(ggml_add(nodes_, first, second));
        if (mutation == 5) product(x, 64);
        if (mutation == 6) return keep(ggml_geglu_split(nodes_, first, second));
        if (mutation == 7) return keep(ggml_swiglu(nodes_, first));
        if (mutation == 8) return keep(ggml_mul(nodes_, ggml_silu(nodes_, first), second));
        if (mutation == 9) return keep(ggml_swiglu_split(nodes_, ggml_reshape_2d(nodes_, first, hidden, n_tokens_), second));
        return keep(mutation < 16 ? ggml_swiglu_split(nodes_, first, second) : ggml_swiglu_split(nodes_, second, first));
    }

    ggml_tensor * sum(ggml_tensor * a, ggml_tensor * b) {
        const int mutation = random_.below(20);
        if (mutation == 0) return keep(ggml_add_inplace(nodes_, ggml_mul_mat(nodes_, weight(b->ne[0], a->ne[0]), b), a));
        if (mutation == 1) return keep(ggml_add(nodes_, a, leaf(GGML_TYPE_F32, a->ne[0])));
        if (mutation == 2) return keep(ggml_add(nodes_, a, a));
        if (mutation == 3) return keep(ggml_add(nodes_, a, ggml_reshape_2d(nodes_, b, b->ne[0], n_tokens_)));
        if (mutation == 4) output(a);
        return keep(mutation < 12 ? ggml_add(nodes_, a, b) : ggml_add(nodes_, b, a));
    }

    ggml_tensor * rotated(ggml_tensor * x) {
        if (!positions_) positions_ = leaf(GGML_TYPE_I32, n_tokens_);
        const int mode = random_.of({GGML_ROPE_TYPE_NORMAL, GGML_ROPE_TYPE_NEOX});
        return ggml_rope_ext(nodes_, x, positions_, nullptr, kHead, mode, 2048, 10000.0f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f);
    }

    ggml_tensor * by_head(ggml_tensor * x) { return ggml_reshape_3d(nodes_, x, kHead, kHeads, n_tokens_); }

    // softmax(K Q) V, each of its products with dimensions of batches and permuted inputs
    ggml_tensor * attention(ggml_tensor * x) {
        ggml_tensor * q = rotated(by_head(product(x, kWidth)));
        if (random_.chance(50)) ggml_build_forward_expand(graph_, q);
        ggml_tensor * k = rotated(by_head(product(x, kWidth)));
        ggml_tensor * v = by_head(product(x, kWidth));
        if (random_.chance(30)) k = ggml_cast(nodes_, k, GGML_TYPE_F16);
        if (random_.chance(20)) k = ggml_cast(nodes_, k, GGML_TYPE_Q8_0);
        q = ggml_permute(nodes_, q, 0, 2, 1, 3);
        k = ggml_permute(nodes_, k, 0, 2, 1, 3);
        v = ggml_cont(nodes_, ggml_permute(nodes_, v, 1, 2, 0, 3));
        ggml_tensor * scores = ggml_soft_max_ext(nodes_, ggml_mul_mat(nodes_, k, q), nullptr, 0.125f, 0.0f);
        ggml_tensor * mixed = ggml_permute(nodes_, ggml_mul_mat(nodes_, v, scores), 0, 2, 1, 3);
        return keep(ggml_cont_2d(nodes_, mixed, kWidth, n_tokens_));
    }

    // all heads at once, over a cache in which two query heads share one head
    ggml_tensor * cached_attention(ggml_tensor * x) {
        ggml_tensor * q = ggml_permute(nodes_, rotated(by_head(product(x, kWidth))), 0, 2, 1, 3);
        const int64_t n_cells = random_.of({1, 31, 32, 64, 100, 256});
        const ggml_type type = random_.of({GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_F32});
        // heads side by side in each cell, as in llama.cpp, or one after the other
        const bool by_cell = random_.chance(70);
        const auto cache = [&] {
            ggml_tensor * all = by_cell ? leaf(type, kHead, kHeads / 2, n_cells) : leaf(type, kHead, n_cells, kHeads / 2);
            return by_cell ? ggml_permute(nodes_, all, 0, 2, 1, 3) : all;
        };
        ggml_tensor * k = cache(), * v = cache();
        ggml_tensor * mask = leaf(GGML_TYPE_F16, n_cells, (n_tokens_ + 63) / 64 * 64);
        ggml_set_name(mask, kMask);
        ggml_tensor * mixed = ggml_flash_attn_ext(nodes_, q, k, v, mask, 0.5f, 0.0f, random_.chance(5) ? 10.0f : 0.0f);
        return keep(ggml_reshape_2d(nodes_, mixed, kWidth, n_tokens_));
    }

    ggml_tensor * layer(ggml_tensor * x) {
        ggml_tensor * mixed = random_.chance(30)   ? attention(norm(x))
                              : random_.chance(60) ? cached_attention(norm(x))
                                                   : product(norm(x), kWidth);
        if (random_.chance(10)) mixed = any(kWidth);
        x = sum(product(mixed, kWidth), x);
        ggml_tensor * normalized = random_.chance(5) ? x : norm(x);
        ggml_tensor * hidden = feed_forward(normalized, random_.of({256, 512, 544, 288}));
        return sum(product(hidden, kWidth), random_.chance(90) ? x : any(kWidth));
    }

    void build_layers() {
        ggml_tensor * x = random_.chance(50) ? input(GGML_TYPE_F32, kWidth, n_tokens_) : leaf(GGML_TYPE_F32, kWidth, n_tokens_);
        values_.push_back(x);
        for (int n = 1 + random_.below(4); n > 0; n--) x = layer(x);
        if (random_.chance(80)) x = product(norm(x), random_.of({32, 100, 512}));
    }

    // ---- anything, in any order

    ggml_tensor * computed_weight(ggml_tensor * x) {
        ggml_tensor * other = any(x->ne[0]);
        const ggml_type type = random_.of({GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_F32});
        ggml_tensor * w = type == GGML_TYPE_F32 || other->ne[0] % 32 ? other : ggml_cast(nodes_, other, type);
        return keep(ggml_cont(nodes_, ggml_mul_mat(nodes_, w, x)));
    }

    ggml_tensor * batches(ggml_tensor * x) {
        const int64_t n = x->ne[0] % 256 == 0 ? x->ne[0] / 32 : 1, width = x->ne[0] / n;
        x = ggml_reshape_3d(nodes_, x, width, n, n_tokens_);
        ggml_type type = random_.of({GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_F32});
        if (width % ggml_blck_size(type)) type = GGML_TYPE_F16;
        if (random_.chance(40)) return keep(ggml_reshape_2d(nodes_, ggml_mul_mat(nodes_, leaf(type, width, 32), x), 32 * n, n_tokens_));
        ggml_tensor * by_batch = ggml_permute(nodes_, x, 0, 2, 1, 3);
        ggml_tensor * y = ggml_mul_mat(nodes_, leaf(type, width, 64, random_.chance(50) ? n : 1), by_batch);
        return keep(ggml_cont_2d(nodes_, ggml_permute(nodes_, y, 0, 2, 1, 3), 64 * n, n_tokens_));
    }

    // activations with a gap after each token
    ggml_tensor * part(ggml_tensor * x) {
        if (x->ne[0] < 64) return product(x, 64);
        ggml_tensor * view = ggml_view_2d(nodes_, x, x->ne[0] / 64 * 32, n_tokens_, x->nb[1], random_.of({0, 64, 128}));
        return random_.chance(50) ? product(view, 96) : keep(ggml_cont(nodes_, view));
    }

    ggml_tensor * step() {
        ggml_tensor * x = any();
        switch (random_.below(16)) {
            case 0:
            case 1: return product(x, random_.of({1, 31, 64, 256, 256, 512}));
            case 2: return sum(product(x, x->ne[0]), x);
            case 3: return sum(product(x, 256), any(256));
            case 4: return sum(any(256), any(256));
            case 5: return norm(x);
            case 6: return product(norm(x), 256);
            case 7: return feed_forward(x, random_.of({256, 320}));
            case 8: return feed_forward(norm(x), 256);
            case 9: return sum(product(feed_forward(norm(any(256)), 512), 256), any(256));
            case 10: return computed_weight(x);
            case 11: return batches(x);
            case 12: return part(x);
            case 13: return keep(ggml_soft_max(nodes_, x));
            case 14: return keep(ggml_cont_2d(nodes_, rotated(by_head(any(kWidth))), kWidth, n_tokens_));
            default: return viewed_sum(x);
        }
    }

    // two products of the same activations, added through a view of the first
    ggml_tensor * viewed_sum(ggml_tensor * x) {
        ggml_tensor * first = product(x, 256), * view = ggml_view_2d(nodes_, first, 256, n_tokens_, first->nb[1], 0), * second = product(x, 256);
        return keep(random_.chance(50) ? ggml_add(nodes_, second, view) : ggml_add(nodes_, view, second));
    }

    void build_anything() {
        for (int n = 1 + random_.below(2); n >= 0; n--) {
            const int width = random_.of({256, 256, 512, 96});
            values_.push_back(random_.chance(50) ? input(GGML_TYPE_F32, width, n_tokens_) : leaf(GGML_TYPE_F32, width, n_tokens_));
        }
        for (int n = 3 + random_.below(20); n > 0; n--) step();
    }

    Random random_;
    int64_t n_tokens_;
    ggml_context * leafs_, * nodes_;
    ggml_cgraph * graph_;
    ggml_backend_buffer_t buffer_ = nullptr;
    ggml_tensor * positions_ = nullptr;
    std::vector<ggml_tensor *> values_, inputs_, outputs_;
    std::vector<std::vector<char>> input_data_;
    std::map<const ggml_tensor *, double> sizes_;
};

struct Results {
    bool computed = false;
    std::vector<std::vector<float>> values;
    std::vector<int64_t> widths;
    std::vector<int> depths;
    std::vector<double> sizes;
    std::vector<std::string> names;
    int n_nodes = 0, n_of_plugin = 0;
};

// The largest number of consecutive products on the way to a result.
int depth(const ggml_tensor * tensor, std::map<const ggml_tensor *, int> & known) {
    if (tensor->op == GGML_OP_NONE) return 0;
    const auto found = known.find(tensor);
    if (found != known.end()) return found->second;
    int most = 0;
    for (const ggml_tensor * source : tensor->src)
        if (source && source != tensor) most = std::max(most, depth(source, known));  // a cast is its own source
    return known[tensor] = most + (tensor->op == GGML_OP_MUL_MAT);
}

Results compute(unsigned seed, std::vector<ggml_backend_t> backends) {
    Builder builder(seed);
    builder.build();
    ggml_backend_sched_t sched = ggml_backend_sched_new(backends.data(), nullptr, int(backends.size()), kMaxNodes * 2, false, true);
    Results results;
    if (ggml_backend_sched_alloc_graph(sched, builder.graph())) {
        for (int i = 0; i < ggml_graph_n_nodes(builder.graph()); i++)
            if (ggml_backend_sched_get_tensor_backend(sched, ggml_graph_node(builder.graph(), i)) != backends.back()) results.n_of_plugin++;
        results.n_nodes = ggml_graph_n_nodes(builder.graph());
        // twice, to check that the second run needs nothing that the first left behind
        results.computed = true;
        for (int i = 0; i < 2; i++) {
            builder.set_inputs();
            results.computed = results.computed && ggml_backend_sched_graph_compute(sched, builder.graph()) == GGML_STATUS_SUCCESS;
        }
    }
    std::map<const ggml_tensor *, int> depths;
    for (const ggml_tensor * output : builder.outputs()) {
        results.values.emplace_back(ggml_nelements(output));
        ggml_backend_tensor_get(output, results.values.back().data(), 0, ggml_nbytes(output));
        results.widths.push_back(output->ne[0]);
        results.depths.push_back(depth(output, depths));
        results.sizes.push_back(builder.size(output));
        results.names.push_back(std::string(ggml_op_desc(output)) + " of " + std::to_string(output->ne[0]) + " x " + std::to_string(output->ne[1]));
    }
    ggml_backend_sched_free(sched);
    return results;
}

// The worst token's difference in one result, relative to its length; NaN where only one of them is NaN.
double difference(const std::vector<float> & a, const std::vector<float> & b, size_t width, double size_of_values) {
    double worst = 0, all = 0;
    for (float value : b) all += double(value) * value;
    // a token may cancel to almost zero, and so may a result of one value
    const double alone = b.size() < 4 ? size_of_values : 0;
    const double least = 1e-1 * std::max(alone, std::sqrt(all * width / b.size())) + 1e-6;
    for (size_t at = 0; at < a.size(); at += width) {
        double error = 0, size = 0;
        for (size_t j = at; j < at + width; j++) {
            error += std::pow(double(a[j]) - b[j], 2);
            size += std::pow(double(b[j]), 2);
        }
        const double relative = std::sqrt(error) / std::max(least, std::sqrt(size));
        if (std::isnan(relative)) return relative;
        worst = std::max(worst, relative);
    }
    return worst;
}

// The worst result's difference as a share of the allowed one.
double compare(unsigned seed, const Results & ours, const Results & theirs) {
    double worst = 0;
    for (size_t i = 0; i < ours.values.size(); i++) {
        const double found = difference(ours.values[i], theirs.values[i], size_t(ours.widths[i]), ours.sizes[i]);
        // in a short result, nothing averages out
        const double allowed = kTolerance * std::max(1, ours.depths[i]) * (1 + 4 / std::sqrt(double(ours.widths[i])));
        const double share = found / allowed;
        if (getenv("RANDOM_GRAPHS_VERBOSE") || !(share <= 1)) 
            printf("graph %u: result %zu, %s, depth %d, difference %g\n", seed, i, ours.names[i].c_str(), ours.depths[i], found);
        if (std::isnan(share)) return share;
        worst = std::max(worst, share);
    }
    return worst;
}

ggml_backend_t open_plugin(const char * path, const char * kernels, int n_threads) {
    void * const library = dlopen(path, RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return nullptr;
    }
    char message[300] = "";
    const auto choose = reinterpret_cast<int (*)(const char *, char *, int)>(dlsym(library, "bimedix_edge_kernels_choose"));
    if (choose(kernels, message, sizeof message)) {
        fprintf(stderr, "%s\n", message);
        return nullptr;
    }
    ggml_backend_reg_t reg = ggml_backend_load(path);
    if (!reg) return nullptr;
    ggml_backend_t backend = ggml_backend_dev_init(ggml_backend_reg_dev_get(reg, 0), nullptr);
    const auto set_n_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"));
    set_n_threads(backend, n_threads);
    return backend;
}

}  // namespace

int main(int argc, char ** argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    if (argc != 5) return 2;
    ggml_backend_t plugin = open_plugin(argv[1], argv[2], 2), cpu = ggml_backend_cpu_init();
    if (!plugin || !cpu) return 2;
    ggml_backend_cpu_set_n_threads(cpu, 2);
    const unsigned first = unsigned(atoi(argv[3])), count = unsigned(atoi(argv[4]));
    double worst = 0;
    long n_nodes = 0, n_of_plugin = 0;
    int n_different = 0;
    for (unsigned seed = first; seed < first + count; seed++) {
        const Results ours = compute(seed, {plugin, cpu}), theirs = compute(seed, {cpu});
        const double found = compare(seed, ours, theirs);
        if (!ours.computed || !theirs.computed) printf("graph %u: not computed\n", seed);
        if (!ours.computed || !theirs.computed || !(found <= 1)) n_different++;
        worst = std::max(worst, found);
        n_nodes += ours.n_nodes;
        n_of_plugin += ours.n_of_plugin;
    }
    printf("worst %g nodes %ld of %ld\n", worst, n_of_plugin, n_nodes);
    ggml_backend_free(plugin);
    ggml_backend_free(cpu);
    return n_different ? 1 : 0;
}
