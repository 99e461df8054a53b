// The kernels' products under sanitizers: each type on each instruction set that this processor can run, odd sizes, fused or
// not, on one to four threads. Arrays end where the data ends, so that the sanitizers find a byte read or written too far.
// The scalar version is the reference. No ggml is needed.
//
//   products            all tests
//   products threads    only tests with several threads, for ThreadSanitizer
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "../../kernels/processor.h"
#include "../../kernels/matmul.h"
#include "../../kernels/self_test.h"

namespace {

using namespace bmx;

const Weight kWeights[] = {Weight::q4_k, Weight::q5_k, Weight::q6_k, Weight::q8_0, Weight::q4_0, Weight::f16};
int n_failures = 0, n_checks = 0;

struct Random {
    uint32_t state;
    uint32_t next() { return state = state * 1664525u + 1013904223u; }
    uint8_t byte() { return uint8_t(next() >> 24); }
    float unit() { return float(next() >> 8) / float(1 << 24) - 0.5f; }
};

// Memory of exactly the given size, which starts at an odd multiple of two bytes.
struct Bytes {
    std::unique_ptr<char[]> memory;
    size_t size;
    explicit Bytes(size_t n) : memory(new char[n + 2]), size(n) {}
    char * data() const { return memory.get() + 2; }
};

struct RandomMatrix {
    Bytes bytes;
    Matrix matrix;

    RandomMatrix(Weight weight, int64_t n_rows, int64_t n_columns, size_t gap, Random & random)
        : bytes(n_rows * row_bytes(weight, n_columns) + (n_rows - 1) * gap) {
        for (size_t i = 0; i < bytes.size; i++) bytes.data()[i] = char(random.byte());
        const size_t stride = row_bytes(weight, n_columns) + gap;
        for (int64_t row = 0; row < n_rows; row++) moderate(weight, n_columns, bytes.data() + row * stride, random);
        matrix = {weight, bytes.data(), stride, n_rows};
    }

    static size_t row_bytes(Weight weight, int64_t n_columns) {
        const BlockSize size = block_size(weight);
        return size_t(n_columns / size.columns * size.bytes);
    }

    // scales of moderate size, so that no sum overflows
    static void moderate(Weight weight, int64_t n_columns, char * row, Random & random) {
        const BlockSize size = block_size(weight);
        for (int64_t at = 0; at < n_columns / size.columns; at++) {
            const auto put = [&](int offset) {
                const uint16_t half = uint16_t(0x2000 | (random.next() >> 16 & 0x83ff));
                memcpy(row + at * size.bytes + offset, &half, 2);
            };
            put(weight == Weight::q6_k ? 208 : 0);
            if (weight == Weight::q4_k || weight == Weight::q5_k) put(2);
        }
    }
};

std::vector<float> random_floats(size_t n, Random & random) {
    std::vector<float> values(n);
    for (float & value : values) value = random.unit();
    return values;
}

void check(const std::vector<float> & found, const std::vector<float> & expected, const Table & table, const char * what, Weight weight,
           int64_t n_rows, int64_t n_tokens, int64_t n_columns) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        difference += std::pow(double(found[i]) - expected[i], 2);
        size += std::pow(double(expected[i]), 2);
    }
    n_checks++;
    if (difference <= 1e-10 * size + 1e-20) return;  // also false for NaN
    n_failures++;
    printf("%s: %s, type %d, %lld rows, %lld tokens, %lld columns: difference %g\n", table.name, what, int(weight), (long long)n_rows,
           (long long)n_tokens, (long long)n_columns, std::sqrt(difference / size));
}

void check_product(const Table & table, Weight weight, int64_t n_rows, int64_t n_tokens, int64_t n_columns, int n_threads) {
    Random random = {uint32_t(n_rows * 1000 + n_tokens)};
    const RandomMatrix w(weight, n_rows, n_columns, size_t(n_rows % 3 * 2), random);
    const std::vector<float> x = random_floats(n_tokens * n_columns, random);
    const auto product = [&](const Table & with, int threads) {
        std::vector<float> y(n_tokens * n_rows);
        Work work = {x.data(), n_tokens, n_columns, nullptr, {}};
        work.products.push_back({Product::Kind::store, w.matrix, {}, y.data(), n_rows, nullptr});
        Scratch scratch;
        if (!multiply(with, work, threads, scratch)) y.assign(y.size(), NAN);
        return y;
    };
    check(product(table, n_threads), product(*scalar_table(), 1), table, "product", weight, n_rows, n_tokens, n_columns);
}

