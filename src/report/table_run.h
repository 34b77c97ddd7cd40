// The matrix itself: checks what is there, does what is missing, cell by cell, and writes the table.
#pragma once
#include "src/report/table_options.h"

namespace irq {

// Returns the exit status: 1 where a cell failed. The table goes to stdout, out/table.md and out/table.json; what happens, to
// stderr. Throws an Error with Exit::interrupted after Ctrl-C; the same command goes on then.
int run_table(const TableOptions& options);

}  // namespace irq
