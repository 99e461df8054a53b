#include "graph.h"

#include <algorithm>
#include <cstring>

#include "attention.h"
#include "ggml-cpu.h"

namespace bmx {

namespace {

constexpr int kLookAhead = 24;  // nodes, the window in which products of the same activations are found

bool is_view(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE: return true;
        default: return false;
    }
}

bool to_compute(const ggml_tensor * node) { return !is_view(node) && !ggml_is_empty(node) && (node->flags & GGML_TENSOR_FLAG_COMPUTE); }

bool plain_f32(const ggml_tensor * tensor) { return tensor->type == GGML_TYPE_F32 && ggml_is_contiguous(tensor); }

bool known_weight(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K:
        case GGML_TYPE_Q6_K: return true;
        default: return false;
    }
}

int64_t n_tokens(const ggml_tensor * x) { return x->ne[1] * x->ne[2] * x->ne[3]; }

// How often the graph reads a tensor; -1 if unknown.
int use_count(const ggml_cgraph * graph, const ggml_tensor * tensor) {
    const ggml_hash_set & set = graph->visited_hash_set;
    if (!graph->use_counts || !set.size) return -1;
    const size_t start = (reinterpret_cast<uintptr_t>(tensor) >> 4) % set.size;
    for (size_t i = start;;) {
        if (!(set.used[i >> 5] >> (i & 31) & 1)) return -1;
        if (set.keys[i] == tensor) return graph->use_counts[i];
        i = (i + 1) % set.size;
        if (i == start) return -1;
    }
}

// Whether a tensor has exactly one reader and is no output; then it need not be written.
bool read_once(const ggml_cgraph * graph, const ggml_tensor * tensor) {
    return use_count(graph, tensor) == 1 && !tensor->view_src && !(tensor->flags & GGML_TENSOR_FLAG_OUTPUT);
}

// Whether a weight stays in place for the whole graph: a weight of the model, or some rows of one.
bool is_constant(const ggml_tensor * weight) {
    if (weight->view_src && weight->op == GGML_OP_VIEW) weight = weight->view_src;
    return weight->op == GGML_OP_NONE && weight->buffer &&
           ggml_backend_buffer_get_usage(weight->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
}

int next_node(const ggml_cgraph * graph, int i) {
    for (i++; i < graph->n_nodes && !to_compute(graph->nodes[i]);) i++;
    return i;
}

Matrix matrix_of(const ggml_tensor * weight) {
    return {Weight(weight->type), static_cast<const char *>(weight->data), weight->nb[1], weight->ne[1]};
}

float * floats(const ggml_tensor * tensor) { return static_cast<float *>(tensor->data); }

bool same_range(const ggml_tensor * a, const ggml_tensor * b) { return a->data == b->data && ggml_nbytes(a) == ggml_nbytes(b); }

bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const char * const first = static_cast<const char *>(a->data), * const second = static_cast<const char *>(b->data);
    return first < second + ggml_nbytes(b) && second < first + ggml_nbytes(a);
}

// One step of the walk: the nodes from its first up to `next` become one piece of work.
class Fusion {
public:
    Fusion(const ggml_cgraph * graph, int first) : graph_(graph), next_(first) {}

    // Whether the kernels compute the work that begins at the first node.
    bool build() {
        const ggml_tensor * x = take_norm();
        const int at = next_;
        if (at >= graph_->n_nodes || !to_compute(node(at)) || !is_ours(node(at))) return false;
        if (!x) x = node(at)->src[1];
        else if (node(at)->src[1] != x) return false;
        take_products(x);
        work_.x = floats(norm_input_ ? norm_input_ : x);
        work_.n_tokens = n_tokens(x);
        work_.n_columns = x->ne[0];
        work_.norm = norm_input_ ? &norm_ : nullptr;
        if (!take_swiglu()) take_sum();
        return true;
    }

    const Work & work() const { return work_; }
    int next() const { return next_; }

private:
    const ggml_tensor * node(int i) const { return graph_->nodes[i]; }

