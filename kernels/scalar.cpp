// The reference: the same products from the definition of each format, one value at a time.
#include <cmath>
#include <cstring>
#include <vector>
#include <limits>

#include "table.h"

namespace bmx {

float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
    uint32_t bits = sign | (exponent + 112) << 23 | fraction << 13;
    if (exponent == 31) bits = sign | 0x7f800000 | fraction << 13;
    float value;
    if (exponent == 0) {
        value = std::ldexp(float(fraction), -24);
        return sign ? -value : value;
    }
    memcpy(&value, &bits, 4);
    return value;
}

namespace {

constexpr int kRows = 8;

float half_at(const uint8_t * data) {
    uint16_t half;
    memcpy(&half, data, 2);
    return half_to_float(half);
}

void scale_and_min(const uint8_t * packed, int index, int & scale, int & minimum) {
    if (index < 4) {
        scale = packed[index] & 63;
        minimum = packed[index + 4] & 63;
    } else {
        scale = (packed[index + 4] & 15) | (packed[index - 4] >> 6) << 4;
        minimum = (packed[index + 4] >> 4) | (packed[index] >> 6) << 4;
    }
}

// A K-quant's super-block in integers: value i is scale * sc[i / 16] * q[i] - minimum * mn[i / 16].
struct SuperBlock {
    float scale, minimum;
    int q[256], sc[16], mn[16];
};

void read_q4_k(const uint8_t * data, SuperBlock & block, const uint8_t * high) {
    block.scale = half_at(data);
    block.minimum = half_at(data + 2);
    const uint8_t * nibbles = data + (high ? 48 : 16);
    for (int i = 0; i < 256; i++) {
        const int sub = i / 32;
        scale_and_min(data + 4, sub, block.sc[i / 16], block.mn[i / 16]);
        block.q[i] = nibbles[sub / 2 * 32 + i % 32] >> (sub % 2 * 4) & 15;
        if (high) block.q[i] |= (high[i % 32] >> sub & 1) << 4;
    }
}

void read_q6_k(const uint8_t * data, SuperBlock & block) {
    block.scale = half_at(data + 208);
    block.minimum = 0;
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, quarter = i % 128 / 32, column = i % 32;
        const int low = data[half * 64 + quarter % 2 * 32 + column] >> (quarter / 2 * 4) & 15;
        const int high = data[128 + half * 32 + column] >> (quarter * 2) & 3;
        block.q[i] = (low | high << 4) - 32;
        block.sc[i / 16] = int8_t(data[192 + i / 16]);
        block.mn[i / 16] = 0;
    }
}

float k_quant_block(const SuperBlock & block, const int8_t * x) {
    int64_t product = 0, minimum = 0;
    for (int i = 0; i < 256; i++) {
        product += int64_t(block.sc[i / 16]) * block.q[i] * x[i];
        minimum += int64_t(block.mn[i / 16]) * x[i];
    }
    return block.scale * float(product) - block.minimum * float(minimum);
}

float row_k_quant(Weight weight, const uint8_t * row, const Activations & x, int64_t token) {
    SuperBlock block;
    const int size = block_size(weight).bytes;
    float sum = 0;
    for (int64_t b = 0; b < x.n_blocks(); b++, row += size) {
        const int64_t at = b * x.n_tokens + token;
        if (weight == Weight::q6_k) read_q6_k(row, block);
        else read_q4_k(row, block, weight == Weight::q5_k ? row + 16 : nullptr);
        sum += x.scales[at] * k_quant_block(block, x.values + at * kBlock);
    }
    return sum;
}

float row_of_32(Weight weight, const uint8_t * row, const Activations & x, int64_t token) {
    const int size = block_size(weight).bytes;
    float sum = 0;
    for (int64_t b = 0; b < x.n_columns / 32; b++, row += size) {
        const int64_t at = b / 8 * x.n_tokens + token;
        const int8_t * values = x.values + at * kBlock + b % 8 * 32;
        int product = 0;
        for (int i = 0; i < 32; i++) {
            const int q = weight == Weight::q8_0 ? int8_t(row[2 + i]) : (row[2 + i % 16] >> (i / 16 * 4) & 15) - 8;
            product += q * values[i];
        }
        sum += half_at(row) * x.scales[at * 8 + b % 8] * float(product);
    }
    return sum;
}

