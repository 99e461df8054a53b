#include <algorithm>
#include <cmath>

#include "aligned.h"
#include "operators.h"

namespace bmx {
namespace vision {
namespace {

constexpr size_t kHalf = sizeof(uint16_t);
constexpr int kSpare = kSpareBytes / kHalf;

const char * bytes(const uint16_t * halves) { return reinterpret_cast<const char *>(halves); }

struct Job {
    const Table & table;
    const Heads & heads;
};

// One head: its keys and values are packed once, then some queries at a time are scored, weighed and multiplied.
struct Head {
    const Table & table;
    int n_tokens, head_size;
    size_t stride;   // of tokens
    int n_cells;     // number of keys and of values, padded with zeros to a multiple of 32
    uint16_t * keys, * values, * queries, * weights;
    float * scores, * sums;

    Head(const Table & of, const Heads & heads, Aligned & kept)
        : table(of), n_tokens(int(heads.n_tokens)), head_size(int(heads.head_size)), stride(size_t(heads.n_heads * heads.head_size)),
          n_cells(int(up_to(heads.n_tokens, 32))) {
        const size_t packed = size_t(n_cells) * head_size, scored = size_t(std::max(n_cells, head_size)) * kMostTokens;
        const size_t weighed = size_t(n_cells + kSpare) * kMostTokens, asked = size_t(head_size + kSpare) * kMostTokens;
        scores = kept.room<float>(scored + kMostTokens + (2 * packed + weighed + asked) / 2);
        sums = scores + scored;
        keys = reinterpret_cast<uint16_t *>(sums + kMostTokens);
        values = keys + packed;
        weights = values + packed;
        queries = weights + weighed;
    }

    void attend(const float * q, const float * k, const float * v, float * y) {
        table.pack_keys(k, stride, n_tokens, head_size, keys);
        table.pack_values(v, stride, n_tokens, head_size, values);
        const size_t asked_stride = size_t(head_size + kSpare), weights_stride = size_t(n_cells + kSpare);
        // exp(x) is 2^(x log2 e)
        const float factor = float(1 / std::log(2.0) / std::sqrt(double(head_size)));
        for (int first = 0; first < n_tokens; first += table.tokens) {
            const int n = std::min(table.tokens, n_tokens - first);
            table.narrow(q + first * stride, stride, n, head_size, factor, queries, asked_stride);
            table.multiply_halves({bytes(queries), asked_stride * kHalf, n, bytes(keys), n_cells, head_size / 2, scores, size_t(n_cells), nullptr, 0});
            table.weigh({scores, size_t(n_cells), n, n_tokens, weights, weights_stride, sums});
            // the sums overwrite the scores, which are no longer needed
            table.multiply_halves({bytes(weights), weights_stride * kHalf, n, bytes(values), head_size, n_cells / 2, scores, size_t(head_size), nullptr, 0});
            table.divide(scores, size_t(head_size), sums, n, head_size, y + first * stride, stride);
        }
    }
};

void attend(void * data, size_t index) {
    const Job & job = *static_cast<const Job *>(data);
    const Heads & heads = job.heads;
    static thread_local Aligned kept;
    const int64_t at = int64_t(index) * heads.head_size;
    Head(job.table, heads, kept).attend(heads.q + at, heads.k + at, heads.v + at, heads.y + at);
}

}  // namespace

void attention(const Table & table, const Heads & heads, Workers & workers) {
    if (heads.n_tokens == 0) return;
    Job job = {table, heads};
    workers.run(size_t(heads.n_heads), attend, &job);
}

}  // namespace vision
}  // namespace bmx
