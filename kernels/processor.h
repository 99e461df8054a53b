// The instruction sets of this processor that the operating system lets programs use.
#pragma once

namespace bmx {

struct Features {
    bool avx2, avxvnni, avx512vnni, avx512bf16, amx;
    bool fast_bf16;  // AMD multiplies bfloat16 at twice the rate of float32; Intel at the same rate
};

Features processor_features();

}  // namespace bmx
