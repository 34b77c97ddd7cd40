#include "src/report/inputs.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "src/core/check.h"
#include "src/core/file.h"
#include "src/core/hash.h"
#include "src/core/rng.h"
#include "src/text/records.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kSplitSeed = 1, kSplitStream = 0x7461626c65;  // of the held-out records: the same for every table
constexpr const char* kSpace = " \t\r\n";

size_t first_character(const std::string& content) {
  const size_t start = content.compare(0, 3, "\xef\xbb\xbf") == 0 ? 3 : 0;  // a byte order mark
  return content.find_first_not_of(kSpace, start);
}

// Every record as a line of its own.
std::vector<std::string> record_lines(const std::string& path) {
  const std::string content = read_text_file(path);
  const size_t first = first_character(content);
  std::vector<std::string> lines;
  if (content[first] == '[') {
    const auto all = nlohmann::ordered_json::parse(content.begin() + static_cast<std::ptrdiff_t>(first), content.end(),
                                                   nullptr, false);
    if (!all.is_array()) parse_records(path, content);  // says what is wrong, and where
    for (const auto& record : all)
      lines.push_back(record.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    return lines;
  }
  for (size_t begin = first; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string line = content.substr(begin, end - begin);
    if (line.find_first_not_of(kSpace) != std::string::npos) lines.push_back(line);
    begin = end + 1;
  }
  return lines;
}

void write_if_other(const std::string& path, const std::string& text) {
  if (file_exists(path) && read_text_file(path) == text) return;
  write_text_file(path, text);
}

std::string hex(uint64_t x) { return strf("%016lx", x); }

void add_file(Hasher& hasher, const std::string& path) {
  const MappedFile file(path);
  hasher.update(file.data(), static_cast<size_t>(file.size()));
}

}  // namespace

std::string hash_of_file(const std::string& path) {
  Hasher hasher;
  add_file(hasher, path);
  return hex(hasher.digest());
}

std::string hash_of_mmlu(const std::string& folder) {
  std::vector<std::string> names;
  for (const char* part : {"dev/", "test/"}) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder + "/" + part, ignored))
      if (entry.is_regular_file(ignored)) names.push_back(part + entry.path().filename().string());
  }
  if (names.empty())
    throw Error(folder + ": not MMLU's folder").line("expected", "dev/SUBJECT_dev.csv and test/SUBJECT_test.csv in it");
  std::sort(names.begin(), names.end());
  Hasher hasher;
  for (const std::string& name : names) hasher.update(name.data(), name.size()), add_file(hasher, folder + "/" + name);
  return hex(hasher.digest());
}

std::vector<std::string> with_hashed_files(const std::vector<std::string>& words) {
  std::vector<std::string> all;
  for (const std::string& word : words) {
    std::error_code ignored;
    all.push_back(fs::is_regular_file(word, ignored) ? "file " + hash_of_file(word) : word);
  }
  return all;
}

bool holds_records(const std::string& path) {
  const MappedFile file(path);
  const size_t seen = std::min<size_t>(static_cast<size_t>(file.size()), 4096);
  const std::string start(reinterpret_cast<const char*>(file.data()), seen);
  const size_t first = first_character(start);
  return first != std::string::npos && (start[first] == '[' || start[first] == '{');
}

void require_records(const std::string& path) {
  if (!holds_records(path))
    throw Error(path + ": nothing can be held out of plain text or tokens", Exit::usage)
        .line("expected", "--data with JSON or JSONL records, or held-out data of its own")
        .line("try", "--eval-data FILE");
}

int64_t split_records(const std::string& path, int64_t count, const std::string& folder) {
  require_records(path);
  const std::vector<std::string> lines = record_lines(path);
  const auto n = static_cast<int64_t>(lines.size());
  if (count < 0) count = std::min<int64_t>(1024, n / 50);
  if (count == 0) return 0;
  if (count >= n)
    throw Error(strf("--holdout %ld takes all of the %s records of %s", count, with_commas(n).c_str(), path.c_str()),
                Exit::usage);
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  Rng rng(kSplitSeed, kSplitStream);
  std::vector<bool> held(static_cast<size_t>(n), false);
  for (int64_t i = 0; i < count; ++i) {  // the first places of a shuffle
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(i + static_cast<int64_t>(rng.below(n - i)))]);
    held[static_cast<size_t>(order[static_cast<size_t>(i)])] = true;
  }
  std::string train, heldout;
  for (size_t i = 0; i < lines.size(); ++i) (held[i] ? heldout : train) += lines[i] + "\n";
  fs::create_directories(folder);
  write_if_other(folder + "/train.jsonl", train);
  write_if_other(folder + "/heldout.jsonl", heldout);
  return count;
}

}  // namespace irq
