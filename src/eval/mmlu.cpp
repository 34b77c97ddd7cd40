#include "src/eval/mmlu.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "src/core/file.h"
#include "src/core/parallel.h"
#include "src/text/csv.h"

namespace irq {
namespace {

constexpr const char* kHumanities = "humanities";
constexpr const char* kStem = "STEM";
constexpr const char* kSocial = "social sciences";
constexpr const char* kOther = "other";
constexpr size_t kColumns = 6;  // question, A, B, C, D, letter

using Rows = std::vector<std::vector<std::string>>;

std::string folder_with_tests(const std::string& dir) {
  std::error_code ignored;
  for (const std::string& folder : {dir, dir + "/data"})
    if (std::filesystem::is_directory(folder + "/test", ignored)) return folder;
  throw Error(dir + ": no MMLU here")
      .line("expected", "a folder with test/SUBJECT_test.csv and dev/SUBJECT_dev.csv, as MMLU's own archive unpacks")
      .line("found", std::filesystem::is_directory(dir, ignored) ? "a folder without test/" : "no such folder");
}

Rows read_table(const std::string& path, bool pandas, int64_t& changed, std::vector<int64_t>* lines = nullptr) {
  std::vector<CsvRow> table = parse_csv(path, read_text_file(path), kColumns);
  if (pandas) changed += print_as_pandas(table);
  Rows rows;
  for (CsvRow& row : table) {
    if (lines) lines->push_back(row.line);
    rows.push_back(std::move(row.cells));
  }
  return rows;
}

int64_t letter_number(const std::string& path, int64_t line, const std::string& letter) {
  if (letter.size() == 1 && letter[0] >= 'A' && letter[0] <= 'D') return letter[0] - 'A';
  throw Error(strf("%s: line %ld: no answer in the last column", path.c_str(), line))
      .line("expected", "A, B, C or D")
      .line("found", "'" + letter.substr(0, 40) + "'");
}

// What stands behind "Answer:" when a letter answers: one token in every vocabulary of a real model.
std::vector<int32_t> letter_ids(const Tokenizer& tokenizer, char letter) {
  const std::vector<int32_t> before = tokenizer.encode("Answer:");
  std::vector<int32_t> with = tokenizer.encode(std::string("Answer: ") + letter);
  if (with.size() <= before.size() || !std::equal(before.begin(), before.end(), with.begin()))
    throw Error("this tokenizer has no token for an answer's letter")
        .line("expected", strf("the ids of \"Answer: %c\" to begin with those of \"Answer:\"", letter))
        .line("found", tokenizer.describe());
  with.erase(with.begin(), with.begin() + static_cast<std::ptrdiff_t>(before.size()));
  return with;
}

struct Prompt {
  TokenQuestion question;
  bool fewer_shots = false;
};

Prompt encode_prompt(const Mmlu& mmlu, const std::string& subject, const Rows& shots,
                     const std::vector<std::string>& row, const Tokenizer& tokenizer, int64_t max_tokens) {
  Prompt prompt;
  size_t count = shots.size();
  std::vector<int32_t> ids = tokenizer.encode(mmlu_prompt(subject, shots, count, row), mmlu.bos);
  while (static_cast<int64_t>(ids.size()) > max_tokens && count > 0) {
    prompt.fewer_shots = true;
    ids = tokenizer.encode(mmlu_prompt(subject, shots, --count, row), mmlu.bos);
  }
  std::vector<Continuation> answers;
  for (const auto& letter : mmlu.letters) {
    answers.push_back({ids, static_cast<int64_t>(letter.size())});
    answers.back().ids.insert(answers.back().ids.end(), letter.begin(), letter.end());
  }
  prompt.question = share_beginning(std::move(answers), max_tokens);
  return prompt;
}

MmluSubject load_subject(const std::string& folder, const MmluSubjectName& which, const Tokenizer& tokenizer,
                         const MmluOptions& options, Mmlu& mmlu) {
  MmluSubject subject;
  subject.name = which.name, subject.group = which.group;
  const std::string test = folder + "/test/" + which.name + "_test.csv",
                    dev = folder + "/dev/" + which.name + "_dev.csv";
  Rows shots;
  if (options.shots > 0) {
    shots = read_table(dev, options.pandas, mmlu.changed_cells);
    const auto found = static_cast<int64_t>(shots.size());
    if (found < options.shots)
      throw Error(dev + ": too few examples for the prompt")
          .line("expected", strf("at least %ld rows (--shots)", options.shots))
          .line("found", strf("%ld", found));
    shots.resize(static_cast<size_t>(options.shots));
  }
  std::vector<int64_t> lines;
  Rows rows = read_table(test, options.pandas, mmlu.changed_cells, &lines);
  if (rows.empty()) throw Error(test + ": the file holds no questions");
  if (options.limit > 0) rows.resize(std::min(rows.size(), static_cast<size_t>(options.limit)));
  for (size_t i = 0; i < rows.size(); ++i) subject.gold.push_back(letter_number(test, lines[i], rows[i][kColumns - 1]));
  std::vector<Prompt> prompts(rows.size());
  parallel_for(static_cast<int64_t>(rows.size()), 16, [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    prompts[at] = encode_prompt(mmlu, subject.name, shots, rows[at], tokenizer, options.max_tokens);
  });
  for (Prompt& p : prompts) {
    subject.fewer_shots += p.fewer_shots, subject.cut += p.question.cut;
    subject.questions.questions.push_back(std::move(p.question));
  }
  find_prefix(subject.questions);
  return subject;
}

std::vector<std::string> unknown_files(const std::string& folder) {
  std::set<std::string> names, unknown;
  for (const MmluSubjectName& s : kMmluSubjects) names.insert(std::string(s.name) + "_test.csv");
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder + "/test", ignored))
    if (!names.count(entry.path().filename().string())) unknown.insert(entry.path().filename().string());
  return {unknown.begin(), unknown.end()};
}

