// AVX2 with FMA and F16C: every x86-64 laptop of the last ten years.
#include "table.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "avx2_common.h"

namespace bmx {
namespace {

struct DotsAvx2 {
    static __m256i add_pairs(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
    static __m256i add_bytes(__m256i sum, __m256i u, __m256i s) {
        return add_pairs(sum, _mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1));
    }
};

struct Avx2 : Avx2Base {
    using Few = Dots<DotsAvx2>;
    static constexpr int kWide = 4;
    static constexpr bool kSignedBytes = true;
    // a pair of products is at most 2 * 15 * 127, 2 * 31 * 127, 2 * 63 * 127 or 2 * 128 * 127: this many pairs fit 16 bits
    template <Sum sum>
    static constexpr int fold() {
        return sum == Sum::of_nibbles ? 8 : sum == Sum::of_5_bits ? 4 : sum == Sum::of_6_bits ? 2 : 1;
    }
    static I pairs(I bytes, I signed_bytes) { return _mm256_maddubs_epi16(bytes, signed_bytes); }
    static I signed_pairs(I a, I b) { return _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a)); }
    static I add16(I a, I b) { return _mm256_add_epi16(a, b); }
    static I widen_add(I sum, I pairs) { return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
    static I dot(I sum, I, I) { return sum; }  // not used: fold() is not 0
    static I dot16(I sum, I a, I b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
};

const Table table = {
    "avx2", rows_of_a_panel<Avx2>, 0, round_token<Avx2>, panel<Avx2>, scratch_bytes<Avx2>(), swiglu<Avx2>, sum_of_squares<Avx2>,
    multiply_bytes<Avx2>, attend<Avx2>, sizeof(AttentionWorkspace<Avx2>)};

}  // namespace

const Table * avx2_table() { return &table; }

}  // namespace bmx
#else
namespace bmx {
const Table * avx2_table() { return nullptr; }
}  // namespace bmx
#endif
