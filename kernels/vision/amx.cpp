// AMX: two tiles of tokens by two of columns at once, so that four products share four loads.
#include "table.h"

#if defined(BMX_AMX) && defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "../tiles.h"
#include "attention512.h"

namespace bmx {
namespace vision {
namespace {

constexpr int kTile = 16, kTileGroups = 16, kTileBytes = 64;  // rows of a, and groups of both, in a tile

TileConfig whole_tiles() {
    TileConfig config;
    for (int i = 0; i < 8; i++) config.set(i, kTile, kTileBytes);
    return config;
}

struct ByteTiles {
    static constexpr size_t kElement = sizeof(int32_t);
    static void one() { BMX_TILE_DOT_UNSIGNED_SIGNED(0, 4, 6); }
    static void below() { BMX_TILE_DOT_UNSIGNED_SIGNED(2, 5, 6); }
    static void beside() { BMX_TILE_DOT_UNSIGNED_SIGNED(1, 4, 7); }
    static void across() { BMX_TILE_DOT_UNSIGNED_SIGNED(3, 5, 7); }
};

struct HalfTiles {
    static constexpr size_t kElement = sizeof(float);
    static void one() { BMX_TILE_DOT_BF16(0, 4, 6); }
    static void below() { BMX_TILE_DOT_BF16(2, 5, 6); }
    static void beside() { BMX_TILE_DOT_BF16(1, 4, 7); }
    static void across() { BMX_TILE_DOT_BF16(3, 5, 7); }
};

struct Tiles {
    const char * a;
    size_t a_stride;
    const char * b;
    size_t b_stride;
    char * c;
    size_t c_stride;
    int64_t n_steps;
    bool more;  // whether sums continue from those in c
};

// One or two tiles of tokens by two of columns.
template <class Kind, bool two_rows>
void multiply_tiles(Tiles t, Fetch * fetch, int64_t n_fetch) {
    char * const below = t.c + kTile * t.c_stride;
    if (t.more) {
        BMX_TILE_LOAD(0, t.c, t.c_stride);
        BMX_TILE_LOAD(1, t.c + kTileBytes, t.c_stride);
        if (two_rows) BMX_TILE_LOAD(2, below, t.c_stride);
        if (two_rows) BMX_TILE_LOAD(3, below + kTileBytes, t.c_stride);
    } else {
        BMX_TILE_ZERO(0);
        BMX_TILE_ZERO(1);
        if (two_rows) BMX_TILE_ZERO(2);
        if (two_rows) BMX_TILE_ZERO(3);
    }
    for (int64_t s = 0; s < t.n_steps; s++, t.a += kTileBytes, t.b += kTileGroups * t.b_stride) {
        BMX_TILE_LOAD(6, t.b, t.b_stride);
        BMX_TILE_LOAD(4, t.a, t.a_stride);
        Kind::one();
        BMX_TILE_LOAD(7, t.b + kTileBytes, t.b_stride);
        Kind::beside();
        if (two_rows) {
            BMX_TILE_LOAD(5, t.a + kTile * t.a_stride, t.a_stride);
            Kind::below();
            Kind::across();
        }
        if (fetch) fetch->step(n_fetch);
    }
    BMX_TILE_STORE(0, t.c, t.c_stride);
    BMX_TILE_STORE(1, t.c + kTileBytes, t.c_stride);
    if (two_rows) BMX_TILE_STORE(2, below, t.c_stride);
    if (two_rows) BMX_TILE_STORE(3, below + kTileBytes, t.c_stride);
}

// Two tiles of tokens by sixteen of groups, 32 KB, stay in the first-level cache while all columns are multiplied.
template <class Kind>
void multiply_in_tiles(const Product & p) {
    static const TileConfig config = whole_tiles();
    const Configured configured(config);
    constexpr int64_t kStepsAtOnce = 16;
    const int64_t n_steps = p.n_groups / kTileGroups;
    const bool two_rows = p.n_tokens > kTile;
    const size_t c_stride = p.c_stride * Kind::kElement;
    const int64_t n_products = n_steps * (p.n_columns / (2 * kLanes)), n_fetch = (p.n_fetch + n_products - 1) / n_products;
    for (int64_t step = 0; step < n_steps; step += kStepsAtOnce) {
        const int64_t n = std::min(kStepsAtOnce, n_steps - step);
        for (int column = 0; column < p.n_columns; column += 2 * kLanes) {
            const int in_panel = column % kPanelColumns, width = std::min(kPanelColumns, p.n_columns - (column - in_panel));
            const size_t b_stride = size_t(width) * kGroupBytes;
            const char * const b = p.b + column / kPanelColumns * panel_bytes(p.n_groups) + in_panel * kGroupBytes + step * kTileGroups * b_stride;
            const Tiles tiles = {p.a + step * kTileBytes, p.a_stride, b, b_stride, static_cast<char *>(p.c) + column * Kind::kElement, c_stride, n, step > 0};
            two_rows ? multiply_tiles<Kind, true>(tiles, p.fetch, n_fetch) : multiply_tiles<Kind, false>(tiles, p.fetch, n_fetch);
        }
    }
}

const Table table = {"amx",   32, multiply_in_tiles<ByteTiles>, range, round, column_sums, pack, finish, multiply_in_tiles<HalfTiles>,
                     narrow, pack_keys, pack_values, weigh, divide};

}  // namespace

const Table * amx_table() { return &table; }

}  // namespace vision
}  // namespace bmx
#else
namespace bmx {
namespace vision {
const Table * amx_table() { return nullptr; }
}  // namespace vision
}  // namespace bmx
#endif
