#include "src/eval/choice_task.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/core/file.h"
#include "src/core/parallel.h"
#include "src/text/json_file.h"

namespace irq {
namespace {

using Json = nlohmann::json;

constexpr const char* kForm = R"({"query": "..", "choices": ["..", ".."], "gold": 0})";

Error error_at(const std::string& path, int64_t line, const std::string& what) {
  return Error(strf("%s: line %ld: %s", path.c_str(), line, what.c_str()));
}

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

const Json& member(const Json& object, const char* key, const std::string& path, int64_t line) {
  if (object.is_object() && object.contains(key)) return object[key];
  throw error_at(path, line, std::string("no \"") + key + "\"").line("expected", kForm).line("found", shown(object));
}

ChoiceQuestion parse_question(const std::string& path, int64_t line, const std::string& text) {
  Json object;
  try {
    object = parse_shallow_json(text, strf("%s: line %ld", path.c_str(), line));
  } catch (const Json::parse_error& e) {
    const size_t at = std::min(e.byte > 0 ? e.byte - 1 : 0, text.size());
    throw error_at(path, line, "not valid JSON")
        .line("expected", kForm)
        .line("found", at >= text.size() ? "the end of the line" : strf("column %zu: ", at + 1) + text.substr(at, 40))
        .line("try", "one question per line; tools/make_choice.py writes such files from the tasks' own");
  } catch (const Json::out_of_range&) {
    throw error_at(path, line, "not valid JSON")
        .line("expected", kForm)
        .line("found", "a number beyond every floating-point type");
  }
  ChoiceQuestion q;
  q.line = line;
  const Json& query = member(object, "query", path, line);
  if (!query.is_string())
    throw error_at(path, line, "\"query\" is no text").line("expected", "a string").line("found", shown(query));
  q.query = query;
  const Json& choices = member(object, "choices", path, line);
  if (!choices.is_array() || choices.size() < 2)
    throw error_at(path, line, "\"choices\" is no list of choices")
        .line("expected", "at least two strings")
        .line("found", shown(choices));
  for (const Json& choice : choices) {
    if (!choice.is_string() || choice.get_ref<const std::string&>().empty())
      throw error_at(path, line, strf("choice %zu is no text", q.choices.size()))
          .line("expected", "a string that is not empty")
          .line("found", shown(choice));
    q.choices.push_back(choice);
  }
  const Json& gold = member(object, "gold", path, line);
  const auto count = static_cast<int64_t>(q.choices.size());
  if (!gold.is_number_integer() || gold < 0 || gold >= count)
    throw error_at(path, line, "\"gold\" is no choice's number")
        .line("expected", strf("an integer from 0 to %ld", count - 1))
        .line("found", shown(gold));
  q.gold = gold;
  return q;
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::string stripped(const std::string& text) {
  size_t begin = 0, end = text.size();
  while (begin < end && is_space(text[begin])) ++begin;
  while (end > begin && is_space(text[end - 1])) --end;
  return text.substr(begin, end - begin);
}

// Context and continuation of each choice.
std::vector<std::pair<std::string, std::string>> texts_of(const ChoiceQuestion& q, bool partial) {
  std::vector<std::pair<std::string, std::string>> texts;
  const size_t blank = q.query.find('_');
  for (const std::string& choice : q.choices)
    if (partial) texts.push_back({q.query.substr(0, blank) + choice, " " + stripped(q.query.substr(blank + 1))});
    else texts.push_back({q.query, " " + choice});
  return texts;
}

struct Built {
  TokenQuestion question;
  bool partial = false;
};

Built build(const std::string& path, const ChoiceQuestion& q, const Tokenizer& tokenizer, const ChoiceOptions& o) {
  Built built;
  built.partial = o.partial && q.query.find('_') != std::string::npos;
  std::vector<Continuation> sequences;
  for (const auto& [context, continuation] : texts_of(q, built.partial)) {
    Continuation c = encode_continuation(tokenizer, context, continuation, o.add_bos);
    if (c.scored <= 0 || c.scored > o.max_tokens)
      throw error_at(path, q.line, strf("choice %zu cannot be scored", sequences.size()))
          .line("expected", strf("1 to %ld tokens (the model's context)", o.max_tokens))
          .line("found", strf("%ld tokens", c.scored));
    sequences.push_back(std::move(c));
  }
  built.question = share_beginning(std::move(sequences), o.max_tokens);
  return built;
}

}  // namespace

std::vector<ChoiceQuestion> read_choice_file(const std::string& path, int64_t limit) {
  const std::string content = read_text_file(path);
  std::vector<ChoiceQuestion> questions;
  int64_t line = 0;
  for (size_t at = 0; at < content.size() && (limit == 0 || static_cast<int64_t>(questions.size()) < limit);) {
    const size_t end = std::min(content.find('\n', at), content.size());
    const std::string text = content.substr(at, end - at);
    ++line;
    if (!stripped(text).empty()) questions.push_back(parse_question(path, line, text));
    at = end + 1;
  }
  if (questions.empty()) throw Error(path + ": the file holds no questions").line("expected", kForm);
  return questions;
}

Continuation encode_continuation(const Tokenizer& tokenizer, const std::string& context,
                                 const std::string& continuation, bool add_bos) {
  size_t end = context.size();
  while (end > 0 && is_space(context[end - 1])) --end;
  const std::string front = context.substr(0, end), back = context.substr(end) + continuation;
  Continuation c;
  if (front.empty()) {
    c.ids = tokenizer.encode(back);
    c.scored = static_cast<int64_t>(c.ids.size());
    const int32_t first = add_bos || tokenizer.eos() < 0 ? tokenizer.bos() : tokenizer.eos();
    if (first < 0)
      throw Error("an empty context needs an end-of-text token").line("found", tokenizer.describe() + " without one");
    c.ids.insert(c.ids.begin(), first);
    return c;
  }
  c.ids = tokenizer.encode(front + back, add_bos);
  c.scored = static_cast<int64_t>(c.ids.size()) - static_cast<int64_t>(tokenizer.encode(front, add_bos).size());
  return c;
}

ChoiceTask make_choice_task(const std::string& name, const std::string& path,
                            const std::vector<ChoiceQuestion>& questions, const Tokenizer& tokenizer,
                            const ChoiceOptions& options) {
  ChoiceTask task;
  task.name = name, task.path = path;
  std::vector<Built> built(questions.size());
  parallel_for(static_cast<int64_t>(questions.size()), 16, [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    built[at] = build(path, questions[at], tokenizer, options);
  });
  for (size_t i = 0; i < questions.size(); ++i) {
    task.partial += built[i].partial, task.cut += built[i].question.cut;
    task.group.questions.push_back(std::move(built[i].question));
    task.gold.push_back(questions[i].gold);
    task.lengths.emplace_back();
    for (const std::string& choice : questions[i].choices)
      task.lengths.back().push_back(static_cast<double>(count_code_points(choice)));
  }
  find_prefix(task.group);
  return task;
}

ChoiceTask make_choice_task(const std::string& name, const std::string& path,
                            const std::vector<EncodedQuestion>& questions, int64_t max_tokens) {
  ChoiceTask task;
  task.name = name, task.path = path;
  for (size_t i = 0; i < questions.size(); ++i) {
    std::vector<Continuation> sequences;
    std::vector<double> lengths;
    for (const std::vector<int32_t>& choice : questions[i].choices) {
      const auto scored = static_cast<int64_t>(choice.size());
      if (questions[i].context.empty() || scored == 0 || scored > max_tokens)
        throw Error(strf("%s: question %zu cannot be scored", path.c_str(), i + 1))
            .line("expected", strf("a context, and choices of 1 to %ld tokens (the model's context)", max_tokens))
            .line("found", strf("%zu tokens, and a choice of %ld", questions[i].context.size(), scored));
      sequences.push_back({questions[i].context, scored});
      sequences.back().ids.insert(sequences.back().ids.end(), choice.begin(), choice.end());
      lengths.push_back(static_cast<double>(scored));
    }
    task.group.questions.push_back(share_beginning(std::move(sequences), max_tokens));
    task.cut += task.group.questions.back().cut;
    task.gold.push_back(questions[i].gold);
    task.lengths.push_back(std::move(lengths));
  }
  find_prefix(task.group);
  return task;
}

ChoiceResult choice_result(const ChoiceTask& task, std::vector<std::vector<double>> scores) {
  ChoiceResult r;
  for (size_t i = 0; i < scores.size(); ++i) {
    r.pred.push_back(first_largest(scores[i]));
    r.acc.add(r.pred.back() == task.gold[i]);
    if (task.partial > 0) continue;
    std::vector<double> normed = scores[i];
    for (size_t c = 0; c < normed.size(); ++c) normed[c] /= task.lengths[i][c];
    r.pred_norm.push_back(first_largest(normed));
    r.acc_norm.add(r.pred_norm.back() == task.gold[i]);
  }
  r.scores = std::move(scores);
  return r;
}

}  // namespace irq
