#include "src/eval/multiple_choice.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "src/core/interrupt.h"

namespace irq {
namespace {

int64_t size_of_ids(const std::vector<int32_t>& ids) { return static_cast<int64_t>(ids.size()); }

int64_t common_length(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  const auto n = static_cast<std::ptrdiff_t>(std::min(a.size(), b.size()));
  return std::mismatch(a.begin(), a.begin() + n, b.begin()).first - a.begin();
}

// One row sequence serves all endings: each ends one token behind the shared part.
bool is_single(const TokenQuestion& q) {
  return std::all_of(q.endings.begin(), q.endings.end(), [](const Continuation& e) { return e.ids.size() == 1; });
}

// The first shared row whose logits are scored.
int64_t first_scored_row(const TokenQuestion& q) {
  int64_t first = size_of_ids(q.shared);
  for (const Continuation& e : q.endings)
    first = std::min(first, size_of_ids(q.shared) + size_of_ids(e.ids) - e.scored - 1);
  return first;
}

// How many of the group's cached rows the question goes on from. The rows between them and an ending's own would have to lie
// beside them, so only a question without such rows can.
int64_t cached_rows(const TokenQuestion& q, const std::vector<int32_t>& prefix) {
  return is_single(q) ? std::min(common_length(q.shared, prefix), first_scored_row(q)) : 0;
}

StepShape shape_of_question(const TokenQuestion& q, int64_t cached) {
  StepShape s{size_of_ids(q.shared) - cached, 0, 1};
  for (const Continuation& e : q.endings) {
    s.rows += size_of_ids(e.ids) - 1, s.labels += e.scored;
    s.sequences += e.ids.size() > 1;
  }
  return s;
}

struct BatchPlan {
  size_t first, last;  // questions [first, last)
  StepShape shape;     // not padded
};

std::vector<BatchPlan> plan_batches(const QuestionGroup& group, int64_t max_rows) {
  std::vector<BatchPlan> plans;
  for (size_t i = 0; i < group.questions.size(); ++i) {
    const TokenQuestion& q = group.questions[i];
    const StepShape s = shape_of_question(q, cached_rows(q, group.prefix));
    if (plans.empty() || plans.back().shape.rows + s.rows > max_rows) plans.push_back({i, i, {0, 0, 0}});
    StepShape& sum = plans.back().shape;
    plans.back().last = i + 1;
    sum.rows += s.rows, sum.labels += s.labels, sum.sequences += s.sequences;
  }
  return plans;
}

// A GPU's products take rows in tiles; a CPU would compute each row of padding.
int64_t padded(int64_t n, Device device) { return device == Device::CPU ? n : bucketed(n); }

class Packer {
 public:
  // keys_before: rows of keys in front of the batch's own.
  explicit Packer(int32_t keys_before) : keys_before_(keys_before) {}

  void add(const TokenQuestion& q, int32_t cached) {
    const int32_t begin = add_rows(q.shared.begin() + cached, q.shared.end(), cached), end = rows();
    if (end > begin) batch_.seqs.push_back({begin, end, keys_before_ + begin, keys_before_ + end, 0, cached});
    const auto shared = static_cast<int32_t>(q.shared.size());
    for (const Continuation& e : q.endings) {
      const int32_t own = add_rows(e.ids.begin(), e.ids.end() - 1, shared), own_end = rows();
      if (own_end > own)
        batch_.seqs.push_back(
            {own, own_end, keys_before_ + own, keys_before_ + own_end, keys_before_ + begin, keys_before_ + end});
      const int32_t length = shared + static_cast<int32_t>(e.ids.size());
      for (int32_t at = length - static_cast<int32_t>(e.scored); at < length; ++at) {
        batch_.label_rows.push_back(at - 1 < shared ? begin + at - 1 - cached : own + at - 1 - shared);
        batch_.targets.push_back(at < shared ? q.shared[static_cast<size_t>(at)]
                                             : e.ids[static_cast<size_t>(at - shared)]);
      }
    }
    ++batch_.examples;
  }

