// irq_table BASE: methods x bits x seeds on one model and one data set, as the paper's tables.
#include <algorithm>
#include <charconv>
#include <set>
#include <sstream>

#include "src/core/ignored_flags.h"
#include "src/report/table_run.h"
#include "src/train/run_record.h"
#include "tools/cli.h"

namespace irq {
namespace {

// Flags that every row that trains gets, under irq_train's names.
struct Forwarded {
  const char* flag;
  const char* help;
  bool adapters = false;  // only where there are adapters
  bool whole = true;      // a whole number
  double highest = 1e9;
  int64_t number = 0;
  double real = 0;
};
std::vector<Forwarded> forwarded_flags() {
  return {{"--steps", "optimizer steps (default: irq_train's)"},
          {"--epochs", "or passes over the data (default: irq_train's)", false, false},
          {"--batch", "examples per step (default: irq_train's)"},
          {"--micro-batch", "examples per forward pass (default: irq_train's)"},
          {"--lr", "learning rate (default: by model size; peqa 2e-5)", false, false, 10},
          {"--warmup", "steps of linear warm-up (default: none)"},
          {"--save-every", "steps between training states (default: irq_train's)"},
          {"--rank", "LoRA rank, rows with adapters (default: irq_train's)", true},
          {"--alpha", "LoRA alpha, rows with adapters (default: irq_train's)", true, false},
          {"--dropout", "on the A branch, rows with adapters (default: by model size; qa-lora, ir-qa-lora 0)", true,
           false, 0.95}};
}

struct Arguments {
  TableOptions table;
  std::string methods, bits = "4", seeds = "42", recipe = "paper", train, eval, legacy = "auto";
  std::vector<std::string> set, rows;
  std::vector<Forwarded> forwarded = forwarded_flags();
  int64_t holdout = 0, shots = 5, limit = 0;
};

std::vector<std::string> split_list(const std::string& list) {
  std::vector<std::string> items;
  std::string item;
  std::istringstream in(list);
  while (std::getline(in, item, ','))
    if (!item.empty()) items.push_back(item);
  return items;
}

template <class T>
std::vector<T> numbers(const std::string& flag, const std::string& list, T lowest, T highest) {
  std::vector<T> all;
  for (const std::string& item : split_list(list)) {
    T value{};
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), value);
    if (error != std::errc{} || end != item.data() + item.size() || value < lowest || value > highest)
      throw usage_error("irq_table", flag + ": '" + item + "' is not a whole number from " + std::to_string(lowest) +
                                         " to " + std::to_string(highest));
    if (std::find(all.begin(), all.end(), value) != all.end())
      throw usage_error("irq_table", flag + ": " + item + " stands there twice");
    all.push_back(value);
  }
  if (all.empty()) throw usage_error("irq_table", flag + ": the list is empty");
  return all;
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

void require_known(const std::string& flag, const std::string& kind, const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), kind) != known.end()) return;
  Error error(flag + ": there is no row '" + kind + "'", Exit::usage);
  if (const std::string near = nearest(kind, known); !near.empty()) error.line("nearest", near);
  throw error.line("allowed", listed(known)).line("try", "./irq_table --help");
}

// "NAME=KIND flags"
Row parse_row(const std::string& text) {
  const size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  const auto in_a_file_name = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
  };
  if (equals == std::string::npos || name.empty() || !std::all_of(name.begin(), name.end(), in_a_file_name) ||
      name[0] == '-' || name[0] == '.')
    throw usage_error("irq_table", "--row: '" + text + "' is not NAME=METHOD FLAGS, NAME of letters, digits, - _ .");
  std::vector<std::string> words = split_words(text.substr(equals + 1));
  if (words.empty()) throw usage_error("irq_table", "--row: " + name + "= needs a method");
  require_known("--row", words[0], known_kinds());
  return make_row(name, words[0], {words.begin() + 1, words.end()});
}