float row_f16(const uint8_t * row, const float * x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += double(half_at(row + 2 * i)) * x[i];
    return float(sum);
}

void panel(const Rows & rows, const Activations & x, float * y, char *) {
    for (int r = 0; r < rows.n_rows; r++) {
        const uint8_t * row = reinterpret_cast<const uint8_t *>(rows.data) + r * rows.stride;
        for (int64_t m = 0; m < x.n_tokens; m++) {
            float & out = y[m * kRows + r];
            if (x.rounding == Rounding::none) out = row_f16(row, x.floats + m * x.n_columns, x.n_columns);
            else if (x.rounding == Rounding::per_32) out = row_of_32(rows.weight, row, x, m);
            else out = row_k_quant(rows.weight, row, x, m);
        }
    }
}

// ggml's quantize_row_q8_K: the value of largest magnitude becomes -127, so that every block uses the full range.
void round_256(const float * x, int n, int8_t * values, float & scale) {
    float largest = 0;
    for (int i = 0; i < n; i++)
        if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
    const float inverse = largest != 0 ? -127.0f / largest : 0.0f;
    scale = largest != 0 ? 1 / inverse : 0.0f;
    for (int i = 0; i < kBlock; i++) values[i] = i < n ? int8_t(std::fmin(127.0f, std::nearbyint(inverse * x[i]))) : 0;
}

void round_32(const float * x, int8_t * values, float & scale) {
    float largest = 0;
    for (int i = 0; i < 32; i++) largest = std::fmax(largest, std::fabs(x[i]));
    scale = largest / 127.0f;
    const float inverse = scale != 0 ? 1 / scale : 0.0f;
    for (int i = 0; i < 32; i++) values[i] = int8_t(std::nearbyint(x[i] * inverse));
}

void round(const Activations & to, int64_t token, const float * x) {
    for (int64_t b = 0; b < to.n_blocks(); b++) {
        const int64_t at = b * to.n_tokens + token;
        const int n = int(to.n_columns - b * kBlock < kBlock ? to.n_columns - b * kBlock : kBlock);
        int8_t * values = to.values + at * kBlock;
        if (to.rounding == Rounding::per_256) {
            round_256(x + b * kBlock, n, values, to.scales[at]);
        } else {
            memset(values, 0, kBlock);
            for (int s = 0; s < n / 32; s++) round_32(x + b * kBlock + s * 32, values + s * 32, to.scales[at * 8 + s]);
        }
    }
}

void swiglu(const float * gate, const float * up, float * out, int n) {
    for (int i = 0; i < n; i++) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

float sum_of_squares(const float * x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += double(x[i]) * x[i];
    return float(sum);
}

void attend(const AttentionRows & rows, char *) {
    for (int r = 0; r < rows.n_rows; r++) {
        const auto value = [&](const char * base, size_t stride, int cell, int i) {
            uint16_t half;
            memcpy(&half, base + rows.cells[cell] * stride + i * sizeof(half), sizeof(half));
            return double(half_to_float(half));
        };
        std::vector<double> weights(rows.n_seen[r]);
        double most = -std::numeric_limits<double>::infinity(), sum = 0;
        for (int cell = 0; cell < rows.n_seen[r]; cell++) {
            double product = 0;
            for (int i = 0; i < rows.head_size; i++)
                product += rows.queries[r * rows.head_size + i] * value(rows.keys, rows.key_stride, cell, i);
            weights[cell] = product;
            most = std::fmax(most, product);
        }
        for (double & weight : weights) sum += weight = std::exp(weight - most);
        for (int i = 0; i < rows.head_size; i++) {
            double out = 0;
            for (int cell = 0; cell < rows.n_seen[r]; cell++) out += weights[cell] * value(rows.values, rows.value_stride, cell, i);
            rows.out[r * rows.head_size + i] = float(out / sum);
        }
    }
}

const Table table = {"scalar", [](int64_t) { return kRows; }, 0, round, panel, 64, swiglu, sum_of_squares, nullptr, attend, 64};

}  // namespace

const Table * scalar_table() { return &table; }

}  // namespace bmx