// A question and its choices, up to "Answer:".
std::string question_text(const std::vector<std::string>& row) {
  std::string text = row[0];
  for (size_t c = 0; c < 4; ++c) text += strf("\n%c. ", static_cast<char>('A' + c)) + row[c + 1];
  return text + "\nAnswer:";
}

}  // namespace

const std::array<const char*, 4> kMmluGroups = {kHumanities, kStem, kSocial, kOther};

const std::array<MmluSubjectName, 57> kMmluSubjects = {{
    {"abstract_algebra", kStem},
    {"anatomy", kOther},
    {"astronomy", kStem},
    {"business_ethics", kOther},
    {"clinical_knowledge", kOther},
    {"college_biology", kStem},
    {"college_chemistry", kStem},
    {"college_computer_science", kStem},
    {"college_mathematics", kStem},
    {"college_medicine", kOther},
    {"college_physics", kStem},
    {"computer_security", kStem},
    {"conceptual_physics", kStem},
    {"econometrics", kSocial},
    {"electrical_engineering", kStem},
    {"elementary_mathematics", kStem},
    {"formal_logic", kHumanities},
    {"global_facts", kOther},
    {"high_school_biology", kStem},
    {"high_school_chemistry", kStem},
    {"high_school_computer_science", kStem},
    {"high_school_european_history", kHumanities},
    {"high_school_geography", kSocial},
    {"high_school_government_and_politics", kSocial},
    {"high_school_macroeconomics", kSocial},
    {"high_school_mathematics", kStem},
    {"high_school_microeconomics", kSocial},
    {"high_school_physics", kStem},
    {"high_school_psychology", kSocial},
    {"high_school_statistics", kStem},
    {"high_school_us_history", kHumanities},
    {"high_school_world_history", kHumanities},
    {"human_aging", kOther},
    {"human_sexuality", kSocial},
    {"international_law", kHumanities},
    {"jurisprudence", kHumanities},
    {"logical_fallacies", kHumanities},
    {"machine_learning", kStem},
    {"management", kOther},
    {"marketing", kOther},
    {"medical_genetics", kOther},
    {"miscellaneous", kOther},
    {"moral_disputes", kHumanities},
    {"moral_scenarios", kHumanities},
    {"nutrition", kOther},
    {"philosophy", kHumanities},
    {"prehistory", kHumanities},
    {"professional_accounting", kOther},
    {"professional_law", kHumanities},
    {"professional_medicine", kOther},
    {"professional_psychology", kSocial},
    {"public_relations", kSocial},
    {"security_studies", kSocial},
    {"sociology", kSocial},
    {"us_foreign_policy", kSocial},
    {"virology", kOther},
    {"world_religions", kHumanities},
}};

std::string mmlu_prompt(const std::string& subject, const Rows& shots, size_t count,
                        const std::vector<std::string>& question) {
  std::string spaced = "_" + subject;  // a space before each word: two behind "about"
  std::replace(spaced.begin(), spaced.end(), '_', ' ');
  std::string text = "The following are multiple choice questions (with answers) about " + spaced + ".\n\n";
  for (size_t i = 0; i < count; ++i) text += question_text(shots[i]) + " " + shots[i][kColumns - 1] + "\n\n";
  return text + question_text(question);
}

Mmlu load_mmlu(const std::string& dir, const Tokenizer& tokenizer, const MmluOptions& options) {
  const std::string folder = folder_with_tests(dir);
  Mmlu mmlu;
  mmlu.bos = tokenizer.adds_bos();
  for (char c = 'A'; c <= 'D'; ++c) mmlu.letters[c - 'A'] = letter_ids(tokenizer, c);
  mmlu.unknown = unknown_files(folder);
  for (const MmluSubjectName& which : kMmluSubjects) {
    const std::string name = which.name;
    const bool complete = file_exists(folder + "/test/" + name + "_test.csv") &&
                          (options.shots == 0 || file_exists(folder + "/dev/" + name + "_dev.csv"));
    if (complete) mmlu.subjects.push_back(load_subject(folder, which, tokenizer, options, mmlu));
    else mmlu.missing.push_back(name);
  }
  if (mmlu.subjects.empty())
    throw Error(folder + ": none of MMLU's 57 subjects is here")
        .line("expected", "test/abstract_algebra_test.csv with dev/abstract_algebra_dev.csv, and so on");
  return mmlu;
}

MmluResult mmlu_result(const Mmlu& mmlu, const std::vector<std::vector<std::vector<double>>>& scores) {
  MmluResult r;
  for (size_t s = 0; s < mmlu.subjects.size(); ++s) {
    const MmluSubject& subject = mmlu.subjects[s];
    r.pred.emplace_back(), r.subjects.emplace_back();
    for (size_t i = 0; i < scores[s].size(); ++i) {
      const int64_t pred = first_largest(scores[s][i]);
      r.pred.back() += static_cast<char>('A' + pred);
      r.subjects.back().add(pred == subject.gold[i]);
    }
    r.groups[subject.group].add(r.subjects.back());
    r.all.add(r.subjects.back());
  }
  return r;
}

}  // namespace irq
