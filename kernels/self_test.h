// A short comparison of some kernels with the scalar ones, run whenever the plug-in is loaded.
#pragma once

#include "table.h"

namespace bmx {

// Returns null, or what is wrong.
const char * self_test(const Table & table);

}  // namespace bmx
