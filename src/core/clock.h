// Seconds of a clock that is never set back: for differences.
#pragma once
#include <chrono>

namespace irq {

inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace irq
