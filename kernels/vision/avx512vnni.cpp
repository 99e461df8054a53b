// AVX-512 with VNNI: linear layers. Products of bfloat16 are another extension.
#include "table.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "linear512.h"

namespace bmx {
namespace vision {
namespace {

const Table table = {"avx512vnni", 30,      multiply<Bytes>, range,   round,   column_sums, pack, finish,
                     nullptr,      nullptr, nullptr,         nullptr, nullptr, nullptr};

}  // namespace

const Table * avx512vnni_table() { return &table; }

}  // namespace vision
}  // namespace bmx
#else
namespace bmx {
namespace vision {
const Table * avx512vnni_table() { return nullptr; }
}  // namespace vision
}  // namespace bmx
#endif