// What a cell is must stand in its name and in the table: flags that would say otherwise are refused.
void refuse_own_flags(const std::string& where, const std::vector<std::string>& words, bool trains) {
  static const std::vector<std::pair<const char*, const char*>> own = {
      {"--method", "--methods, or --row NAME=METHOD"},
      {"--bits", "--bits 4,3,2"},
      {"--seed", "--seeds 1,2,3"},
      {"--data", "--data, the same for all rows"},
      {"--eval-data", "--eval-data, the same for all rows"},
      {"--holdout", "--holdout, the same for all rows"},
      {"--out", "--out, where every cell has its folder"},
      {"--resume", "the same command again: it goes on by itself"},
      {"--json", "table.json in --out"},
      {"--loss", "--eval-data"},
      {"--choice", "--choice of the table itself"},
      {"--mmlu", "--mmlu of the table itself"},
      {"--adapter", "a row that trains one"}};
  for (const std::string& word : words) {
    const std::string flag = word.substr(0, word.find('='));
    for (const auto& [name, instead] : own)
      if (flag == name) throw Error(where + ": " + flag + " is decided by the table", Exit::usage).line("try", instead);
    if (!trains && (flag == "--format" || flag == "--icq" || flag == "--no-icq" || flag == "--loftq"))
      throw Error(where + ": " + flag + " would make another row of it", Exit::usage)
          .line("try", "one of the rows " + listed(known_kinds()));
  }
}

std::vector<Row> parse_rows(const Arguments& a) {
  std::vector<Row> rows;
  for (const std::string& kind : split_list(a.methods)) {
    require_known("--methods", kind, known_kinds());
    rows.push_back(make_row(kind, kind));
  }
  for (const std::string& text : a.rows) rows.push_back(parse_row(text));
  if (rows.empty())
    throw Error("no rows", Exit::usage)
        .line("expected", "--methods with some of: " + listed(known_kinds()))
        .line("try", "--methods 16-bit,nf,nf-icq,qlora,ir-qlora");
  std::set<std::string> names;
  for (const Row& row : rows)
    if (!names.insert(row.name).second)
      throw usage_error("irq_table", "two rows are called " + row.name + "; --row names a variant");
  for (const std::string& text : a.set) {
    const size_t colon = text.find(':');
    const std::string name = text.substr(0, colon);
    if (colon == std::string::npos)
      throw usage_error("irq_table", "--set: '" + text + "' is not ROW:\"FLAGS\", such as qlora:\"--lr 1e-4\"");
    require_known("--set", name, {names.begin(), names.end()});
    for (Row& row : rows)
      if (row.name == name)
        for (const std::string& word : split_words(text.substr(colon + 1))) row.flags.push_back(word);
  }
  for (const Row& row : rows) refuse_own_flags(row.name, row.flags, row.method != nullptr);
  refuse_own_flags("--train", split_words(a.train), true);
  refuse_own_flags("--eval", split_words(a.eval), true);
  return rows;
}

void forward_flags(const Cli& cli, Arguments& a) {
  TableOptions& t = a.table;
  for (const Forwarded& f : a.forwarded)
    if (cli.given(f.flag))
      append(f.adapters ? t.adapter_flags : t.train_flags,
             {f.flag, f.whole ? std::to_string(f.number) : json_number(f.real)});
  if (cli.given("--recipe")) append(t.train_flags, {"--recipe", a.recipe});
  append(t.train_flags, split_words(a.train));
  if (cli.given("--shots")) append(t.eval_flags, {"--shots", std::to_string(a.shots)});
  if (cli.given("--limit")) append(t.eval_flags, {"--limit", std::to_string(a.limit)});
  append(t.eval_flags, split_words(a.eval));
  if (cli.given("--legacy")) append(t.both_flags, {"--legacy", a.legacy});
  if (cli.given("--precision")) append(t.both_flags, {"--precision", cli.precision()});
  if (cli.given("--device")) append(t.machine_flags, {"--device", cli.device()});
  if (cli.given("--kernels")) append(t.machine_flags, {"--kernels", cli.kernels()});
  if (cli.threads() > 0) append(t.machine_flags, {"--threads", std::to_string(cli.threads())});
}

