// AVX-512 with VNNI: Intel servers since Cascade Lake, Intel clients of the 11th generation, AMD since Zen 4.
#include "table.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "avx512_common.h"

namespace bmx {
namespace {

const Table table = {
    "avx512vnni", rows_of_a_panel<Avx512Vnni>, 0, round_token<Avx512Vnni>, panel<Avx512Vnni>, scratch_bytes<Avx512Vnni>(), swiglu<Avx512Vnni>, sum_of_squares<Avx512Vnni>,
    multiply_bytes<Avx512Vnni>, attend<Avx512Vnni>, sizeof(AttentionWorkspace<Avx512Vnni>)};

}  // namespace

const Table * avx512vnni_table() { return &table; }

}  // namespace bmx
#else
namespace bmx {
const Table * avx512vnni_table() { return nullptr; }
}  // namespace bmx
#endif
