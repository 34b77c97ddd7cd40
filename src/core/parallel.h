// A loop over all CPU threads whose body may throw: the first exception is thrown again behind the loop.
#pragma once
#include <cstdint>
#include <exception>

namespace irq {

template <class F>
void parallel_for(int64_t count, int chunk, F&& body) {
  std::exception_ptr problem;
#pragma omp parallel for schedule(dynamic, chunk)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(irq_parallel_for)
      if (!problem) problem = std::current_exception();
    }
  }
  if (problem) std::rethrow_exception(problem);
}

}  // namespace irq
