// What this processor can do, and what the operating system lets programs use of it.
#pragma once

namespace bmx {

struct Features {
    bool avx2, avxvnni, avx512vnni, avx512bf16, amx;
};

Features processor_features();

}  // namespace bmx
