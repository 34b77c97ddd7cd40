// JSON from files of unknown origin: nlohmann's values, with a bound on size and depth.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace irq {

// `subject` opens every message ("a/config.json", "a.jsonl: line 3"). Throws an Error where the text is nested deeper than 16: the
// library copies and prints values recursively, a million brackets would end the program. The library's own exceptions for what
// is no JSON (parse_error) or has a number that no double holds (out_of_range) pass through, for callers that say more.
nlohmann::json parse_shallow_json(std::string_view text, const std::string& subject);
// The same with an Error for these as well.
nlohmann::json parse_json(std::string_view text, const std::string& subject);
// A whole file, at most limit_bytes.
nlohmann::json read_json_file(const std::string& path, int64_t limit_bytes);

}  // namespace irq
