// A short comparison of some kernels with the scalar ones, run each time the plug-in is loaded.
#pragma once

#include "table.h"

namespace bmx {

// Returns null, or the fault in words.
const char * self_test(const Table & table);

}  // namespace bmx
