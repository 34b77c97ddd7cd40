// Another program, started and waited for: never through a shell, so that arguments arrive as they are.
#pragma once
#include <string>
#include <vector>

namespace irq {

struct ChildOptions {
  // What becomes of its stderr, of which the end is kept in any case.
  enum class Errors {
    hidden,
    lines,    // whole lines are passed on, without indented ones (tables, details); the child sees a pipe
    terminal  // passed on; the child sees a terminal as wide as this one's, so that its bars are drawn
  } errors = Errors::lines;
  int inherited_fd = -1;  // stays open in the child: whoever waits for a lock on it waits for the child too
};

struct ChildResult {
  int status = 0;          // exit status; 128 + signal where a signal ended it
  std::string out;         // its stdout, the first MiB
  std::string err;         // the last lines of its stderr, as plain text
  double seconds = 0;      // from start to end
  bool signalled = false;  // ended by a signal
};

// argv[0] is the program's path; stdin is empty. An interrupt (interrupted()) is passed on once, as SIGINT, and the child is
// waited for: it has its own process group, so that Ctrl-C reaches it through here only. If this process dies, the child
// gets SIGTERM. Throws an Error where the program cannot be started.
ChildResult run_child(const std::vector<std::string>& argv, const ChildOptions& options = {});

// What a terminal would show in the end of text with bars in it: of each line what stands behind the last carriage return,
// without escape sequences. Empty lines are left out.
std::string plain_lines(const std::string& text);

// "irq_train" -> the path of the one beside this program. Throws an Error where there is none.
std::string sibling_program(const std::string& name);

}  // namespace irq
