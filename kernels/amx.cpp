// AMX: Intel's servers and workstations since Sapphire Rapids. Many tokens go through tiles, few through AVX-512 VNNI.
//
// A tile multiplies 16 tokens by 16 rows, 64 columns at once; the cost is in the work around it. So the scales of a
// K-quant's sub-blocks are multiplied into its weights, which are then too wide for a byte and become two planes of bytes:
// weight = low + high * 2^shift. Sums over 256 columns stay in the tiles, exact, and are scaled once.
#include "table.h"

#if defined(BMX_AMX) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "avx512_common.h"
#include "tiles.h"

namespace bmx {
namespace {

using S = Avx512Vnni;
using I = S::I;
using F = S::F;

constexpr int kHigh = 4, kRows = kHigh * 16;  // with two, activations would come from the third-level cache twice as often
constexpr int kTile = 16;
constexpr int64_t kFewest = 20;  // tokens; with fewer, unpacking for tiles costs more than the tiles gain

// 256 columns of a panel's rows; a tile's row is four consecutive columns of 16 rows, 64 bytes.
struct Planes {
    alignas(64) uint8_t low[kHigh][64][64];
    alignas(64) uint8_t high[kHigh][64][64];
    alignas(64) float scale[kHigh][16];
    alignas(64) float minimum[kHigh][16];
    // bfloat16, pairs of sub-blocks of 16 rows: for the sums' high parts, for their low parts, and zeros
    alignas(64) uint16_t minimums[kHigh][16][32];
};

// Q8_0 and Q4_0, whose activations also have a scale every 32 columns: one plane.
struct Blocks {
    alignas(64) uint8_t values[kHigh][64][64];
    alignas(64) float scales[kHigh][8][16];
};

struct TileWorkspace {
    union {
        Planes planes;
        Blocks blocks;
        Workspace<S> few;
    };
    alignas(64) char copy[kRows * 8 * 34];
    alignas(64) int32_t sums[8][kTile][16];
};

// ---- unpacking

I spread(I bytes, int s) {
    // byte s % 4 of each lane in both of its halves
    const I one = S::and_(S::srl_by(bytes, s % 4 * 8), S::set1(0xff));
    return S::or_(one, S::sll<16>(one));
}

I times(I bytes, I factors) { return _mm512_mullo_epi16(bytes, factors); }

// w = sc * q, with sc = low + 8 * high: both products fit a byte, so a 16-bit product computes two at once
void put_planes(Planes & p, int group, int h, I q, I low, I high) {
    S::store(p.low[h][group], times(q, low));
    S::store(p.high[h][group], times(q, high));
}

struct ScalesAndMinimums {
    I low[8], high[8];
};

ScalesAndMinimums unpack_scales(Planes & p, int h, const char * row, size_t stride) {
    const EightScales<S> eight(row, stride);
    S::storef(p.scale[h], eight.of_factors);
    S::storef(p.minimum[h], eight.of_minimums);
    ScalesAndMinimums result;
    const I three = S::set1(0x00070007);
    BMX_UNROLL
    for (int s = 0; s < 8; s++) {
        const I both = spread(eight.factor_bytes[s / 4], s);
        result.low[s] = S::and_(both, three);
        result.high[s] = S::and_(S::srl<3>(both), three);
    }
    BMX_UNROLL
    for (int pair = 0; pair < 4; pair++) {
        const auto bits = [&](int s) {
            const I m = S::and_(S::srl_by(eight.minimum_bytes[s / 4], s % 4 * 8), S::set1(0xff));
            return _mm512_castps_si512(S::to_float(m));  // up to 63: the upper half of a float holds it
        };
        const I two_of_them = S::or_(S::srl<16>(bits(2 * pair)), S::and_(bits(2 * pair + 1), S::set1(int(0xffff0000))));
        S::store(p.minimums[h][pair], two_of_them);
        S::store(p.minimums[h][pair + 4], two_of_them);
        S::store(p.minimums[h][pair + 8], S::zero());
        S::store(p.minimums[h][pair + 12], S::zero());
    }
    return result;
}

template <bool kFifthBit>
void unpack_with_minimums(Planes & p, int h, const char * row, size_t stride) {
    const ScalesAndMinimums sc = unpack_scales(p, h, row, stride);
    unpack_nibbles<S, kFifthBit>(row, stride, [&](int s, int group, I first, I second) {
        put_planes(p, group, h, first, sc.low[s], sc.high[s]);
        put_planes(p, group + 8, h, second, sc.low[s + 1], sc.high[s + 1]);
    });
}

// Signed products of 14 bits: the lower byte, unsigned, and the upper, signed.
void put_wide(Planes & p, int group, int h, I q, I scale) {
    const I even = times(_mm512_srai_epi16(_mm512_slli_epi16(q, 8), 8), scale), odd = times(_mm512_srai_epi16(q, 8), scale);
    const __mmask64 upper = 0xaaaaaaaaaaaaaaaa;
    S::store(p.low[h][group], _mm512_mask_blend_epi8(upper, even, _mm512_slli_epi16(odd, 8)));
    S::store(p.high[h][group], _mm512_mask_blend_epi8(upper, _mm512_srli_epi16(even, 8), odd));
}

void unpack_q6_k(Planes & p, int h, const char * row, size_t stride) {
    const SixteenScales<S> packed(row, stride);
    S::storef(p.scale[h], packed.of_factors);
    I scales[16];
    BMX_UNROLL
    for (int s = 0; s < 16; s++) {
        const I one = packed.factor(s);
        scales[s] = S::or_(S::and_(one, S::set1(0xffff)), S::sll<16>(one));
    }
    const I offset = S::set1(0x20202020);
    unpack_six_bits<S>(row, stride, [&](int s, int group, I values) { put_wide(p, group, h, _mm512_sub_epi8(values, offset), scales[s]); });
}

template <Weight kWeight>
void unpack_blocks(Blocks & p, int h, const char * row, size_t stride, int n_sub) {
    constexpr int kBytes = kWeight == Weight::q8_0 ? 34 : 18;
    const I four = S::set1(0x0f0f0f0f), eight = S::set1(0x08080808);
    for (int s = 0; s < n_sub; s++) {
        I v[8];
        S::load4(row, stride, s * kBytes + 2, v);
        if (kWeight == Weight::q8_0) S::load4(row, stride, s * kBytes + 18, v + 4);
        BMX_UNROLL
        for (int j = 0; j < 4; j++) {
            if (kWeight == Weight::q8_0) continue;
            v[4 + j] = _mm512_sub_epi8(S::and_(S::srl<4>(v[j]), four), eight);
            v[j] = _mm512_sub_epi8(S::and_(v[j], four), eight);
        }
        BMX_UNROLL
        for (int j = 0; j < 8; j++) S::store(p.values[h][s * 8 + j], v[j]);
        S::storef(p.scales[h][s], halves_at<S>(row, stride, s * kBytes));
    }
}

// ---- products; the sums of one step are scaled while the tiles multiply for the next

// The destination of the scaled sums of 16 rows and some tokens.
struct Step {
    float * y;  // of the first token; null without a destination
    int64_t at;  // its index into the activations
    int h, n_tokens;
};

struct KQuant {
    int shift;  // the upper plane's factor is 2^shift
    bool minimums, signed_high;
};
constexpr KQuant kFourAndFive = {3, true, false}, kSix = {8, false, true};

// sums: [0] and [1] the lower plane's of 16 tokens each, [2] and [3] the upper's, [4] and [5] the minimums', floats
template <const KQuant & kQuant>
void scale_k(const Planes & p, const Activations & x, const Step & step, const int32_t (*sums)[kTile][16]) {
    const F scale = S::loadf(p.scale[step.h]), minimum = S::loadf(p.minimum[step.h]);
    for (int t = 0; t < step.n_tokens; t++) {
        const int tile = t / kTile, row = t % kTile;
        const I sum = S::add_int(S::load(sums[tile][row]), S::sll<kQuant.shift>(S::load(sums[2 + tile][row])));
        F value = S::mul(S::to_float(sum), scale);
        if (kQuant.minimums) value = S::fnma(S::as_float(S::load(sums[4 + tile][row])), minimum, value);
        float * const y = step.y + t * kRows;
        S::storef(y, S::fma(value, S::broadcastf(x.scales + step.at + t), S::loadf(y)));
    }
}

template <const KQuant & kQuant>
void multiply_tiles(const Planes & p, const Activations & x, const Step & step, int32_t (*sums)[kTile][16]) {
    BMX_TILE_ZERO(0);
    BMX_TILE_ZERO(1);
    BMX_TILE_ZERO(2);
    BMX_TILE_ZERO(3);
    for (int k = 0; k < 4; k++) {
        const int8_t * values = x.values + step.at * kBlock + k * 64;
        BMX_TILE_LOAD(6, p.low[step.h][k * 16], 64);
        BMX_TILE_LOAD(4, values, kBlock);
        BMX_TILE_DOT_UNSIGNED(0, 4, 6);
        BMX_TILE_LOAD(5, values + kTile * kBlock, kBlock);
        BMX_TILE_DOT_UNSIGNED(1, 5, 6);
        BMX_TILE_LOAD(7, p.high[step.h][k * 16], 64);
        if (kQuant.signed_high) {
            BMX_TILE_DOT_SIGNED(2, 4, 7);
            BMX_TILE_DOT_SIGNED(3, 5, 7);
        } else {
            BMX_TILE_DOT_UNSIGNED(2, 4, 7);
            BMX_TILE_DOT_UNSIGNED(3, 5, 7);
        }
    }
    BMX_TILE_STORE(0, sums[0], 64);
    BMX_TILE_STORE(1, sums[1], 64);
    BMX_TILE_STORE(2, sums[2], 64);
    BMX_TILE_STORE(3, sums[3], 64);
    if (!kQuant.minimums) return;
    // 32 bytes per token, but a tile reads 64: the next token's are multiplied by zeros
    const uint16_t * split = x.split_sums + step.at * 16;
    BMX_TILE_ZERO(0);
    BMX_TILE_ZERO(1);
    BMX_TILE_LOAD(6, p.minimums[step.h], 64);
    BMX_TILE_LOAD(4, split, 32);
    BMX_TILE_DOT_BF16(0, 4, 6);
    BMX_TILE_LOAD(5, split + kTile * 16, 32);
    BMX_TILE_DOT_BF16(1, 5, 6);
    BMX_TILE_STORE(0, sums[4], 64);
    BMX_TILE_STORE(1, sums[5], 64);
}

template <const KQuant & kQuant>
void block_k(const Planes & p, const Activations & x, int64_t block, float * y, int32_t (*sums)[kTile][16]) {
    for (int64_t m = 0; m < x.n_tokens; m += 2 * kTile) {
        for (int h = 0; h < kHigh; h++) {
            const Step step = {y + m * kRows + h * 16, block * x.n_tokens + m, h, int(std::min<int64_t>(2 * kTile, x.n_tokens - m))};
            multiply_tiles<kQuant>(p, x, step, sums);
            // while the tiles multiply for the next step; the sums read here left the tiles long before
            scale_k<kQuant>(p, x, step, sums);
        }
    }
}

// sums[s] are those of sub-block s
void scale_blocks(const Blocks & p, const Activations & x, const Step & step, const int32_t (*sums)[kTile][16], int n_sub) {
    F of_rows[8];
    BMX_UNROLL
    for (int s = 0; s < 8; s++) of_rows[s] = s < n_sub ? S::loadf(p.scales[step.h][s]) : S::zerof();
    for (int t = 0; t < step.n_tokens; t++) {
        float * const y = step.y + t * kRows;
        const float * of_token = x.scales + (step.at + t) * 8;
        F sum[2] = {S::loadf(y), S::zerof()};
        BMX_UNROLL
        for (int s = 0; s < 8; s++) {
            if (s >= n_sub) break;
            const F product = S::mul(S::to_float(S::load(sums[s][t])), of_rows[s]);
            sum[s % 2] = S::fma(product, S::broadcastf(of_token + s), sum[s % 2]);
        }
        S::storef(y, S::add(sum[0], sum[1]));
    }
}

// Eight sums of 32 columns each, in four tiles in turn. Missing columns are multiplied too, but their sums are not used.
void multiply_block(const Blocks & p, const Activations & x, const Step & step, int32_t (*sums)[kTile][16]) {
    const int8_t * values = x.values + step.at * kBlock;
    const auto weights = p.values[step.h];
#define BMX_SUB_BLOCK(s, sum, a, b)                  \
    BMX_TILE_ZERO(sum);                              \
    BMX_TILE_LOAD(a, values + (s) * 32, kBlock);     \
    BMX_TILE_LOAD(b, weights[(s) * 8], 64);          \
    BMX_TILE_DOT_SIGNED(sum, a, b)
    for (int s = 0; s < 8; s += 4) {
        BMX_SUB_BLOCK(s, 0, 4, 6);
        BMX_SUB_BLOCK(s + 1, 1, 5, 7);
        BMX_SUB_BLOCK(s + 2, 2, 4, 6);
        BMX_SUB_BLOCK(s + 3, 3, 5, 7);
        BMX_TILE_STORE(0, sums[s], 64);
        BMX_TILE_STORE(1, sums[s + 1], 64);
        BMX_TILE_STORE(2, sums[s + 2], 64);
        BMX_TILE_STORE(3, sums[s + 3], 64);
    }
#undef BMX_SUB_BLOCK
}

void block_of_32(const Blocks & p, const Activations & x, int64_t block, int n_sub, float * y, int32_t (*sums)[kTile][16]) {
    for (int64_t m = 0; m < x.n_tokens; m += kTile) {
        for (int h = 0; h < kHigh; h++) {
            const Step step = {y + m * kRows + h * 16, block * x.n_tokens + m, h, int(std::min<int64_t>(kTile, x.n_tokens - m))};
            multiply_block(p, x, step, sums);
            scale_blocks(p, x, step, sums, n_sub);
        }
    }
}

// ---- a whole panel

TileConfig configuration(Rounding rounding) {
    TileConfig config;
    const int columns = rounding == Rounding::per_32 ? 32 : 64;
    for (int tile = 0; tile < 4; tile++) config.set(tile, kTile, 64);
    for (int tile = 4; tile < 6; tile++) config.set(tile, kTile, columns);
    for (int tile = 6; tile < 8; tile++) config.set(tile, columns / 4, 64);
    return config;
}

void compute_block(Weight weight, const char * row, size_t stride, const Activations & x, int64_t b, int n_sub, float * y, TileWorkspace & work) {
    for (int h = 0; h < kHigh; h++, row += 16 * stride) {
        switch (weight) {
            case Weight::q4_k: unpack_with_minimums<false>(work.planes, h, row, stride); break;
            case Weight::q5_k: unpack_with_minimums<true>(work.planes, h, row, stride); break;
            case Weight::q6_k: unpack_q6_k(work.planes, h, row, stride); break;
            case Weight::q8_0: unpack_blocks<Weight::q8_0>(work.blocks, h, row, stride, n_sub); break;
            default: unpack_blocks<Weight::q4_0>(work.blocks, h, row, stride, n_sub);
        }
    }
    switch (weight) {
        case Weight::q4_k:
        case Weight::q5_k: block_k<kFourAndFive>(work.planes, x, b, y, work.sums); break;
        case Weight::q6_k: block_k<kSix>(work.planes, x, b, y, work.sums); break;
        default: block_of_32(work.blocks, x, b, n_sub, y, work.sums);
    }
}

int rows_of_tiles(int64_t n_tokens) { return n_tokens >= kFewest ? kRows : rows_of_a_panel<S>(n_tokens); }

// tiles do not multiply float32: two panels of AVX-512
void float_panels(const Rows & rows, const Activations & x, float * y, TileWorkspace & work) {
    constexpr int kFew = panel_rows<S>();
    for (int first = 0; first < rows.n_rows; first += kFew) {
        Rows part = rows;
        part.data += first * rows.stride;
        part.n_rows = std::min(kFew, rows.n_rows - first);
        part.next_bytes = first == 0 ? rows.next_bytes : 0;
        float_panel<S>(part, x, y + first, kRows, work.few);
    }
}

void tile_panel(const Rows & rows, const Activations & x, float * y, char * scratch) {
    TileWorkspace & work = *reinterpret_cast<TileWorkspace *>(scratch);
    if (x.n_tokens < kFewest) return panel<S>(rows, x, y, reinterpret_cast<char *>(&work.few));
    memset(y, 0, x.n_tokens * kRows * sizeof(float));
    if (rows.weight == Weight::f16) return float_panels(rows, x, y, work);
    const Configured configured(configuration(x.rounding));
    const BlockSize size = block_size(rows.weight);
    const int64_t n_blocks = x.n_blocks();
    for (int64_t b = 0; b < n_blocks; b++) {
        const int n_columns = int(std::min<int64_t>(kBlock, x.n_columns - b * kBlock));
        const size_t n_bytes = size_t(n_columns / size.columns) * size.bytes;
        const Tile<kRows> tile(rows, b * (kBlock / size.columns) * size.bytes, n_bytes, work.copy);
        next_part(rows, b, n_blocks).all();
        compute_block(rows.weight, tile.data, tile.stride, x, b, n_columns / 32, y, work);
    }
}

// Sums of 32 values of 7 bits and a sign are at most 4,096: multiples of 32 and the remainder have eight bits each, which
// fit a bfloat16.
void split(const int16_t * sums, uint16_t * to) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(sums));
    const __m128i low = _mm_and_si128(v, _mm_set1_epi16(31)), high = _mm_sub_epi16(v, low);
    const auto put = [](uint16_t * at, __m128i part) {
        const __m256i bits = _mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(part)));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(at), _mm256_cvtepi32_epi16(_mm256_srli_epi32(bits, 16)));
    };
    put(to, high);
    put(to + 8, low);
}

