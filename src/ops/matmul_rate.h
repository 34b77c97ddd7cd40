// What the device can do at best: the rate of a large square matrix product, which a step's own rate is compared with.
#pragma once
#include "kernels/backend.h"

namespace irq {

// FLOPs per second of an (n, n) x (n, n) product in the storage type, the median of five after a warm-up; random values,
// since zeros draw less power and run faster. Takes memory of its own and gives it back; 0 where that is not free. What
// the backend knows about algorithms stays as it is if tuning is off during the call.
double square_matmul_rate(Backend& backend, int64_t n);

}  // namespace irq
