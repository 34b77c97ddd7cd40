#include "src/text/records.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/core/check.h"

namespace irq {
namespace {

using Json = nlohmann::json;

constexpr const char* kForms =
    "\"instruction\", \"input\" (may be empty) and \"output\" (Alpaca); or \"input\" and \"output\"; or \"messages\" "
    "(chat)";

int64_t line_of(const std::string& content, size_t at) {
  return 1 + std::count(content.begin(), content.begin() + static_cast<int64_t>(std::min(at, content.size())), '\n');
}

Error error_at(const std::string& path, int64_t line, const std::string& what) {
  return Error(strf("%s: line %lld: %s", path.c_str(), static_cast<long long>(line), what.c_str()));
}

// A few characters of the file for an error message, cut at the end of the line.
std::string excerpt(const std::string& content, size_t at) {
  if (at >= content.size()) return "the end of the file";
  const size_t end = std::min({content.find('\n', at), at + 60, content.size()});
  std::string text = content.substr(at, end - at);
  while (end < content.size() && !text.empty() && (static_cast<uint8_t>(content[at + text.size()]) & 0xC0) == 0x80)
    text.pop_back();  // do not cut through a UTF-8 character
  return text.empty() ? "the end of the line" : "'" + text + "'";
}

std::string keys_of(const Json& object) {
  if (!object.is_object()) return std::string("a JSON ") + object.type_name();
  std::string keys;
  for (const auto& [key, value] : object.items()) keys += (keys.empty() ? "\"" : ", \"") + key + "\"";
  return keys.empty() ? "an object without keys" : keys;
}

struct Parser {
  const std::string& path;
  const std::string& content;

  // Where the JSON value that begins at `at` ends (one past); strings are skipped, nothing is checked. npos: cut short.
  size_t end_of_value(size_t at) const {
    int depth = 0;
    bool in_string = false;
    for (; at < content.size(); ++at) {
      const char c = content[at];
      if (in_string) {
        if (c == '\\') ++at;
        else if (c == '"') in_string = false;
      } else if (c == '"') {
        in_string = true;
      } else if (c == '{' || c == '[') {
        ++depth;
      } else if (c == '}' || c == ']') {
        if (--depth == 0) return at + 1;
        if (depth < 0) return at;
      } else if (depth == 0 && c == ',') {
        return at;
      }
    }
    return std::string::npos;
  }
  size_t skip_space(size_t at) const { return std::min(content.find_first_not_of(" \t\r\n", at), content.size()); }

  Json parse(size_t begin, size_t end, const char* expected) const {
    try {
      return Json::parse(content.begin() + static_cast<int64_t>(begin), content.begin() + static_cast<int64_t>(end));
    } catch (const Json::parse_error& e) {
      const size_t at = begin + (e.byte > 0 ? e.byte - 1 : 0);
      const bool cut = at >= end;
      throw error_at(path, line_of(content, at), "not valid JSON")
          .line("expected", expected)
          .line("found", cut ? "a record that ends too early: " + excerpt(content, begin) : excerpt(content, at));
    } catch (const Json::out_of_range&) {  // a number of hundreds of digits
      throw error_at(path, line_of(content, begin), "a number is too large")
          .line("expected", expected)
          .line("found", excerpt(content, begin));
    }
  }

  std::string text(const Json& object, const char* key, int64_t line, bool optional = false) const {
    const auto it = object.find(key);
    if (it == object.end() || it->is_null()) {
      if (optional) return "";
      throw error_at(path, line, strf(it == object.end() ? "the record has no \"%s\"" : "\"%s\" is null", key))
          .line("expected", kForms)
          .line("found", keys_of(object));
    }
    if (!it->is_string())
      throw error_at(path, line, strf("\"%s\" is not a string", key))
          .line("expected", "a string")
          .line("found", std::string("a JSON ") + it->type_name());
    return it->get<std::string>();
  }

  DataForm form_of(const Json& object, int64_t line) const {
    if (object.is_object()) {
      if (object.contains("messages")) return DataForm::chat;
      if (object.contains("instruction")) return DataForm::alpaca;
      if (object.contains("input") && object.contains("output")) return DataForm::input_output;
    }
    throw error_at(path, line, "the record has no form known here")
        .line("expected", kForms)
        .line("found", keys_of(object))
        .line("try", "rename the keys");
  }