int make_table(Arguments& a, Cli& cli) {
  TableOptions& t = a.table;
  const auto exclude = [&](const char* x, const char* y) {
    if (cli.given(x) && cli.given(y)) throw Error(std::string(x) + " and " + y + " contradict each other", Exit::usage);
  };
  exclude("--steps", "--epochs"), exclude("--eval-data", "--holdout");
  refuse_ignored(cli.given_flags(),
                 {{t.mmlu.empty(), {"--shots"}, "it belongs to --mmlu"},
                  {t.mmlu.empty() && t.choice.empty(), {"--limit"}, "it belongs to --choice and --mmlu"},
                  {t.data.empty(), {"--holdout"}, "there is no --data to hold out of"}});
  if (t.out.empty()) throw Error("no folder for the results", Exit::usage).line("try", "--out runs/table");
  if (cli.given("--holdout")) t.holdout = a.holdout;
  t.rows = parse_rows(a);
  t.bits = numbers<int>("--bits", a.bits, 2, 4);
  t.seeds = numbers<int64_t>("--seeds", a.seeds, 0, INT64_MAX);
  std::set<std::string> cells;
  for (const Cell& cell : make_cells(t.rows, t.bits, t.seeds))
    if (!cells.insert(cell.name).second)
      throw usage_error("irq_table", "two cells would be called " + cell.name + "; --row NAME names a row otherwise");
  forward_flags(cli, a);
  t.quiet = cli.quiet(), t.command = cli.command(), t.version = kVersion;
  return run_table(t);
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Arguments a;
  TableOptions& t = a.table;
  Cli cli("irq_table", "methods x bits x seeds on one model and data set, as a table; goes on where it was cut");
  cli.positional("BASE", &t.base, "model: a .bin, not quantized");
  cli.option("--data", &t.data, "training data");
  cli.option("--eval-data", &t.eval_data, "held-out data");
  cli.option("--holdout", &a.holdout, "records taken out of --data instead (default: 2 %, at most 1024)");
  cli.range("--holdout", 0, 1e9);
  cli.option("--methods", &a.methods, "rows: " + listed(known_kinds()));
  cli.option("--bits", &a.bits, "of the rows that quantize");
  cli.option("--seeds", &a.seeds, "of the rows that train");
  cli.option("--choice", &t.choice, "files of multiple-choice questions, as irq_eval takes them");
  cli.option("--mmlu", &t.mmlu, "MMLU's folder");
  cli.option("--shots", &a.shots, "examples in a prompt of MMLU");
  cli.range("--shots", 0, 1000);
  cli.option("--limit", &a.limit, "the first N questions of each task or subject, 0 = all");
  cli.range("--limit", 0, 1 << 30);
  for (Forwarded& f : a.forwarded) {
    if (f.whole) cli.option(f.flag, &f.number, f.help);
    else cli.option(f.flag, &f.real, f.help);
    cli.range(f.flag, 0, f.highest);
  }
  cli.option("--recipe", &a.recipe, "whose defaults", {"paper", "official-script"});
  cli.option("--window", &t.window, "tokens per example of plain text and token files");
  cli.range("--window", 2, 1 << 20);
  cli.option("--legacy", &a.legacy, "LLaMA-1's spaces behind special tokens, as irq_train has it",
             {"auto", "on", "off"});
  cli.option("--train", &a.train, "more flags of irq_train for every row that trains, in quotes");
  cli.option("--eval", &a.eval, "more flags of irq_eval, in quotes");
  cli.option("--set", &a.set, "ROW:\"FLAGS\": more flags of irq_train or irq_quantize for one row");
  cli.option("--row", &a.rows, "NAME=METHOD FLAGS: one more row, a variant of a method");
  cli.option("--out", &t.out, "folder of the table; what is there is not done again");
  cli.option("--keep", &t.keep, "of a finished cell's files: nothing, its adapter and log, everything",
             {"none", "adapters", "all"});
  cli.flag("--stop-on-error", &t.stop_on_error, "end at the first cell that fails");
  cli.flag("--overwrite", &t.overwrite, "make cells again that were made with other options");
  cli.flag("--reevaluate", &t.reevaluate, "evaluate trained cells anew where the evaluation is another");
  cli.footer(
      "./irq_table llama7b.bin --data alpaca.json --methods 16-bit,nf,nf-icq,qlora,icq,iec,ir-qlora --bits 4,3,2 \\\n"
      "  --seeds 1,2,3 --mmlu mmlu --choice piqa.jsonl arc_easy.jsonl --out runs/alpaca\n"
      "./irq_table llama7b.bin --data alpaca.json --methods icq --row 'icq-wide=icq --lambda 0.2' --out runs/wide");
  return cli.run(argc, argv, [&] { return make_table(a, cli); });
}
