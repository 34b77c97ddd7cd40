#include "src/io/json_file.h"

#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/core/file.h"

namespace irq {

nlohmann::json parse_json(const std::string& text, const std::string& subject) {
  using Json = nlohmann::json;
  constexpr int kDeepest = 16;
  const auto watch = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kDeepest) throw Error(subject + ": is nested too deeply").line("expected", "at most 16 levels");
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::parse_error& e) {
    throw Error(subject + ": is not valid JSON").line("found", strf("an error at byte %zu", e.byte));
  } catch (const Json::exception&) {
    throw Error(subject + ": is not valid JSON").line("found", "a number beyond every floating-point type");
  }
}

nlohmann::json read_json_file(const std::string& path, int64_t limit_bytes) {
  return parse_json(read_text_file(path, limit_bytes), path);
}

}  // namespace irq