  Batch finish(Device device) {
    batch_.real_rows = rows(), batch_.real_labels = size_of_ids(batch_.label_rows);
    const auto all = static_cast<size_t>(padded(batch_.real_rows, device));
    const auto labels = static_cast<size_t>(padded(batch_.real_labels, device));
    for (auto* per_row : {&batch_.tokens, &batch_.positions, &batch_.samples, &batch_.row_label})
      per_row->resize(all, -1);
    batch_.label_rows.resize(labels, -1), batch_.targets.resize(labels, -1);
    return std::move(batch_);
  }

 private:
  int32_t rows() const { return static_cast<int32_t>(batch_.tokens.size()); }
  // Appends these tokens at positions first, first + 1, ..; returns the row of the first.
  template <class It>
  int32_t add_rows(It from, It to, int32_t first) {
    const int32_t begin = rows();
    for (; from != to; ++from) batch_.tokens.push_back(*from), batch_.positions.push_back(first++);
    return begin;
  }

  Batch batch_;
  int32_t keys_before_;
};

Batch pack_questions(const QuestionGroup& group, const BatchPlan& plan, Device device) {
  Packer packer(static_cast<int32_t>(group.prefix.size()));
  for (size_t i = plan.first; i < plan.last; ++i) {
    const TokenQuestion& q = group.questions[i];
    packer.add(q, static_cast<int32_t>(cached_rows(q, group.prefix)));
  }
  return packer.finish(device);
}

// Computes the prefix into cache rows 0, 1, ...
void fill_cache(ModelSession& session, const std::vector<int32_t>& prefix, int64_t max_rows) {
  for (int64_t begin = 0; begin < size_of_ids(prefix); begin += max_rows) {
    const auto n = static_cast<int32_t>(std::min(max_rows, size_of_ids(prefix) - begin));
    const auto at = static_cast<int32_t>(begin);
    Batch b;
    b.tokens.assign(prefix.begin() + at, prefix.begin() + at + n);
    for (int32_t i = 0; i < n; ++i) b.positions.push_back(at + i);
    b.samples.assign(b.tokens.size(), -1), b.row_label.assign(b.tokens.size(), -1);
    b.label_rows = {n - 1}, b.targets = {-1};
    b.seqs = {{0, n, 0, at + n, 0, 0}};
    b.real_rows = n, b.real_labels = 1, b.examples = 1;
    session.logits(b, {{0, begin, n}});  // the logits of one row: nobody asks for them
  }
}

void add_losses(std::vector<std::vector<double>>& scores, const QuestionGroup& group, const BatchPlan& plan,
                const std::vector<double>& losses) {
  size_t at = 0;
  for (size_t i = plan.first; i < plan.last; ++i)
    for (const Continuation& e : group.questions[i].endings) {
      double sum = 0;
      for (int64_t k = 0; k < e.scored; ++k) sum -= losses[at++];
      if (!std::isfinite(sum))
        throw Error("a score is not a number")
            .line("found", strf("%g, question %zu", sum, i + 1))
            .line("likely", "NaN or infinite values in the model or its adapter")
            .line("try", "the model it was made from, or another adapter");
      scores[i].push_back(sum);
    }
}

}  // namespace

TokenQuestion share_beginning(std::vector<Continuation> sequences, int64_t max_rows) {
  IRQ_CHECK(!sequences.empty() && max_rows > 0, "%zu sequences in %ld rows", sequences.size(), max_rows);
  TokenQuestion q;
  for (Continuation& s : sequences) {
    IRQ_CHECK(s.scored > 0 && s.scored < size_of_ids(s.ids) && s.scored <= max_rows,
              "%ld of %zu ids scored in %ld rows", s.scored, s.ids.size(), max_rows);
    if (const int64_t over = size_of_ids(s.ids) - max_rows - 1; over > 0) {
      s.ids.erase(s.ids.begin(), s.ids.begin() + over);
      q.cut = true;
    }
    q.alone_rows += size_of_ids(s.ids) - 1;
  }
  const std::vector<int32_t>& first = sequences[0].ids;
  int64_t shared = size_of_ids(first) - 1;
  for (const Continuation& s : sequences)
    shared = std::min({shared, size_of_ids(s.ids) - 1, common_length(first, s.ids)});
  q.shared.assign(first.begin(), first.begin() + shared);
  for (Continuation& s : sequences) q.endings.push_back({{s.ids.begin() + shared, s.ids.end()}, s.scored});
  if (is_single(q)) q.alone_rows = shared;
  return q;
}

void find_prefix(QuestionGroup& group) {
  std::vector<const TokenQuestion*> together;
  for (const TokenQuestion& q : group.questions)
    if (is_single(q)) together.push_back(&q);
  group.prefix.clear();
  for (int64_t at = 0;; ++at) {
    std::map<int32_t, size_t> ways;
    for (const TokenQuestion* q : together)
      if (at < first_scored_row(*q)) ++ways[q->shared[static_cast<size_t>(at)]];
    const auto most = std::max_element(ways.begin(), ways.end(), [](auto& a, auto& b) { return a.second < b.second; });
    if (most == ways.end() || most->second < 2) return;
    std::erase_if(together, [&](const TokenQuestion* q) {
      return at >= first_scored_row(*q) || q->shared[static_cast<size_t>(at)] != most->first;
    });
    group.prefix.push_back(most->first);
  }
}

void check_ids(const QuestionGroup& group, int64_t vocab, const std::string& source) {
  const auto check = [&](const std::vector<int32_t>& ids) {
    for (const int32_t id : ids)
      if (id < 0 || id >= vocab)
        throw Error(source + ": token id outside the model's vocabulary")
            .line("expected", strf("ids below %s", with_commas(vocab).c_str()))
            .line("found", with_commas(id))
            .line("likely", "the tokenizer (or token file) is another model's");
  };
  for (const TokenQuestion& q : group.questions) {
    check(q.shared);
    for (const Continuation& e : q.endings) check(e.ids);
  }
}

std::vector<int64_t> row_budgets(Device device) {
  // A GPU is busy with some thousand rows; a CPU with few, and there the progress should move.
  return device == Device::CPU ? std::vector<int64_t>{512, 128, 1} : std::vector<int64_t>{8192, 2048, 512, 1};
}

void add_scoring(Workload& work, const std::vector<const QuestionGroup*>& groups, int64_t max_rows, Device device) {
  // Every size of batch is planned, not the largest alone: pieces of scratch of other sizes lie otherwise, and a smaller
  // batch may need more. The number of sequences decides about one small array.
  std::set<StepShape> shapes;
  int64_t sequences = 0;
  for (const QuestionGroup* group : groups) {
    const int64_t prefix = size_of_ids(group->prefix);
    for (const BatchPlan& plan : plan_batches(*group, max_rows)) {
      shapes.insert({padded(plan.shape.rows, device), padded(plan.shape.labels, device), 0});
      sequences = std::max(sequences, plan.shape.sequences);
      if (prefix > 0) work.passing_rows = std::max(work.passing_rows, padded(plan.shape.rows, device));
    }
    for (const TokenQuestion& q : group->questions)
      for (const Continuation& e : q.endings)
        work.positions = std::max(work.positions, size_of_ids(q.shared) + size_of_ids(e.ids) - 1);
    work.cache_tokens = std::max(work.cache_tokens, prefix);
    for (const int64_t piece : {std::min(prefix, max_rows), prefix % max_rows})
      if (piece > 0) work.logits.push_back({piece, 1, 1});
  }
  for (StepShape shape : shapes) {
    shape.sequences = sequences;
    if (shape.rows > 0) work.scores.push_back(shape);
  }
}

std::vector<std::vector<double>> score_group(ModelSession& session, const QuestionGroup& group, int64_t max_rows,
                                             Device device, ScoringCount& count, const QuestionProgress& progress) {
  fill_cache(session, group.prefix, max_rows);
  std::vector<std::vector<double>> scores(group.questions.size());
  count.computed_rows += size_of_ids(group.prefix), count.saved_rows -= size_of_ids(group.prefix);
  for (const BatchPlan& plan : plan_batches(group, max_rows)) {
    throw_if_interrupted();
    const Batch batch = pack_questions(group, plan, device);
    const std::vector<double> losses =
        group.prefix.empty() ? session.row_losses(batch) : session.row_losses(batch, size_of_ids(group.prefix));
    add_losses(scores, group, plan, losses);
    count.questions += static_cast<int64_t>(plan.last - plan.first);
    count.computed_rows += batch.real_rows, count.saved_rows -= batch.real_rows;
    for (size_t i = plan.first; i < plan.last; ++i) count.saved_rows += group.questions[i].alone_rows;
    if (progress) progress(static_cast<int64_t>(plan.last));
  }
  return scores;
}

}  // namespace irq
