// JSON from files of unknown origin: nlohmann's values, with a bound on size and depth.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace irq {

// `subject` opens every message ("a/config.json"). Throws an Error where the text is not JSON, is nested deeper than 16 (the
// library copies and prints values recursively: a million brackets would end the program), or has a number no double holds.
nlohmann::json parse_json(const std::string& text, const std::string& subject);
// A whole file, at most limit_bytes.
nlohmann::json read_json_file(const std::string& path, int64_t limit_bytes);

}  // namespace irq
