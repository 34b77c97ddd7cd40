// A multiple-choice task from a file of questions, scored as lm-evaluation-harness (v0.4.0) scores it (fidelity 7.2).
#pragma once
#include <string>

#include "src/eval/multiple_choice.h"
#include "src/eval/statistics.h"
#include "src/text/tokenizer.h"

namespace irq {

struct ChoiceQuestion {
  int64_t line = 0;  // in its file, from 1
  std::string query;
  std::vector<std::string> choices;
  int64_t gold = 0;
};

// JSON lines {"query": text, "choices": [texts, at least two], "gold": index}; other keys are passed over. limit: the first
// questions only, 0 = all. Throws an Error with file, line, what was expected and what was found.
std::vector<ChoiceQuestion> read_choice_file(const std::string& path, int64_t limit = 0);

struct ChoiceOptions {
  bool partial =
      false;  // queries with "_" are scored as WinoGrande: the choice in its place, the text behind it scored
  bool add_bos = false;       // in front of every context
  int64_t max_tokens = 2048;  // of context and choice but its last; longer ones lose their beginning
};

struct ChoiceTask {
  std::string name, path;
  QuestionGroup group;
  std::vector<int64_t> gold;
  std::vector<std::vector<double>> lengths;  // acc_norm divides by these: characters of each choice
  int64_t partial = 0, cut = 0;              // questions scored as WinoGrande; questions without their beginning
};

// The sequence of one choice: ids of context + continuation, scored behind the ids of the context alone. White space at the
// context's end counts to the continuation; an empty context is the end-of-text token (BOS with add_bos).
Continuation encode_continuation(const Tokenizer& tokenizer, const std::string& context,
                                 const std::string& continuation, bool add_bos);

// Throws an Error with the line of a question that cannot be scored (a choice longer than max_tokens).
ChoiceTask make_choice_task(const std::string& name, const std::string& path,
                            const std::vector<ChoiceQuestion>& questions, const Tokenizer& tokenizer,
                            const ChoiceOptions& options);

// A question that comes as ids (llm.c's evaluation files). acc_norm divides by tokens there: nobody knows the characters.
struct EncodedQuestion {
  std::vector<int32_t> context;
  std::vector<std::vector<int32_t>> choices;
  int64_t gold = 0;
};
ChoiceTask make_choice_task(const std::string& name, const std::string& path,
                            const std::vector<EncodedQuestion>& questions, int64_t max_tokens);

struct ChoiceResult {
  std::vector<std::vector<double>> scores;  // log-probabilities of the choices, unnormalised
  std::vector<int64_t> pred, pred_norm;     // pred_norm: empty where a question was scored as WinoGrande
  Accuracy acc, acc_norm;
};
ChoiceResult choice_result(const ChoiceTask& task, std::vector<std::vector<double>> scores);

}  // namespace irq
