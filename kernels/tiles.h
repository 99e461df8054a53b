// AMX's instructions for tiles: eight registers of up to 16 rows of 64 bytes.
//
// In assembly, since the compilers' own macros do not declare the memory they read and write: GCC 12 drops writes to a
// configuration, or to a tile's source, as if they were never read.
#pragma once

#include <cstdint>

namespace bmx {
namespace {

struct TileConfig {
    uint8_t palette = 0, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int n_rows, int n_bytes) {
        palette = 1;
        rows[tile] = uint8_t(n_rows);
        row_bytes[tile] = uint16_t(n_bytes);
    }
};
static_assert(sizeof(TileConfig) == 64, "as the processor reads it");

// Configures the calling thread's tiles for its lifetime. The thread may have a configuration already: ggml's own products
// set one per thread and rely on it from then on.
class Configured {
public:
    explicit Configured(const TileConfig & config) {
        __asm__ volatile("sttilecfg %0" : "=m"(before_));
        __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
    }
    ~Configured() {
        if (before_.palette) __asm__ volatile("ldtilecfg %0" ::"m"(before_) : "memory");
        else __asm__ volatile("tilerelease" ::: "memory");
    }
    Configured(const Configured &) = delete;
    Configured & operator=(const Configured &) = delete;

private:
    TileConfig before_;
};

#define BMX_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::: )
#define BMX_TILE_LOAD(tile, address, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(address), "r"(int64_t(stride)) : "memory")
#define BMX_TILE_STORE(tile, address, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(address), "r"(int64_t(stride)) : "memory")
// sum += a b: of signed bytes with signed or unsigned ones, of unsigned bytes with signed ones, or of bfloat16
#define BMX_TILE_DOT_SIGNED(sum, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: )
#define BMX_TILE_DOT_UNSIGNED(sum, a, b) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: )
#define BMX_TILE_DOT_UNSIGNED_SIGNED(sum, a, b) __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: )
#define BMX_TILE_DOT_BF16(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: )

}  // namespace
}  // namespace bmx
