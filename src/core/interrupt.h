// Ctrl-C as a flag: a long job asks between two units of work, leaves its files whole, and ends with status 130.
#pragma once

namespace irq {

// From here on the first SIGINT or SIGTERM only sets the flag; the second one ends the process at once.
void install_interrupt_handler();
bool interrupted();
// Throws Error("interrupted", Exit::interrupted) if the flag is set.
void throw_if_interrupted();
void clear_interrupt();  // for tests

}  // namespace irq
