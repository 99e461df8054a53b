// AVX-512 with VNNI and BF16: AMD since Zen 4, Intel servers that have AMX.
#include "table.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "attention512.h"

namespace bmx {
namespace vision {
namespace {

const Table table = {"avx512bf16",     30,     multiply<Bytes>, range,       round, column_sums, pack, finish,
                     multiply<Halves>, narrow, pack_keys,       pack_values, weigh, divide};

}  // namespace

const Table * avx512bf16_table() { return &table; }

}  // namespace vision
}  // namespace bmx
#else
namespace bmx {
namespace vision {
const Table * avx512bf16_table() { return nullptr; }
}  // namespace vision
}  // namespace bmx
#endif
