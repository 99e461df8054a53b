#include "self_test.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "matmul.h"

namespace bmx {

namespace {

constexpr int kColumns = 512, kRows = 37;

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
    const int64_t n_tokens = int64_t(x.size() / kColumns);
    std::vector<float> y(size_t(n_tokens) * kRows);
    const Matrix matrix = {weight, reinterpret_cast<const char *>(rows.data()), rows.size() / kRows, kRows};
    Work work = {x.data(), n_tokens, kColumns, nullptr, {}};
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
    return difference <= 1e-10 * size;  // also false for NaN
}

// Two tokens and two heads, over cells with other cells between them.
std::vector<float> attention(const Table & table, Random random) {
    constexpr int kHead = 64, kCells = 100, kAttentionRows = 4;
    std::vector<float> queries(kAttentionRows * kHead), out(queries.size());
    for (float & value : queries) value = 4 * random.unit();
    std::vector<uint16_t> cache(size_t(kCells) * 2 * kHead);
    for (uint16_t & half : cache) half = uint16_t((random.next() >> 16 & 0x83ff) | 0x3400);
    std::vector<int32_t> cells;
    for (int32_t cell = 0; cell < kCells; cell++)
        if (cell % 7 != 3) cells.push_back(cell);
    const int32_t n = int32_t(cells.size()), n_seen[kAttentionRows] = {n - 20, n - 20, n, n};
    const char * const keys = reinterpret_cast<const char *>(cache.data());
    const size_t stride = 2 * kHead * sizeof(uint16_t);
    std::vector<char> scratch(table.attention_bytes + 64);
    char * const aligned = scratch.data() + (64 - reinterpret_cast<size_t>(scratch.data()) % 64);
    table.attend({queries.data(), out.data(), kAttentionRows, kHead, cells.data(), n, n_seen, keys, stride, keys + stride / 2, stride}, aligned);
    return out;
}

}  // namespace

const char * self_test(const Table & table) {
    Random random;
    // one token, few tokens and many take different paths
    std::vector<float> few[] = {std::vector<float>(kColumns), std::vector<float>(5 * kColumns), std::vector<float>(39 * kColumns)};
    for (std::vector<float> & x : few)
        for (float & value : x) value = random.unit();
    const struct {
        Weight weight;
        const char * name;
    } kinds[] = {{Weight::q4_k, "Q4_K"}, {Weight::q5_k, "Q5_K"}, {Weight::q6_k, "Q6_K"},
                 {Weight::q8_0, "Q8_0"}, {Weight::q4_0, "Q4_0"}, {Weight::f16, "F16"}};
    for (const auto & kind : kinds) {
        const std::vector<uint8_t> rows = random_rows(kind.weight, random);
        for (const std::vector<float> & x : few)
            if (!agree(product(table, kind.weight, rows, x), product(*scalar_table(), kind.weight, rows, x))) return kind.name;
    }
    if (!agree(attention(table, random), attention(*scalar_table(), random))) return "attention";
    return nullptr;
}

}  // namespace bmx
