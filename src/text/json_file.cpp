#include "src/text/json_file.h"

#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/core/file.h"

namespace irq {

namespace {

Error too_deep(const std::string& subject) {
  return Error(subject + ": is nested too deeply").line("expected", "at most 16 levels");
}

// Values below the 16th level are left out, and `deep` says that there are some.
nlohmann::json parse_bounded(std::string_view text, bool& deep) {
  constexpr int kDeepest = 16;
  return nlohmann::json::parse(text, [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    deep |= depth > kDeepest;
    return depth <= kDeepest;
  });
}

}  // namespace

nlohmann::json parse_shallow_json(std::string_view text, const std::string& subject) {
  bool deep = false;
  nlohmann::json json = parse_bounded(text, deep);
  if (deep) throw too_deep(subject);
  return json;
}

nlohmann::json parse_json(std::string_view text, const std::string& subject) {
  bool deep = false;
  try {
    nlohmann::json json = parse_bounded(text, deep);
    if (!deep) return json;
  } catch (const nlohmann::json::parse_error& e) {
    if (!deep) throw Error(subject + ": is not valid JSON").line("found", strf("an error at byte %zu", e.byte));
  } catch (const nlohmann::json::exception&) {
    throw Error(subject + ": is not valid JSON").line("found", "a number beyond every floating-point type");
  }
  throw too_deep(subject);
}

nlohmann::json read_json_file(const std::string& path, int64_t limit_bytes) {
  return parse_json(read_text_file(path, limit_bytes), path);
}

}  // namespace irq
