#include "processor.h"

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bmx {
namespace {

struct Registers {
    uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t sub) {
    Registers r = {0, 0, 0, 0};
#ifdef _MSC_VER
    int found[4];
    __cpuid(found, 0);
    if (uint32_t(found[0]) < leaf) return r;
    __cpuidex(found, int(leaf), int(sub));
    return {uint32_t(found[0]), uint32_t(found[1]), uint32_t(found[2]), uint32_t(found[3])};
#else
    __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);
    return r;
#endif
}

// registers that the operating system saves: bits 1, 2 for AVX, 5 to 7 for AVX-512, 17 and 18 for tiles
uint64_t saved_registers() {
#ifdef _MSC_VER
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | uint64_t(high) << 32;
#endif
}

bool bit(uint32_t value, int n) { return value >> n & 1; }

// Linux saves the tiles' registers only for processes that ask for it, once.
bool tiles_permitted() {
#ifdef __linux__
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, and the bit of XCR0
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

Features read_features() {
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = seven.a >= 1 ? cpuid(7, 1) : Registers{0, 0, 0, 0};
    const uint64_t saved = bit(one.c, 27) ? saved_registers() : 0;
    const bool avx = (saved & 0x06) == 0x06, avx512 = (saved & 0xe6) == 0xe6;
    Features f;
    f.avx2 = avx && bit(seven.b, 5) && bit(one.c, 12) && bit(one.c, 29);  // with FMA and F16C
    f.avxvnni = f.avx2 && bit(seven_one.a, 4);
    f.avx512vnni = f.avx2 && avx512 && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31) && bit(seven.c, 11);
    f.avx512bf16 = f.avx512vnni && bit(seven_one.a, 5);
    const Registers zero = cpuid(0, 0);
    f.fast_bf16 = f.avx512bf16 && zero.b == 0x68747541 && zero.d == 0x69746e65 && zero.c == 0x444d4163;  // AuthenticAMD
    // bfloat16, tiles, int8
    const bool amx = (saved & 0x60000) == 0x60000 && bit(seven.d, 22) && bit(seven.d, 24) && bit(seven.d, 25);
    f.amx = f.avx512vnni && amx && tiles_permitted();
    return f;
}

}  // namespace

Features processor_features() {
    // once: under a hypervisor each CPUID costs tens of microseconds
    static const Features features = read_features();
    return features;
}

}  // namespace bmx

#else
namespace bmx {
Features processor_features() { return {}; }
}  // namespace bmx
#endif