    // RMS_NORM and MUL with a weight; returns the result, or null
    const ggml_tensor * take_norm() {
        const ggml_tensor * norm = node(next_);
        if (norm->op != GGML_OP_RMS_NORM || !plain_f32(norm) || !plain_f32(norm->src[0])) return nullptr;
        const int at = next_node(graph_, next_);
        if (at >= graph_->n_nodes) return nullptr;
        const ggml_tensor * scaled = node(at);
        if (scaled->op != GGML_OP_MUL || scaled->src[0] != norm || !plain_f32(scaled) || !ggml_are_same_shape(scaled, norm)) return nullptr;
        const ggml_tensor * weight = scaled->src[1];
        if (!plain_f32(weight) || weight->ne[0] != norm->ne[0] || ggml_nrows(weight) != 1) return nullptr;
        if (n_tokens(norm) > kMostTokens) return nullptr;
        // a token's result may overwrite that token, but no part of another
        const ggml_tensor * input = norm->src[0];
        const bool keeps_plain = !read_once(graph_, norm);
        for (const ggml_tensor * to : {scaled, keeps_plain ? norm : scaled})
            if (overlap(to, input) && !same_range(to, input)) return nullptr;
        if (overlap(scaled, weight) || (keeps_plain && overlap(norm, weight))) return nullptr;
        if (keeps_plain && overlap(scaled, norm) && !same_range(scaled, norm)) return nullptr;
        memcpy(&norm_.epsilon, norm->op_params, sizeof(float));
        norm_.weight = floats(weight);
        norm_.plain = keeps_plain && !same_range(scaled, norm) ? floats(norm) : nullptr;
        norm_.scaled = floats(scaled);
        norm_input_ = input;
        next_ = next_node(graph_, at);
        return scaled;
    }

    void take_products(const ggml_tensor * x) {
        for (; next_ < graph_->n_nodes; next_ = next_node(graph_, next_)) {
            const ggml_tensor * product = node(next_);
            if (!is_ours(product) || product->src[1] != x) break;
            // memory outside the model may be reused for a later result, so such a weight is multiplied alone
            if (!is_constant(product->src[0]) && !nodes_.empty()) break;
            nodes_.push_back(product);
            work_.products.push_back({Product::Kind::store, matrix_of(product->src[0]), {}, floats(product), product->ne[0], nullptr});
            if (!is_constant(product->src[0])) {
                constant_weights_ = false;
                next_ = next_node(graph_, next_);
                break;
            }
        }
    }

    int taken(const ggml_tensor * tensor) const {
        const auto found = std::find(nodes_.begin(), nodes_.end(), tensor);
        return found == nodes_.end() ? -1 : int(found - nodes_.begin());
    }

    bool may_skip(const ggml_tensor * tensor) const {
        return constant_weights_ && read_once(graph_, tensor) && n_tokens(tensor) <= kMostTokens;
    }

    // silu(gate) * up of two of the products
    bool take_swiglu() {
        if (next_ >= graph_->n_nodes) return false;
        const ggml_tensor * glu = node(next_);
        if (glu->op != GGML_OP_GLU || ggml_get_glu_op(glu) != GGML_GLU_OP_SWIGLU || !glu->src[1] || !plain_f32(glu)) return false;
        const int gate = taken(glu->src[0]), up = taken(glu->src[1]);
        if (gate < 0 || up < 0 || gate == up || !may_skip(nodes_[gate]) || !may_skip(nodes_[up])) return false;
        const Matrix w = work_.products[gate].w, v = work_.products[up].w;
        if (w.n_rows != v.n_rows || !ggml_are_same_shape(glu, nodes_[gate])) return false;
        if (overlaps_products(glu, gate, up)) return false;
        const Product fused = {Product::Kind::swiglu, w, v, floats(glu), glu->ne[0], nullptr};
        work_.products.erase(work_.products.begin() + std::max(gate, up));
        work_.products[std::min(gate, up)] = fused;
        next_ = next_node(graph_, next_);
        return true;
    }

    // the last product plus an existing tensor
    void take_sum() {
        if (next_ >= graph_->n_nodes) return;
        const ggml_tensor * sum = node(next_);
        const int last = int(nodes_.size()) - 1;
        if (sum->op != GGML_OP_ADD || !plain_f32(sum) || !may_skip(nodes_[last])) return;
        const ggml_tensor * other = sum->src[0] == nodes_[last] ? sum->src[1] : sum->src[0];
        if ((sum->src[0] != nodes_[last] && sum->src[1] != nodes_[last]) || other == nodes_[last]) return;
        if (!plain_f32(other) || !ggml_are_same_shape(other, nodes_[last]) || taken(other) >= 0) return;
        if ((overlap(sum, other) && !same_range(sum, other)) || overlaps_products(sum, last, last)) return;
        // a view of another product is complete only when all products are
        if (overlaps_products(other, last, last)) return;
        // the normalized values are written before the sum reads them
        if (norm_input_ && (overlap_floats(norm_.scaled, other) || overlap_floats(norm_.plain, other))) return;
        Product & product = work_.products[last];
        product = {Product::Kind::add, product.w, {}, floats(sum), sum->ne[0], floats(other)};
        next_ = next_node(graph_, next_);
    }

