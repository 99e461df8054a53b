#include "self_test.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "matmul.h"

namespace bmx {

namespace {

constexpr int kColumns = 512, kRows = 37, kTokens = 39;

struct Random {
    uint32_t state = 1;
    uint32_t next() { return state = state * 1664525u + 1013904223u; }
    uint8_t byte() { return uint8_t(next() >> 24); }
    float unit() { return float(next() >> 8) / float(1 << 24) - 0.5f; }
};

void put_half(std::vector<uint8_t> & data, size_t at, uint16_t half) { memcpy(&data[at], &half, 2); }

// Blocks of random bytes with scales of moderate size, so that no sum overflows.
std::vector<uint8_t> random_rows(Weight weight, Random & random) {
    const BlockSize size = block_size(weight);
    std::vector<uint8_t> data(size_t(kRows) * (kColumns / size.columns) * size.bytes);
    for (uint8_t & byte : data) byte = random.byte();
    for (size_t at = 0; at < data.size(); at += size.bytes) {
        const auto half = [&] { return uint16_t(0x2000 | (random.next() >> 16 & 0x83ff)); };
        put_half(data, weight == Weight::q6_k ? at + 208 : at, half());
        if (weight == Weight::q4_k || weight == Weight::q5_k) put_half(data, at + 2, half());
    }
    return data;
}

std::vector<float> product(const Table & table, Weight weight, const std::vector<uint8_t> & rows, const std::vector<float> & x) {
    std::vector<float> y(size_t(kTokens) * kRows);
    const Matrix matrix = {weight, reinterpret_cast<const char *>(rows.data()), rows.size() / kRows, kRows};
    Work work = {x.data(), kTokens, kColumns, nullptr, {}};
    work.products.push_back({Product::Kind::store, matrix, {}, y.data(), kRows, nullptr});
    Scratch scratch;
    if (!multiply(table, work, 1, scratch)) y.clear();
    return y;
}

bool agree(const std::vector<float> & a, const std::vector<float> & b) {
    if (a.empty() || b.empty()) return false;
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.size(); i++) {
        difference += std::pow(double(a[i]) - b[i], 2);
        size += std::pow(double(b[i]), 2);
    }
    return difference <= 1e-10 * size;  // false for NaN, too
}

}  // namespace

const char * self_test(const Table & table) {
    Random random;
    std::vector<float> x(size_t(kTokens) * kColumns);
    for (float & value : x) value = random.unit();
    const struct {
        Weight weight;
        const char * name;
    } kinds[] = {{Weight::q4_k, "Q4_K"}, {Weight::q5_k, "Q5_K"}, {Weight::q6_k, "Q6_K"},
                 {Weight::q8_0, "Q8_0"}, {Weight::q4_0, "Q4_0"}, {Weight::f16, "F16"}};
    for (const auto & kind : kinds) {
        const std::vector<uint8_t> rows = random_rows(kind.weight, random);
        if (!agree(product(table, kind.weight, rows, x), product(*scalar_table(), kind.weight, rows, x))) return kind.name;
    }
    return nullptr;
}

}  // namespace bmx
