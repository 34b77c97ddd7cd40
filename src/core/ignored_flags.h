// Flags that would change nothing are refused, not ignored: whoever gave one expects something of it.
#pragma once
#include <string>
#include <vector>

namespace irq {

// One row of a tool's table.
struct IgnoredFlags {
  bool when = false;
  std::vector<std::string> flags;
  std::string why;  // "--method qlora searches no shifts"
};

// Of --entropy fp32 with 3 or 2 bits.
inline constexpr const char* kReleasedBits = "fp32 reproduces the released code, which has 4 bits only";

// Throws a usage Error about the first of the given flags that has no effect.
void refuse_ignored(const std::vector<std::string>& given, const std::vector<IgnoredFlags>& table);

}  // namespace irq
