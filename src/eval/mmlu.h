// MMLU, as the released evaluation has it (fidelity 7.1): few-shot prompts of a subject's dev questions, the next token's
// log-probabilities of the four letters, averages over questions.
#pragma once
#include <array>
#include <map>
#include <string>

#include "src/eval/multiple_choice.h"
#include "src/eval/statistics.h"
#include "src/text/tokenizer.h"

namespace irq {

// Of the 57 subjects, in alphabetical order.
struct MmluSubjectName {
  const char* name;
  const char* group;
};
extern const std::array<MmluSubjectName, 57> kMmluSubjects;
extern const std::array<const char*, 4> kMmluGroups;  // "humanities", "STEM", "social sciences", "other"

struct MmluOptions {
  int64_t shots = 5;
  bool pandas = true;         // cells as the released code sees them (csv.h), else as they stand in the file
  int64_t limit = 0;          // the first questions of each subject, 0 = all
  int64_t max_tokens = 2048;  // of a prompt: shots go, the last first, then the beginning
};

struct MmluSubject {
  std::string name, group;
  QuestionGroup questions;  // scores: log p of A, B, C, D
  std::vector<int64_t> gold;
  int64_t fewer_shots = 0, cut = 0;  // prompts with fewer shots; prompts without their beginning
};

struct Mmlu {
  std::vector<MmluSubject> subjects;  // those that are there
  std::vector<std::string> missing;   // of the 57
  std::vector<std::string> unknown;   // files in the folder that are none of them
  int64_t changed_cells = 0;          // by pandas
  std::vector<int32_t> letters[4];    // what " A", " B", .. become behind "Answer:"
  bool bos = false;                   // in front of every prompt
};

// DIR/test/SUBJECT_test.csv and DIR/dev/SUBJECT_dev.csv (or the same in DIR/data). Throws an Error that names file and line.
Mmlu load_mmlu(const std::string& dir, const Tokenizer& tokenizer, const MmluOptions& options);

struct MmluResult {
  std::vector<std::string> pred;  // per subject, a letter per question
  std::vector<Accuracy> subjects;
  std::map<std::string, Accuracy> groups;  // those that have a subject
  Accuracy all;                            // over questions, not over subjects
};
// scores[subject][question][letter]
MmluResult mmlu_result(const Mmlu& mmlu, const std::vector<std::vector<std::vector<double>>>& scores);

// The prompt of one question: `shots` and `question` are rows of question, four choices, letter.
std::string mmlu_prompt(const std::string& subject, const std::vector<std::vector<std::string>>& shots, size_t count,
                        const std::vector<std::string>& question);

}  // namespace irq
