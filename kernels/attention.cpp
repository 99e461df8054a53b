#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "threads.h"

namespace bmx {

namespace {

constexpr uint16_t kHidden = 0xfc00;  // minus infinity in half precision
constexpr uint64_t kFourHidden = 0xfc00fc00fc00fc00;

// Consecutive tokens: each sees the cells that the previous token sees, in the same order, and further cells after them.
struct Run {
    int64_t first;
    int n_tokens;
    std::vector<int32_t> cells;  // seen by the last token
    std::vector<int32_t> n_seen;  // by each token
};

struct Job {
    const Table & table;
    const ggml_tensor * node;
    std::vector<Run> runs;
    int64_t n_groups;  // heads that share keys and values
    char * scratch;    // [threads]
    size_t scratch_bytes;
    std::atomic<int64_t> next;
};

// Lists the cells that a row of the mask leaves visible; false if the mask does more than hide cells.
bool seen(const ggml_tensor * mask, int64_t token, std::vector<int32_t> & cells) {
    const uint16_t * const row = reinterpret_cast<const uint16_t *>(static_cast<const char *>(mask->data) + token * mask->nb[1]);
    cells.clear();
    for (int64_t i = 0; i < mask->ne[0];) {
        uint64_t four = 0;
        if (i + 4 <= mask->ne[0]) memcpy(&four, row + i, 8);
        if (four == kFourHidden) {
            i += 4;
            continue;
        }
        for (const int64_t end = std::min(i + 4, mask->ne[0]); i < end; i++) {
            if (row[i] == kHidden) continue;
            if (row[i] != 0) return false;
            cells.push_back(int32_t(i));
        }
    }
    return !cells.empty();
}

bool continues(const std::vector<int32_t> & longer, const std::vector<int32_t> & shorter) {
    return longer.size() >= shorter.size() && std::equal(shorter.begin(), shorter.end(), longer.begin());
}

bool find_runs(const ggml_tensor * node, int most_tokens, std::vector<Run> & runs) {
    std::vector<int32_t> cells;
    for (int64_t token = 0; token < node->src[0]->ne[1]; token++) {
        if (!seen(node->src[3], token, cells)) return false;
        if (runs.empty() || runs.back().n_tokens == most_tokens || !continues(cells, runs.back().cells)) runs.push_back({token, 0, {}, {}});
        Run & run = runs.back();
        run.cells.swap(cells);
        run.n_seen.push_back(int32_t(run.cells.size()));
        run.n_tokens++;
    }
    return true;
}

const char * head_of(const ggml_tensor * tensor, int64_t head) { return static_cast<const char *>(tensor->data) + head * tensor->nb[2]; }

// One run with one head of keys and values: a row for each token and each query head that shares the head.
void attend_run(const Job & job, const Run & run, int64_t kv_head, char * scratch) {
    const ggml_tensor * q = job.node->src[0], * k = job.node->src[1], * v = job.node->src[2];
    const int64_t head_size = q->ne[0], n_shared = q->ne[2] / job.n_groups;
    float scale;
    memcpy(&scale, job.node->op_params, sizeof(scale));
    const int n_rows = int(run.n_tokens * n_shared);
    float * const queries = reinterpret_cast<float *>(scratch), * const out = queries + n_rows * head_size;
    int32_t * const n_seen = reinterpret_cast<int32_t *>(out + n_rows * head_size);
    for (int r = 0; r < n_rows; r++) {
        const int64_t token = run.first + r / n_shared, head = kv_head * n_shared + r % n_shared;
        const float * from = reinterpret_cast<const float *>(head_of(q, head) + token * q->nb[1]);
        for (int64_t i = 0; i < head_size; i++) queries[r * head_size + i] = from[i] * scale;
        n_seen[r] = run.n_seen[r / n_shared];
    }
    const AttentionRows rows = {queries, out, n_rows, int(head_size), run.cells.data(), int(run.cells.size()), n_seen,
        head_of(k, kv_head), k->nb[1], head_of(v, kv_head), v->nb[1]};
    job.table.attend(rows, reinterpret_cast<char *>(aligned(reinterpret_cast<size_t>(n_seen + n_rows))));
    for (int r = 0; r < n_rows; r++) {
        const int64_t token = run.first + r / n_shared, head = kv_head * n_shared + r % n_shared;
        memcpy(static_cast<char *>(job.node->data) + head * job.node->nb[1] + token * job.node->nb[2], out + r * head_size, head_size * sizeof(float));
    }
}

void run_job(void * data, Team &, int index) {
    Job & job = *static_cast<Job *>(data);
    const int64_t n_items = int64_t(job.runs.size()) * job.n_groups;
    for (int64_t item = job.next++; item < n_items; item = job.next++)
        // the last runs see the most cells, so they come first
        attend_run(job, job.runs[job.runs.size() - 1 - item / job.n_groups], item % job.n_groups, job.scratch + index * job.scratch_bytes);
}

bool is_cache(const ggml_tensor * tensor, const ggml_tensor * q) {
    return tensor->type == GGML_TYPE_F16 && tensor->nb[0] == sizeof(uint16_t) && tensor->ne[0] == q->ne[0] && tensor->ne[3] == 1 &&
           tensor->ne[2] > 0 && q->ne[2] % tensor->ne[2] == 0;
}

}  // namespace

bool is_our_attention(const Table & table, const ggml_tensor * node) {
    if (!table.attend || node->op != GGML_OP_FLASH_ATTN_EXT || node->src[4] || !ggml_is_contiguous(node)) return false;
    const ggml_tensor * q = node->src[0], * k = node->src[1], * v = node->src[2], * mask = node->src[3];
    float params[3];  // the scale, the largest bias, the cap of products
    memcpy(params, node->op_params, sizeof(params));
    if (params[1] != 0 || params[2] != 0 || node->type != GGML_TYPE_F32) return false;
    if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || q->ne[3] != 1 || q->ne[0] % 32 != 0 || q->ne[0] > kMostHeadSize) return false;
    if (!is_cache(k, q) || !is_cache(v, q) || k->ne[1] != v->ne[1] || k->ne[2] != v->ne[2]) return false;
    if (q->ne[2] / k->ne[2] > kMostAttentionRows) return false;
    return mask && mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(uint16_t) && mask->ne[0] == k->ne[1] &&
           mask->ne[1] >= q->ne[1] && mask->ne[2] == 1 && mask->ne[3] == 1;
}

Attended compute_attention(Context & context, ggml_tensor * node) {
    const ggml_tensor * q = node->src[0];
    const int64_t n_groups = node->src[1]->ne[2];
    Job job = {*context.table, node, {}, n_groups, nullptr, 0, {0}};
    if (!find_runs(node, int(kMostAttentionRows / (q->ne[2] / n_groups)), job.runs)) return Attended::declined;
    const size_t of_rows = kMostAttentionRows * (2 * size_t(q->ne[0]) * sizeof(float) + sizeof(int32_t));
    job.scratch_bytes = aligned(of_rows) + aligned(context.table->attention_bytes);
    job.scratch = context.scratch.at_least(job.scratch_bytes * context.n_threads);
    if (!job.scratch) return Attended::no_memory;
    run_team(context.n_threads, run_job, &job);
    return Attended::done;
}

}  // namespace bmx
