#include <algorithm>
#include <cmath>
#include <vector>

#include "aligned.h"
#include "operators.h"

namespace bmx {
namespace vision {
namespace {

constexpr int64_t kRowsOfATask = 32;        // of one task that finds the range of x and rounds it
constexpr int kColumnsOfATask = 128;        // of one task of the product: their weights, up to 512 KB, stay in the second-level cache
constexpr int64_t kBytesOfATask = 2560 << 10;  // of rounded x, about; each task packs its weights again

struct Job {
    const Table & table;
    const Linear & layer;
    const float * x;
    int64_t n_tokens;
    const float * residual;
    float * y;
    uint8_t * bytes;  // of x, and kMostTokens rows more
    int64_t stride;   // of these
    std::vector<float> low, high;  // of each task's rows
    float scale, inverse;
    int zero;
    int64_t tokens_of_a_task;
};

void search(void * data, size_t index) {
    Job & job = *static_cast<Job *>(data);
    const int64_t first = int64_t(index) * kRowsOfATask, n = std::min(kRowsOfATask, job.n_tokens - first);
    job.table.range(job.x + first * job.layer.n_in, n * job.layer.n_in, &job.low[index], &job.high[index]);
}

void round(void * data, size_t index) {
    Job & job = *static_cast<Job *>(data);
    const int64_t first = int64_t(index) * kRowsOfATask, n = std::min(kRowsOfATask, job.n_tokens - first);
    for (int64_t t = first; t < first + n; t++)
        job.table.round(job.x + t * job.layer.n_in, job.layer.n_in, job.inverse, job.zero, job.bytes + t * job.stride);
}

// Chooses them as DynamicQuantizeLinear does; NaN in x makes the scale NaN, and so all results.
void choose_scale(Job & job) {
    float low = 0, high = 0, poison = 0;
    for (size_t i = 0; i < job.low.size(); i++) {
        low = std::min(low, job.low[i]);
        high = std::max(high, job.high[i]);
        poison += 0 * job.low[i];
    }
    job.scale = (high - low) / 255 + poison;
    job.inverse = job.scale != 0 ? 1 / job.scale : 0;
    job.zero = job.scale > 0 ? int(std::nearbyint(std::min(255.0f, std::max(0.0f, -low / job.scale)))) : 0;
}

// Some columns for some tokens. Consecutive tasks have the same tokens, and their columns are in order.
void multiply(void * data, size_t index) {
    const Job & job = *static_cast<Job *>(data);
    const Linear & layer = job.layer;
    const int64_t n_parts = (layer.n_out + kColumnsOfATask - 1) / kColumnsOfATask, column = int64_t(index) % n_parts * kColumnsOfATask;
    const int64_t begin = int64_t(index) / n_parts * job.tokens_of_a_task, end = std::min(begin + job.tokens_of_a_task, job.n_tokens);
    const int n_columns = int(std::min<int64_t>(kColumnsOfATask, layer.n_out - column));
    const int64_t n_groups = layer.n_in / kGroupBytes;
    static thread_local Aligned kept;
    char * const weights = kept.room<char>(size_t(layer.n_in) * kColumnsOfATask);
    job.table.pack(layer.weights + column, size_t(layer.n_out), n_groups, n_columns / kPanelColumns, weights);
    alignas(64) int32_t sums[kMostTokens * kColumnsOfATask];
    int32_t offsets[kColumnsOfATask];
    float factors[kColumnsOfATask];
    for (int i = 0; i < n_columns; i++) {
        offsets[i] = job.zero * layer.column_sums[column + i];
        factors[i] = job.scale * layer.scales[column + i];
    }
    // the next columns' weights are spread over rows, which no processor prefetches by itself
    const int64_t next = (column + n_columns) % layer.n_out, next_columns = std::min<int64_t>(kColumnsOfATask, layer.n_out - next);
    Fetch fetch(layer.weights + next, size_t(layer.n_out), layer.n_in, int(next_columns / 64));
    const int64_t n_products = (end - begin + job.table.tokens - 1) / job.table.tokens, n_fetch = (layer.n_in + n_products - 1) / n_products;
    for (int64_t first = begin; first < end; first += job.table.tokens) {
        const int n_tokens = int(std::min<int64_t>(job.table.tokens, end - first));
        const char * const a = reinterpret_cast<const char *>(job.bytes) + first * job.stride;
        job.table.multiply_bytes({a, size_t(job.stride), n_tokens, weights, n_columns, n_groups, sums, kColumnsOfATask, &fetch, n_fetch});
        const int64_t at = first * layer.n_out + column;
        job.table.finish({sums, kColumnsOfATask, offsets, factors, layer.bias + column, job.residual ? job.residual + at : nullptr, layer.silu,
                          job.y + at, size_t(layer.n_out), n_tokens, n_columns});
    }
}

}  // namespace

void linear(const Table & table, const Linear & layer, const float * x, int64_t n_tokens, const float * residual, float * y, Workers & workers) {
    if (n_tokens == 0) return;
    static thread_local Aligned kept;
    const size_t n_tasks = size_t((n_tokens + kRowsOfATask - 1) / kRowsOfATask);
    const int64_t stride = layer.n_in + kSpareBytes;
    Job job = {table, layer, x, n_tokens, residual, y, kept.room<uint8_t>(size_t((n_tokens + kMostTokens) * stride)), stride, {}, {}, 0, 0, 0, 0};
    job.low.resize(n_tasks);
    job.high.resize(n_tasks);
    workers.run(n_tasks, search, &job);
    choose_scale(job);
    workers.run(n_tasks, round, &job);
    // chunks of about equal size, each of whole products
    const int64_t n_chunks = (n_tokens * stride + kBytesOfATask - 1) / kBytesOfATask;
    job.tokens_of_a_task = up_to((n_tokens + n_chunks - 1) / n_chunks, table.tokens);
    const int64_t n_tasks_of_tokens = (n_tokens + job.tokens_of_a_task - 1) / job.tokens_of_a_task;
    workers.run(size_t((layer.n_out + kColumnsOfATask - 1) / kColumnsOfATask * n_tasks_of_tokens), multiply, &job);
}

}  // namespace vision
}  // namespace bmx
