// What this processor can do, and what the operating system lets programs use of it.
#pragma once

namespace bmx {

struct Features {
    bool avx2, avxvnni, avx512vnni, avx512bf16, amx;
    bool fast_bf16;  // vectors of bfloat16 are multiplied at twice the rate of float32: AMD's; Intel's take as long
};

Features processor_features();

}  // namespace bmx