// A norm, two products of two types, SwiGLU of two more and a sum, in place where a graph reuses memory.
std::vector<float> fused(const Table & table, Weight weight, int64_t n_rows, int64_t n_tokens, int64_t n_columns, int n_threads) {
    Random random = {uint32_t(n_rows * 77 + n_tokens)};
    const Weight other = n_columns % 256 == 0 ? Weight::q6_k : Weight::q4_0;
    const RandomMatrix a(weight, n_rows, n_columns, 0, random), b(other, n_rows, n_columns, 0, random), c(weight, n_rows + 3, n_columns, 4, random);
    std::vector<float> x = random_floats(n_tokens * n_columns, random), plain(x.size());
    const std::vector<float> scale = random_floats(n_columns, random);
    std::vector<float> gated(n_tokens * n_rows), stored(n_tokens * (n_rows + 3)), sum = random_floats(n_tokens * n_rows, random);
    const Norm norm = {scale.data(), 1e-5f, plain.data(), x.data()};
    Work work = {x.data(), n_tokens, n_columns, &norm, {}};
    work.products.push_back({Product::Kind::swiglu, a.matrix, b.matrix, gated.data(), n_rows, nullptr});
    work.products.push_back({Product::Kind::store, c.matrix, {}, stored.data(), n_rows + 3, nullptr});
    work.products.push_back({Product::Kind::add, b.matrix, {}, sum.data(), n_rows, sum.data()});
    Scratch scratch;
    if (!multiply(table, work, n_threads, scratch)) return {};
    for (const auto & part : {plain, gated, stored, sum}) x.insert(x.end(), part.begin(), part.end());
    return x;
}

void check_fused(const Table & table, Weight weight, int64_t n_rows, int64_t n_tokens, int64_t n_columns, int n_threads) {
    const std::vector<float> expected = fused(*scalar_table(), weight, n_rows, n_tokens, n_columns, 1);
    std::vector<float> found = fused(table, weight, n_rows, n_tokens, n_columns, n_threads);
    if (found.size() != expected.size()) found.assign(expected.size(), NAN);
    // the norm's sums differ in the last bits, so that a value may round the other way
    double difference = 0, size = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        difference += std::pow(double(found[i]) - expected[i], 2);
        size += std::pow(double(expected[i]), 2);
    }
    n_checks++;
    if (difference <= 1e-5 * size) return;
    n_failures++;
    printf("%s: fused, type %d, %lld rows, %lld tokens: difference %g\n", table.name, int(weight), (long long)n_rows, (long long)n_tokens,
           std::sqrt(difference / size));
}

// Two contexts that compute at once, each time with another number of threads, so that the pool changes its size.
void check_contexts(const Table & table) {
    const auto work = [&](int seed) {
        for (int i = 0; i < 6; i++) fused(table, Weight::q8_0, 33 + seed, 5, 96, 1 + (i + seed) % 4);
    };
    std::thread one(work, 0), two(work, 1);
    one.join();
    two.join();
}

void check_all(const Table & table) {
    if (const char * fault = self_test(table)) {
        n_failures++;
        printf("%s fails its self-test: %s\n", table.name, fault);
    }
    for (const Weight weight : kWeights) {
        const int64_t unit = rounding_of(weight) == Rounding::per_256 ? 256 : 32;
        for (const int64_t n_rows : {1, 15, 16, 17, 31, 32, 33, 70})
            for (const int64_t n_tokens : {1, 2, 3, 4, 5, 6, 7, 13, 16, 31, 49}) check_product(table, weight, n_rows, n_tokens, unit * 2, 1);
        for (const int64_t n_columns : {unit, 3 * unit, 9 * unit})
            for (const int64_t n_tokens : {1, 5}) check_product(table, weight, 33, n_tokens, n_columns, 2);
        for (const int64_t n_tokens : {512, 513, 530}) check_product(table, weight, 17, n_tokens, unit, 2);
        for (const int64_t n_tokens : {1, 3, 4, 9}) check_fused(table, weight, 37, n_tokens, 2 * unit, 3);
    }
}

void check_threads(const Table & table) {
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        check_product(table, Weight::q8_0, 100, 6, 96, n_threads);
        check_fused(table, Weight::q4_0, 40, 5, 64, n_threads);
    }
    check_contexts(table);
}

}  // namespace

int main(int argc, char **) {
    const Features features = processor_features();
    std::vector<const Table *> tables = {scalar_table()};
    if (features.avx2) tables.push_back(avx2_table());
#ifdef BMX_EMULATE_AVXVNNI
    if (features.avx512vnni) tables.push_back(avxvnni_table());
#else
    if (features.avxvnni) tables.push_back(avxvnni_table());
#endif
    if (features.avx512vnni) tables.push_back(avx512vnni_table());
    if (features.amx) tables.push_back(amx_table());
    for (const Table * table : tables) {
        if (!table) continue;
        if (argc == 1) check_all(*table);
        check_threads(*table);
        printf("%s: %d checks, %d failures so far\n", table->name, n_checks, n_failures);
    }
    return n_failures ? 1 : 0;
}
