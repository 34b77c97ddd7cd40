// SIGBUS: a file that is mapped shrinks, or its disk fails, while it is read. The kernel has no other way to say so, and
// without a handler the process ends without a word.
#pragma once
#include <cstdint>
#include <string>

namespace irq {

// From here on a bus error names the tool, the file where it is a mapped one, and the likely cause; the temporary files
// that are being written are removed; the process ends with status 1. And writing beyond the file size limit (ulimit -f) fails as
// on a full disk, where by default SIGXFSZ would end the process without a word.
void install_bus_error_handler(const char* tool);

// What the handler can name and take away. Beyond 64 of each nothing more is noted; the rest works as before.
void note_mapping(const void* begin, int64_t bytes, const std::string& path);
void forget_mapping(const void* begin);
void note_unfinished(const std::string& path);  // a temporary file or a lock of this process
void forget_unfinished(const std::string& path);

}  // namespace irq
