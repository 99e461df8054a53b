// Upper bounds of this machine's speed; see plugin.h.
#pragma once

#include "table.h"

namespace bmx {

double read_bandwidth(int n_threads, double seconds);
double int8_ops(const Table & table, int n_threads, double seconds);

}  // namespace bmx
