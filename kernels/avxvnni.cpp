// AVX-VNNI: Intel clients since the 12th generation, AMD since Zen 5. With BMX_EMULATE_AVXVNNI, for tests on
// processors without it, the file is compiled for AVX-512 VNNI and uses the same operation in its other encoding.
#include "table.h"

#if defined(__AVXVNNI__) || defined(BMX_EMULATE_AVXVNNI)
#include "avx2_common.h"

namespace bmx {
namespace {

struct AvxVnni : Avx2Base {
    struct Sums {
        static I add_pairs(I sum, I a, I b) { return dot16(sum, a, b); }
        static I add_bytes(I sum, I u, I s) { return dot(sum, u, s); }
    };
    using Few = Dots<Sums>;
    static constexpr int kWide = 4;
    static constexpr bool kSignedBytes = false;
    template <Sum>
    static constexpr int fold() { return 0; }
#if defined(BMX_EMULATE_AVXVNNI)
    static I dot(I sum, I bytes, I signed_bytes) { return _mm256_dpbusd_epi32(sum, bytes, signed_bytes); }
    static I dot16(I sum, I a, I b) { return _mm256_dpwssd_epi32(sum, a, b); }
#else
    static I dot(I sum, I bytes, I signed_bytes) { return _mm256_dpbusd_avx_epi32(sum, bytes, signed_bytes); }
    static I dot16(I sum, I a, I b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
#endif
};

const Table table = {
    "avxvnni", rows_of_a_panel<AvxVnni>, 0, round_token<AvxVnni>, panel<AvxVnni>, scratch_bytes<AvxVnni>(), swiglu<AvxVnni>, sum_of_squares<AvxVnni>,
    multiply_bytes<AvxVnni>, attend<AvxVnni>, sizeof(AttentionWorkspace<AvxVnni>)};

}  // namespace

const Table * avxvnni_table() { return &table; }

}  // namespace bmx
#else
namespace bmx {
const Table * avxvnni_table() { return nullptr; }
}  // namespace bmx
#endif
