#include "src/core/ignored_flags.h"

#include <algorithm>

#include "src/core/check.h"

namespace irq {

void refuse_ignored(const std::vector<std::string>& given, const std::vector<IgnoredFlags>& table) {
  for (const IgnoredFlags& row : table)
    for (const std::string& flag : row.flags)
      if (row.when && std::find(given.begin(), given.end(), flag) != given.end())
        throw Error(flag + " has no effect here: " + row.why, Exit::usage).line("try", "without " + flag);
}

}  // namespace irq
