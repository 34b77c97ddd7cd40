#include "src/core/bus_error.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <climits>
#include <csignal>
#include <cstring>
#include <mutex>

namespace irq {
namespace {

// The handler runs in the middle of anything: it takes no lock and no memory, and reads fixed tables only. `used` is
// written last when an entry is made and first when it goes.
struct Entry {
  std::atomic<bool> used{false};
  const char* begin = nullptr;
  int64_t bytes = 0;
  char path[PATH_MAX] = "";
};
using Table = std::array<Entry, 64>;
Table mappings, unfinished;
std::mutex changes;
char tool_name[64] = "irq";

void note(Table& table, const void* begin, int64_t bytes, const std::string& path) {
  if (path.size() >= PATH_MAX) return;
  const std::lock_guard lock(changes);
  for (Entry& e : table) {
    if (e.used) continue;
    e.begin = static_cast<const char*>(begin), e.bytes = bytes;
    std::memcpy(e.path, path.c_str(), path.size() + 1);
    e.used = true;
    return;
  }
}

void say(const char* text) {
  // A terminal that is gone changes nothing here.
  if (write(STDERR_FILENO, text, std::strlen(text)) < 0) return;
}

void on_bus_error(int, siginfo_t* info, void*) {
  const char* at = static_cast<const char*>(info->si_addr);
  const char* file = nullptr;
  for (const Entry& e : mappings)
    if (e.used && at >= e.begin && at - e.begin < e.bytes) file = e.path;
  say("\n"), say(tool_name), say(": ");
  say(file != nullptr ? file : "a file or memory of this process");
  say(": cannot be read any further (bus error)\n");
  say("  likely  : the file was cut or replaced in place while it was read, or its disk fails\n");
  say("  try     : the same command again, once the file is whole\n");
  for (const Entry& e : unfinished)
    if (e.used) unlink(e.path);
  _exit(1);
}

}  // namespace

void install_bus_error_handler(const char* tool) {
  std::strncpy(tool_name, tool, sizeof(tool_name) - 1);
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);
}

void note_mapping(const void* begin, int64_t bytes, const std::string& path) { note(mappings, begin, bytes, path); }

void forget_mapping(const void* begin) {
  const std::lock_guard lock(changes);
  for (Entry& e : mappings)
    if (e.used && e.begin == begin) e.used = false;
}

void note_unfinished(const std::string& path) { note(unfinished, nullptr, 0, path); }

void forget_unfinished(const std::string& path) {
  const std::lock_guard lock(changes);
  for (Entry& e : unfinished)
    if (e.used && path == e.path) e.used = false;
}

}  // namespace irq
