#include "src/core/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "src/core/check.h"
#include "src/core/clock.h"
#include "src/core/interrupt.h"

namespace irq {
namespace {

constexpr size_t kKeptOut = size_t{1} << 20, kKeptErr = 16 << 10;
constexpr int kTickMs = 100;  // how soon an interrupt is passed on

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { reset(); }
  void reset() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }
  int get() const { return fd_; }
  bool open() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

[[noreturn]] void cannot_start(const std::string& program, int error) {
  Error e(program + ": cannot be started: " + std::strerror(error));
  throw e.line("try", "build it again: make");
}

std::pair<Fd, Fd> make_pipe(const std::string& program) {  // read end, write end
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) cannot_start(program, errno);
  return {Fd(ends[0]), Fd(ends[1])};
}

void copy_window_size(int terminal) {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0) ioctl(terminal, TIOCSWINSZ, &size);
}

// A terminal of the child's own, which passes bytes through unchanged: {our end, its end}; none where there is no such.
std::pair<Fd, Fd> make_terminal() {
  Fd ours(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  char name[128];
  if (!ours.open() || grantpt(ours.get()) != 0 || unlockpt(ours.get()) != 0 ||
      ptsname_r(ours.get(), name, sizeof name) != 0)
    return {};
  Fd theirs(open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
  termios settings = {};
  if (!theirs.open() || tcgetattr(theirs.get(), &settings) != 0) return {};
  settings.c_oflag &= ~static_cast<tcflag_t>(OPOST);
  settings.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  tcsetattr(theirs.get(), TCSANOW, &settings);
  copy_window_size(ours.get());
  return {std::move(ours), std::move(theirs)};
}

// In the new process: nothing but system calls until exec.
[[noreturn]] void become(const char* const* argv, int out, int err, int failed, int inherited, pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  const int nothing = open("/dev/null", O_RDONLY);
  const bool parent_lives = getppid() == parent;  // else the signal would never come
  if (parent_lives && nothing >= 0 && dup2(nothing, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0 &&
      dup2(err, STDERR_FILENO) >= 0) {
    if (inherited >= 0) fcntl(inherited, F_SETFD, 0);
    execv(argv[0], const_cast<char* const*>(argv));
  }
  const int error = errno;
  if (write(failed, &error, sizeof error) < 0) _exit(126);
  _exit(127);
}

// Reads what is there; closes at the end of the stream. A terminal whose other end is closed answers with EIO.
std::string read_some(Fd& fd) {
  char buffer[16384];
  const ssize_t n = read(fd.get(), buffer, sizeof buffer);
  if (n > 0) return std::string(buffer, static_cast<size_t>(n));
  if (n == 0 || (errno != EINTR && errno != EAGAIN)) fd.reset();
  return "";
}

void pass_on(const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // nobody reads it: the work goes on
    done += static_cast<size_t>(n);
  }
}

// What of a child's stderr is passed on, in which pieces.
class Passing {
 public:
  explicit Passing(ChildOptions::Errors errors) : errors_(errors) {}
  void take(const std::string& text) {
    if (errors_ == ChildOptions::Errors::terminal) pass_on(text);
    if (errors_ != ChildOptions::Errors::lines) return;
    line_ += text;
    for (size_t end; (end = line_.find('\n')) != std::string::npos; line_.erase(0, end + 1))
      if (end > 0 && line_[0] != ' ') pass_on(line_.substr(0, end + 1));
  }

 private:
  ChildOptions::Errors errors_;
  std::string line_;
};

class Interrupter {
 public:
  explicit Interrupter(pid_t child) : child_(child) {}
  void tick() {
    if (interrupted() && !std::exchange(passed_on_, true)) kill(child_, SIGINT);
  }

 private:
  pid_t child_;
  bool passed_on_ = false;
};

void watch(pid_t child, Fd& out, Fd& err, const ChildOptions& options, ChildResult& result) {
  Interrupter interrupter(child);
  Passing passing(options.errors);
  const bool terminal = options.errors == ChildOptions::Errors::terminal;
  while (out.open() || err.open()) {
    interrupter.tick();
    if (terminal && err.open()) copy_window_size(err.get());
    pollfd fds[2] = {{out.get(), POLLIN, 0}, {err.get(), POLLIN, 0}};  // poll skips a negative one
    if (poll(fds, 2, kTickMs) <= 0) continue;
    if (fds[0].revents != 0) {
      const std::string text = read_some(out);
      result.out += text.substr(0, kKeptOut - std::min(kKeptOut, result.out.size()));
    }
    if (fds[1].revents == 0) continue;
    const std::string text = read_some(err);
    passing.take(text);
    result.err += text;
    if (result.err.size() > 2 * kKeptErr) result.err.erase(0, result.err.size() - kKeptErr);
  }
  int status = 0;
  for (pid_t ended = 0; ended == 0;) {  // it may live on with both streams closed
    interrupter.tick();
    ended = waitpid(child, &status, WNOHANG);
    if (ended < 0 && errno == EINTR) ended = 0;
    if (ended == 0) poll(nullptr, 0, kTickMs / 10);
  }
  result.signalled = WIFSIGNALED(status);
  result.status = result.signalled ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

ChildResult run_child(const std::vector<std::string>& argv, const ChildOptions& options) {
  IRQ_CHECK(!argv.empty(), "no program");
  std::vector<const char*> words;
  for (const std::string& word : argv) words.push_back(word.c_str());
  words.push_back(nullptr);
  auto [out, out_end] = make_pipe(argv[0]);
  auto [failed, failed_end] = make_pipe(argv[0]);
  Fd err, err_end;
  if (options.errors == ChildOptions::Errors::terminal) std::tie(err, err_end) = make_terminal();
  if (!err_end.open()) std::tie(err, err_end) = make_pipe(argv[0]);
  const double start = now_seconds();
  const pid_t parent = getpid(), child = fork();
  if (child < 0) cannot_start(argv[0], errno);
  if (child == 0) become(words.data(), out_end.get(), err_end.get(), failed_end.get(), options.inherited_fd, parent);
  out_end.reset(), err_end.reset(), failed_end.reset();
  int error = 0;
  ssize_t got = 0;
  while ((got = read(failed.get(), &error, sizeof error)) < 0 && errno == EINTR) {}
  if (got == static_cast<ssize_t>(sizeof error)) {
    waitpid(child, nullptr, 0);
    cannot_start(argv[0], error);
  }
  ChildResult result;
  watch(child, out, err, options, result);
  result.seconds = now_seconds() - start;
  if (result.err.size() > kKeptErr) result.err.erase(0, result.err.size() - kKeptErr);
  result.err = plain_lines(result.err);
  return result;
}

std::string plain_lines(const std::string& text) {
  std::string all, line;
  const auto end_line = [&] {
    while (!line.empty() && line.back() == '\r') line.pop_back();
    if (const size_t at = line.rfind('\r'); at != std::string::npos) line.erase(0, at + 1);
    if (line.find_first_not_of(' ') != std::string::npos) all += line + "\n";
    line.clear();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\n') {
      end_line();
    } else if (text[i] == '\x1b' && i + 1 < text.size() && text[i + 1] == '[') {
      for (i += 2; i < text.size() && (text[i] < '@' || text[i] > '~');) ++i;  // up to its final letter
    } else {
      line += text[i];
    }
  }
  end_line();
  return all;
}

std::string sibling_program(const std::string& name) {
  std::error_code failed;
  const std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", failed).parent_path();
  const std::string path = (folder / name).string();
  if (failed || access(path.c_str(), X_OK) != 0)
    throw Error(name + ": not beside this program")
        .line("expected", path)
        .line("try", "build all tools: make    (make install copies all of them)");
  return path;
}

}  // namespace irq
