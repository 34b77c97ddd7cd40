// What the tests of src/text share: a tokenizer simple enough to predict, a folder for files, where the data lie.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "src/core/check.h"
#include "src/text/tokenizer.h"
#include "tests/scratch_dir.h"

namespace irq {

// One id per byte: id = 3 + byte, as SentencePiece's byte pieces; unk 0, BOS 1, EOS 2. No dummy space.
class ByteTokenizer final : public Tokenizer {
 public:
  std::string bytes_of(int32_t id) const override { return id < 3 ? "" : std::string(1, static_cast<char>(id - 3)); }
  bool has_dummy_space() const override { return false; }
  int32_t bos() const override { return 1; }
  int32_t eos() const override { return 2; }
  int64_t vocab_size() const override { return 259; }
  std::string describe() const override { return "bytes"; }

 protected:
  std::vector<int32_t> encode_text(std::string_view text, Before) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(3 + static_cast<uint8_t>(c));
    return ids;
  }
  bool splits_at_newline() const override { return true; }
};

class TempFolder {
 public:
  TempFolder() : path_(std::filesystem::temp_directory_path() / ("irq_test_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  std::string name(const std::string& file) const { return (path_ / file).string(); }
  std::string write(const std::string& file, const std::string& content) const {
    std::filesystem::create_directories((path_ / file).parent_path());
    std::ofstream(path_ / file, std::ios::binary) << content;
    return name(file);
  }

 private:
  std::filesystem::path path_;
};

inline std::string demo_path(const std::string& file) {
  return (std::filesystem::path(__FILE__).parent_path().parent_path() / "tools" / "demo" / file).string();
}

// A file of the shared data ($IRQ_SHARED_DATA, else ../shared/data), "" if it is not there.
inline std::string shared_path(const std::string& file) {
  const char* folder = std::getenv("IRQ_SHARED_DATA");
  const auto path = std::filesystem::path(folder != nullptr ? folder : "../shared/data") / file;
  return std::filesystem::exists(path) ? path.string() : "";
}

}  // namespace irq

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)
