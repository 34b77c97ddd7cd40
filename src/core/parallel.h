// A loop over all CPU threads whose body may throw.
#pragma once
#include <cstdint>
#include <exception>

namespace irq {

// body(0) .. body(count - 1), `chunk` at a time. Behind the loop the exception of the lowest number is thrown, so that the same
// input gives the same message.
template <class F>
void parallel_for(int64_t count, int chunk, F&& body) {
  std::exception_ptr problem;
  int64_t problem_at = count;
#pragma omp parallel for schedule(dynamic, chunk)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(irq_parallel_for)
      if (i < problem_at) problem_at = i, problem = std::current_exception();
    }
  }
  if (problem) std::rethrow_exception(problem);
}

}  // namespace irq
