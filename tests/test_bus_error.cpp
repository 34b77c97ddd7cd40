// A mapped file that is cut while it is read: the tool says so and leaves nothing half done.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "src/core/bus_error.h"
#include "src/core/file.h"
#include "tests/cli_util.h"
#include "tests/scratch_dir.h"

namespace irq {
namespace {

// What a child process that does `work` under the handler says, and how it ends.
CommandResult in_child(const std::function<void()>& work) {
  const ScratchDir dir;
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen((dir / "err").c_str(), "w", stderr) == nullptr) _exit(127);
    install_bus_error_handler("irq_sample");
    work();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), "", read_text(dir / "err")};
}

constexpr const char* kAdvice =
    ": cannot be read any further (bus error)\n"
    "  likely  : the file was cut or replaced in place while it was read, or its disk fails\n"
    "  try     : the same command again, once the file is whole\n";

TEST(BusError, NamesTheFileThatShrank) {
  const ScratchDir dir;
  write_bytes(dir / "big.bin", std::string(1 << 20, 'x'));
  write_bytes(dir / "out", "old");
  const CommandResult r = in_child([&] {
    const MappedFile gone(dir / "out");
    MappedFile first(dir / "big.bin");
    const MappedFile big = std::move(first);
    AtomicFile out(dir / "out");
    const FileLock lock(dir / "out.lock");
    out.write("half");
    if (truncate((dir / "big.bin").c_str(), 100000) != 0) _exit(126);
    volatile unsigned char last = big.data()[big.size() - 1];
    static_cast<void>(last);
  });
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.err, "\nirq_sample: " + (dir / "big.bin") + kAdvice);
  EXPECT_EQ(read_bytes(dir / "out"), "old");
  EXPECT_FALSE(file_exists(dir / "out.tmp"));
  EXPECT_FALSE(file_exists(dir / "out.lock"));
}

TEST(BusError, OtherCauses) {
  const ScratchDir dir;
  write_bytes(dir / "a", "a");
  const CommandResult r = in_child([&] {
    { const MappedFile forgotten(dir / "a"); }
    { AtomicFile(dir / "b").commit(); }
    write_bytes(dir / "b.tmp", "another's");  // no longer this process's
    std::raise(SIGBUS);
  });
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.err, std::string("\nirq_sample: a file or memory of this process") + kAdvice);
  EXPECT_TRUE(file_exists(dir / "b.tmp"));
}

}  // namespace
}  // namespace irq
