// The peak of one instruction set's multipliers: products of bytes on registers, without waiting for memory.
#pragma once

#include <cstdint>

#include "table.h"

namespace bmx {
namespace {

// See Table::multiply_bytes. Each sum is a factor of its own next product, so that no round can be left out, and enough sums
// are in flight to keep all multipliers busy.
template <class V>
int64_t multiply_bytes(int64_t rounds, int32_t * sum) {
    using I = typename V::I;
    // two fewer where a product needs an extra step: with twelve sums, compilers run out of registers
    constexpr int kSums = V::kSignedBytes ? 10 : 12;
    const I factor = V::set1(0x01030507);
    I sums[kSums];
    for (int i = 0; i < kSums; i++) sums[i] = V::set1(0x11223344 + i);
    for (int64_t round = 0; round < rounds; round++) {
        BMX_UNROLL
        for (int i = 0; i < kSums; i++) {
            if constexpr (V::kSignedBytes) {
                sums[i] = V::add16(sums[i], V::pairs(factor, sums[i]));
            } else {
                sums[i] = V::dot(sums[i], factor, sums[i]);
            }
        }
    }
    alignas(64) int32_t lanes[V::kLanes];
    for (int i = 1; i < kSums; i++) sums[0] = V::add_int(sums[0], sums[i]);
    V::store(lanes, sums[0]);
    for (const int32_t lane : lanes) *sum ^= lane;
    return rounds * kSums * int64_t(sizeof(I)) * 2;
}

}  // namespace
}  // namespace bmx