  void read_messages(const Json& object, Record& record) const {
    const Json& messages = object["messages"];
    if (!messages.is_array() || messages.empty())
      throw error_at(path, record.line, "\"messages\" is no list of messages")
          .line("expected", "[{\"role\": .., \"content\": ..}, ..]")
          .line("found", std::string(messages.is_array() ? "an empty list" : messages.type_name()));
    std::string turn = "user";  // whose turn it is
    for (size_t i = 0; i < messages.size(); ++i) {
      if (!messages[i].is_object())
        throw error_at(path, record.line, strf("message %zu is no object", i + 1))
            .line("found", messages[i].type_name());
      Message m{text(messages[i], "role", record.line), text(messages[i], "content", record.line)};
      const bool system = i == 0 && m.role == "system";
      if (!system && m.role != turn)
        throw error_at(path, record.line, strf("message %zu is out of turn", i + 1))
            .line("expected",
                  "role \"" + turn + "\" (an optional system message first, then user and assistant by turns)")
            .line("found", "role \"" + m.role + "\"");
      if (!system) turn = turn == "user" ? "assistant" : "user";
      record.messages.push_back(std::move(m));
    }
  }

  void add(Records& records, const Json& object, int64_t line) const {
    if (records.list.empty()) records.form = form_of(object, line);
    if (!object.is_object())
      throw error_at(path, line, "the record is no object").line("expected", kForms).line("found", keys_of(object));
    Record record;
    record.line = line;
    if (records.form == DataForm::chat) {
      if (!object.contains("messages"))
        throw error_at(path, line, "the record has no \"messages\"")
            .line("expected", "chat messages, as in the first record")
            .line("found", keys_of(object));
      read_messages(object, record);
    } else {
      const bool alpaca = records.form == DataForm::alpaca;
      if (alpaca) record.instruction = text(object, "instruction", line);
      record.input = text(object, "input", line, /*optional=*/alpaca);
      record.output = text(object, "output", line);
    }
    records.list.push_back(std::move(record));
  }

  Error cut_short(const std::string& inside, int64_t line) const {
    const std::string began =
        inside == "a record" ? strf(" that begins in line %lld", static_cast<long long>(line)) : "";
    return error_at(path, line_of(content, content.size()), "the file is cut short")
        .line("expected", "']' at the end of the list")
        .line("found", "the end of the file inside " + inside + began)
        .line("likely", "an interrupted download or copy");
  }

  Records array(size_t at) const {
    Records records{DataForm::alpaca, {}};
    int64_t line = line_of(content, at);
    size_t counted = at;
    ++at;
    for (bool first = true;; first = false) {
      at = skip_space(at);
      if (at < content.size() && content[at] == ']' && first) break;
      const size_t end = end_of_value(at);
      line +=
          std::count(content.begin() + static_cast<int64_t>(counted), content.begin() + static_cast<int64_t>(at), '\n');
      counted = at;
      if (end == std::string::npos) throw cut_short(at < content.size() ? "a record" : "the list", line);
      add(records, parse(at, end, "a record of the list"), line);
      at = skip_space(end);
      if (at < content.size() && content[at] == ']') break;
      if (at >= content.size()) throw cut_short("the list", 0);
      if (content[at] != ',')
        throw error_at(path, line_of(content, at), "the list goes wrong here")
            .line("expected", "',' or ']' after a record")
            .line("found", excerpt(content, at));
      ++at;
    }
    if (const size_t rest = skip_space(at + 1); rest < content.size())
      throw error_at(path, line_of(content, rest), "something stands behind the list")
          .line("expected", "the end of the file")
          .line("found", excerpt(content, rest));
    return records;
  }

  Records lines(size_t at) const {
    Records records{DataForm::alpaca, {}};
    int64_t line = line_of(content, at);
    while (at < content.size()) {
      const size_t end = std::min(content.find('\n', at), content.size());
      if (content.find_first_not_of(" \t\r", at) < end) add(records, parse(at, end, "one JSON object per line"), line);
      at = end + 1;
      ++line;
    }
    return records;
  }
};

}  // namespace

const char* name_of(DataForm form) {
  switch (form) {
    case DataForm::alpaca: return "Alpaca instructions";
    case DataForm::input_output: return "input and output pairs";
    case DataForm::chat: return "chat messages";
    case DataForm::text: return "plain text";
    case DataForm::tokens: return "llm.c tokens";
  }
  return "";
}

Records parse_records(const std::string& path, const std::string& content) {
  const Parser parser{path, content};
  const size_t at = content.find_first_of("[{");
  IRQ_CHECK(at != std::string::npos, "%s: neither '[' nor '{'", path.c_str());
  Records records = content[at] == '[' ? parser.array(at) : parser.lines(at);
  if (records.list.empty()) throw Error(path + ": the file holds no records").line("expected", kForms);
  return records;
}

}  // namespace irq
