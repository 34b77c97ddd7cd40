#include "src/io/sequential_import.h"

#include <cstring>

#include "src/core/check.h"
#include "src/io/rope_rows.h"

namespace irq {
namespace {

constexpr int64_t kMaxSideFile = int64_t{64} << 20;

}  // namespace

int32_t SequentialModel::slot(int64_t i) const {
  if (file_.size() < 4 * (i + 1))
    throw Error(file_.path() + ": its header is cut short")
        .line("expected", strf("at least %ld bytes", 4 * (i + 1)))
        .line("found", with_commas(file_.size()) + " bytes")
        .line("likely", "an interrupted download or copy");
  int32_t x;
  std::memcpy(&x, file_.data() + 4 * i, 4);
  return x;
}

void SequentialModel::place(const std::string& name, int64_t rows, int64_t cols) {
  const Place p{at_, rows, cols, rows * cols * size_of(dtype_)};
  places_[name] = p;
  order_.push_back(name);
  at_ += p.bytes;
}

void SequentialModel::place_layers(const char* name, int64_t rows, int64_t cols) {
  for (int64_t l = 0; l < config_.layers; ++l) place(strf("layers.%ld.%s", l, name), rows, cols);
}

void SequentialModel::check_end(const std::string& what) const {
  if (file_.size() == at_) return;
  Error e(file_.path() +
          (file_.size() < at_ ? ": checkpoint is cut short" : ": does not have the size its header gives"));
  e.line("header", what + " -> the file must have " + with_commas(at_) + " bytes");
  std::string found = with_commas(file_.size()) + " bytes";
  for (const std::string& name : order_) {
    const Place& p = places_.at(name);
    if (p.begin + p.bytes <= file_.size()) continue;
    found += "; first incomplete tensor: " + name;
    break;
  }
  e.line("on disk", found);
  e.line("likely", file_.size() < at_ ? "an interrupted download or conversion, or a file of another kind"
                                      : "a file of another kind or version");
  throw e;
}

Tensor SequentialModel::tensor(const std::string& name) {
  const auto found = places_.find(name);
  IRQ_CHECK(found != places_.end(), "%s has no tensor %s", file_.path().c_str(), name.c_str());
  if (last_) file_.dont_need(last_->begin, last_->bytes);  // the former view's pages
  const Place& p = found->second;
  last_ = &p;
  const char* label = found->first.c_str();
  unsigned char* data = const_cast<unsigned char*>(file_.data()) + p.begin;
  if (!is_rotary(name)) return make_view(data, dtype_, p.rows, p.cols, label);
  buffer_.resize(static_cast<size_t>(p.bytes));
  copy_half_split(buffer_.data(), data, p.rows, p.cols * size_of(dtype_), config_.head_dim);
  return make_view(buffer_.data(), dtype_, p.rows, p.cols, label);
}

bool SequentialModel::find_tokenizer_files() {
  const std::string folder = parent_path(file_.path()) + "/";
  for (const char* name : {"tokenizer.model", "tokenizer.json"}) {
    if (!file_exists(folder + name)) continue;
    tokenizer_paths_.push_back(folder + name);
    if (file_exists(folder + "tokenizer_config.json")) tokenizer_paths_.push_back(folder + "tokenizer_config.json");
    return true;
  }
  return false;
}

std::vector<SideFile> SequentialModel::side_files() {
  std::vector<SideFile> files;
  for (const std::string& path : tokenizer_paths_)
    files.push_back({base_name(path), read_text_file(path, kMaxSideFile)});
  if (files.empty() && vocabulary_) files = tokenizer_files(*vocabulary_, file_.path());
  return files;
}

}  // namespace irq
