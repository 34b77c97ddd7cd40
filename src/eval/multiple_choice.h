// Scores of continuations: the log-probability of some last tokens given all in front of them. What sequences share is
// computed once:
//   - the endings of one question share the tokens they all begin with: each hangs on them by attention's prefix range;
//   - the questions of one group share a prefix (MMLU: a subject's five shots), which goes into the KV cache once.
// Many questions make one batch, and only rows that are scored go through the head.
#pragma once
#include <functional>
#include <vector>

#include "src/eval/model_session.h"

namespace irq {

// A sequence whose last `scored` ids count.
struct Continuation {
  std::vector<int32_t> ids;
  int64_t scored = 0;
};

struct TokenQuestion {
  std::vector<int32_t> shared;        // what all endings begin with
  std::vector<Continuation> endings;  // what follows; at least one id each. `scored` may reach back into shared
  int64_t alone_rows = 0;             // rows that these sequences take one by one, equal ones once
  bool cut = false;                   // is one of them without its beginning?
};

// The whole sequences of one question -> its question. Each keeps its last max_rows + 1 ids: max_rows predictions. Every
// sequence must hold more ids than it scores, and score at least one but at most max_rows.
TokenQuestion share_beginning(std::vector<Continuation> sequences, int64_t max_rows);

struct QuestionGroup {
  std::vector<TokenQuestion> questions;
  std::vector<int32_t> prefix;  // into the cache; questions whose endings need no rows of their own go on from it
};
// Sets the prefix: from the first token on the way that most questions go, as long as two go it.
void find_prefix(QuestionGroup& group);

// Throws an Error if an id is outside the model's vocabulary; `source` is the file that the questions come from.
void check_ids(const QuestionGroup& group, int64_t vocab, const std::string& source);

// The batch budgets to try, the best first (rows; a larger question has a batch of its own).
std::vector<int64_t> row_budgets(Device device);
// Adds to `work` what scoring these groups with this budget takes.
void add_scoring(Workload& work, const std::vector<const QuestionGroup*>& groups, int64_t max_rows, Device device);

struct ScoringCount {
  int64_t questions = 0, computed_rows = 0, saved_rows = 0;  // saved: against each sequence alone
};
using QuestionProgress = std::function<void(int64_t done_questions)>;
// scores[question][ending], natural log. The budget changes nothing but the rounding of sums.
std::vector<std::vector<double>> score_group(ModelSession& session, const QuestionGroup& group, int64_t max_rows,
                                             Device device, ScoringCount& count, const QuestionProgress& progress = {});

}  // namespace irq
