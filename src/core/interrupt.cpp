#include "src/core/interrupt.h"

#include <csignal>

#include "src/core/check.h"

namespace irq {
namespace {

volatile std::sig_atomic_t signalled = 0;
void on_signal(int) { signalled = 1; }

}  // namespace

void install_interrupt_handler() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second signal finds the default action again
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return signalled != 0; }

void throw_if_interrupted() {
  if (interrupted()) throw Error("interrupted", Exit::interrupted);
}

void clear_interrupt() { signalled = 0; }

}  // namespace irq