    // whether writing a result earlier, with its products, would overwrite the others
    bool overlaps_products(const ggml_tensor * result, int one, int two) const {
        for (int i = 0; i < int(nodes_.size()); i++)
            if (i != one && i != two && overlap(result, nodes_[i])) return true;
        return false;
    }

    bool overlap_floats(const float * start, const ggml_tensor * tensor) const {
        if (!start) return false;
        const char * const first = reinterpret_cast<const char *>(start), * const second = static_cast<const char *>(tensor->data);
        const size_t n = size_t(work_.n_tokens * work_.n_columns) * sizeof(float);
        return first < second + ggml_nbytes(tensor) && second < first + n;
    }

    const ggml_cgraph * graph_;
    int next_;
    Work work_ = {};
    Norm norm_ = {};
    const ggml_tensor * norm_input_ = nullptr;
    std::vector<const ggml_tensor *> nodes_;
    bool constant_weights_ = true;
};

// ggml splits the attention of a lone token among threads by cells, and then adds up in another order than for several
// tokens: an answer would depend on whether others are decoded in the same batch. Its reference path splits by heads.
bool is_lone_attention(const ggml_tensor * node) { return node->op == GGML_OP_FLASH_ATTN_EXT && node->src[0]->ne[1] == 1; }

ggml_status compute_foreign(Context & context, const ggml_cgraph * graph, int begin, int end) {
    bool any = false, lone = false;
    for (int i = begin; i < end; i++) {
        any = any || to_compute(graph->nodes[i]);
        lone = lone || is_lone_attention(graph->nodes[i]);
    }
    if (!any) return GGML_STATUS_SUCCESS;
    ggml_backend_cpu_set_use_ref(context.cpu, lone);
    ggml_cgraph part = *graph;
    part.size = 0;
    part.n_leafs = 0;
    part.grads = part.grad_accs = part.leafs = nullptr;
    part.nodes += begin;
    part.n_nodes = end - begin;
    part.uid = 0;
    return ggml_backend_graph_compute(context.cpu, &part);
}

}  // namespace

bool is_ours(const ggml_tensor * node) {
    if (node->op != GGML_OP_MUL_MAT) return false;
    const ggml_tensor * w = node->src[0], * x = node->src[1];
    if (!known_weight(w->type) || w->ne[2] != 1 || w->ne[3] != 1 || w->nb[0] != ggml_type_size(w->type)) return false;
    if (w->nb[1] < ggml_row_size(w->type, w->ne[0]) || w->ne[0] % 32 != 0) return false;
    return plain_f32(x) && plain_f32(node) && !ggml_is_empty(node) && w->ne[0] > 0;
}

ggml_status compute_graph(Context & context, ggml_cgraph * graph) {
    int foreign = 0;  // nodes from here on are not computed yet
    for (int i = 0; i < graph->n_nodes;) {
        if (to_compute(graph->nodes[i]) && is_our_attention(*context.table, graph->nodes[i])) {
            // its inputs must be computed first; the mask decides whether the node is ours
            const ggml_status status = compute_foreign(context, graph, foreign, i);
            if (status != GGML_STATUS_SUCCESS) return status;
            const Attended attended = compute_attention(context, graph->nodes[i]);
            if (attended == Attended::no_memory) return GGML_STATUS_ALLOC_FAILED;
            foreign = attended == Attended::done ? i + 1 : i;
            i++;
            continue;
        }
        Fusion fusion(graph, i);
        if (!to_compute(graph->nodes[i]) || !fusion.build()) {
            i++;
            continue;
        }
        const ggml_status status = compute_foreign(context, graph, foreign, i);
        if (status != GGML_STATUS_SUCCESS) return status;
        if (context.abort_callback && context.abort_callback(context.abort_data)) return GGML_STATUS_ABORTED;
        if (!multiply(*context.table, fusion.work(), context.n_threads, context.scratch)) return GGML_STATUS_ALLOC_FAILED;
        i = foreign = fusion.next();
    }
    return compute_foreign(context, graph, foreign, graph->n_nodes);
}

void optimize_graph(ggml_cgraph * graph) {
    ggml_tensor ** nodes = graph->nodes;
    for (int i = 0; i < graph->n_nodes; i++) {
        if (!is_ours(nodes[i])) continue;
        int last = i;
        for (int j = i + 1; j < std::min(graph->n_nodes, i + kLookAhead); j++) {
            // no node between changes the activations, nor weights that no node computes
            if (!is_ours(nodes[j]) || nodes[j]->src[1] != nodes[i]->src[1] || nodes[j]->src[0]->op != GGML_OP_NONE) continue;
            std::rotate(nodes + last + 1, nodes + j, nodes + j + 1);
            last++;
        }
        i = last;
    }
}

}  // namespace bmx
