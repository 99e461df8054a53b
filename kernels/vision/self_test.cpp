// Small problems with odd sizes, computed by plain loops and by a table.
#include <algorithm>
#include <cmath>
#include <vector>

#include "operators.h"

namespace bmx {
namespace vision {
namespace {

struct Random {
    uint32_t state = 1;
    uint32_t next() { return state = state * 1664525u + 1013904223u; }
    float unit() { return float(next() >> 8) / float(1 << 24) - 0.5f; }
    std::vector<float> units(size_t n) {
        std::vector<float> result(n);
        for (float & value : result) value = unit();
        return result;
    }
};

struct OneThread : Workers {
    void run(size_t n, Task task, void * data) override {
        for (size_t i = 0; i < n; i++) task(data, i);
    }
};

// Largest difference, as a share of the largest value; infinite for NaN.
double difference(const std::vector<float> & found, const std::vector<double> & expected) {
    double most = 0, largest = 0;
    for (size_t i = 0; i < found.size(); i++) {
        const double apart = std::fabs(found[i] - expected[i]);
        if (!(apart <= 1e30)) return INFINITY;
        most = std::max(most, apart);
        largest = std::max(largest, std::fabs(expected[i]));
    }
    return most / largest;
}

double linear_error(const Table & table, int64_t n_tokens, int64_t n_in, int64_t n_out, bool silu) {
    Random random;
    const std::vector<float> x = random.units(size_t(n_tokens * n_in)), bias = random.units(size_t(n_out));
    const std::vector<float> scales(size_t(n_out), 0.01f), residual = random.units(size_t(n_tokens * n_out));
    std::vector<int8_t> weights(size_t(n_in * n_out));
    for (int8_t & weight : weights) weight = int8_t(random.next() >> 24);
    const float low = std::min(0.0f, *std::min_element(x.begin(), x.end())), high = std::max(0.0f, *std::max_element(x.begin(), x.end()));
    const float scale = (high - low) / 255;
    const double zero = std::nearbyint(-low / scale);
    std::vector<double> expected(residual.begin(), residual.end());
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t i = 0; i < n_out; i++) {
            double sum = 0;
            for (int64_t k = 0; k < n_in; k++)
                sum += std::nearbyint(x[size_t(t * n_in + k)] * (1 / scale)) * weights[size_t(k * n_out + i)];
            const double v = sum * scale * scales[size_t(i)] + bias[size_t(i)];
            expected[size_t(t * n_out + i)] += silu ? v / (1 + std::exp(-v)) : v;
        }
    }
    if (!(zero >= 0 && zero <= 255)) return INFINITY;
    std::vector<int32_t> sums(static_cast<size_t>(n_out));
    table.column_sums(weights.data(), n_in, n_out, sums.data());
    const Linear layer = {n_in, n_out, weights.data(), scales.data(), bias.data(), sums.data(), silu};
    std::vector<float> found(expected.size());
    OneThread one;
    linear(table, layer, x.data(), n_tokens, residual.data(), found.data(), one);
    return difference(found, expected);
}

double attention_error(const Table & table, int64_t n_tokens, int64_t n_heads, int64_t head_size) {
    Random random;
    const int64_t width = n_heads * head_size;
    const std::vector<float> q = random.units(size_t(n_tokens * width)), k = random.units(q.size()), v = random.units(q.size());
    std::vector<double> expected(q.size());
    for (int64_t h = 0; h < n_heads; h++) {
        for (int64_t t = 0; t < n_tokens; t++) {
            const size_t at = size_t(t * width + h * head_size);
            double total = 0;
            for (int64_t key = 0; key < n_tokens; key++) {
                const size_t other = size_t(key * width + h * head_size);
                double score = 0;
                for (int64_t i = 0; i < head_size; i++) score += double(q[at + size_t(i)]) * k[other + size_t(i)];
                const double weight = std::exp(score / std::sqrt(double(head_size)));
                total += weight;
                for (int64_t i = 0; i < head_size; i++) expected[at + size_t(i)] += weight * v[other + size_t(i)];
            }
            for (int64_t i = 0; i < head_size; i++) expected[at + size_t(i)] /= total;
        }
    }
    std::vector<float> found(q.size());
    OneThread one;
    attention(table, {q.data(), k.data(), v.data(), found.data(), n_tokens, n_heads, head_size}, one);
    return difference(found, expected);
}

}  // namespace

const char * self_test(const Table & table) {
    // sums of whole numbers are exact; the later steps are float32
    if (!(linear_error(table, 7, 64, 64, true) < 1e-5)) return "a layer of 64 columns";
    if (!(linear_error(table, 39, 192, 320, false) < 1e-5)) return "a layer of 320 columns";
    // queries, keys, values and weights have 8 bits in bfloat16
    if (table.multiply_halves && !(attention_error(table, 45, 2, 64) < 0.02)) return "attention";
    if (table.multiply_halves && !(attention_error(table, 3, 1, 96) < 0.02)) return "attention of few tokens";
    return nullptr;
}

}  // namespace vision
}  // namespace bmx