void round_and_split(const Activations & to, int64_t token, const float * x) {
    round_token<S>(to, token, x);
    if (!to.split_sums) return;
    for (int64_t b = 0; b < to.n_blocks(); b++) {
        const int64_t at = b * to.n_tokens + token;
        split(to.sums32 + at * 8, to.split_sums + at * 16);
    }
}

// 16 tokens by 16 rows by 64 columns, in four tiles in turn, since a product's latency exceeds its issue time
int64_t multiply_tiles_alone(int64_t rounds, int32_t * sum) {
    const Configured configured(configuration(Rounding::per_256));
    alignas(64) int32_t values[kTile][16];
    for (auto & row : values)
        for (int & value : row) value = 0x01030507;
    BMX_TILE_LOAD(4, values, 64);
    BMX_TILE_LOAD(6, values, 64);
    BMX_TILE_ZERO(0);
    BMX_TILE_ZERO(1);
    BMX_TILE_ZERO(2);
    BMX_TILE_ZERO(3);
    for (int64_t round = 0; round < rounds / 16; round++) {
        BMX_TILE_DOT_SIGNED(0, 4, 6);
        BMX_TILE_DOT_SIGNED(1, 4, 6);
        BMX_TILE_DOT_SIGNED(2, 4, 6);
        BMX_TILE_DOT_SIGNED(3, 4, 6);
    }
    BMX_TILE_STORE(0, values, 64);
    *sum ^= values[0][0];
    return rounds / 16 * 4 * 2 * kTile * 16 * 64;
}

const Table table = {
    "amx", rows_of_tiles, 2 * kTile, round_and_split, tile_panel, sizeof(TileWorkspace), swiglu<S>, sum_of_squares<S>,
    multiply_tiles_alone, attend<S>, sizeof(AttentionWorkspace<S>)};

}  // namespace

const Table * amx_table() { return &table; }

}  // namespace bmx
#else
namespace bmx {
const Table * amx_table() { return nullptr; }
}  // namespace bmx
#endif
