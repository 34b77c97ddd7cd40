#include "src/io/output_folder.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "src/core/check.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLockName = "export.lock";

// The first entry of a folder that no export writes, "" if there is none.
std::string foreign_entry(const std::string& folder) {
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(folder, failed)) {
    std::string name = entry.path().filename().string();
    std::error_code ignored;
    if (!entry.is_regular_file(ignored) || !is_export_file(name)) return name;
  }
  if (failed) throw Error(folder + ": cannot be read: " + failed.message());
  return "";
}

void require_space(const std::string& folder, int64_t bytes) {
  std::error_code failed;
  const fs::space_info space = fs::space(parent_path(folder), failed);
  if (failed || space.available >= static_cast<uint64_t>(bytes)) return;
  const double free_bytes = static_cast<double>(space.available);
  throw Error(folder + ": not enough disk space to write it")
      .line("needs", with_commas(bytes) + " bytes (" + human_bytes(static_cast<double>(bytes)) + ")")
      .line("free", human_bytes(free_bytes) + " in " + parent_path(folder))
      .line("try", "free some space, or name a folder on another disk");
}

void flush_folder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}

}  // namespace

bool is_export_file(const std::string& name) {
  std::string plain = name;
  if (plain.ends_with(".tmp")) plain.resize(plain.size() - 4);
  for (const char* known :
       {"config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.model", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", kLockName})
    if (plain == known) return true;
  // model-00001-of-00003.safetensors
  const std::string shape = "model-00000-of-00000.safetensors";
  return plain.size() == shape.size() && std::equal(plain.begin(), plain.end(), shape.begin(), [](char c, char s) {
           return s == '0' ? c >= '0' && c <= '9' : c == s;
         });
}

OutputFolder::OutputFolder(const std::string& folder, bool overwrite, int64_t expected_bytes) : folder_(folder) {
  while (folder_.size() > 1 && folder_.back() == '/') folder_.pop_back();
  std::error_code failed;
  if (fs::is_symlink(folder_, failed)) folder_ = fs::weakly_canonical(folder_).string();  // the link stays
  if (!fs::is_directory(parent_path(folder_), failed))
    throw Error(folder + ": its folder does not exist").line("try", "mkdir -p " + shell_quoted(parent_path(folder_)));
  if (const fs::file_status status = fs::status(folder_, failed); fs::exists(status)) {
    if (!fs::is_directory(status)) throw Error(folder + ": is a file, where a folder is to be written");
    exists_ = !fs::is_empty(folder_, failed);
    const std::string foreign = exists_ ? foreign_entry(folder_) : "";
    if (exists_ && !overwrite) {
      const std::string any = fs::directory_iterator(folder_)->path().filename().string();
      throw Error(folder + ": the folder is not empty")
          .line("found", foreign.empty() ? any : foreign)
          .line("try", foreign.empty() ? "--overwrite, or another folder" : "another folder");
    }
    if (!foreign.empty())
      throw Error(folder + ": --overwrite replaces the whole folder, and this one holds more than an export")
          .line("found", foreign)
          .line("try", "another folder");
  }
  require_space(folder_, expected_bytes);
  temp_ = folder_ + ".tmp";
  if (!fs::create_directory(temp_, failed) && failed)
    throw Error(temp_ + ": cannot be made: " + failed.message()).line("try", "another folder");
  lock_ = FileLock::try_lock(temp_ + "/" + kLockName);
  if (!lock_) throw Error(folder + ": another process is writing this folder").line("found", temp_);
  if (const std::string foreign = foreign_entry(temp_); !foreign.empty())
    throw Error(temp_ + ": is in the way: this is the name under which " + folder + " is written")
        .line("found", foreign + " in it, which no export wrote")
        .line("try", "move it away, or another folder");
  for (const auto& entry : fs::directory_iterator(temp_))  // left by a killed one
    if (entry.path().filename() != kLockName) fs::remove(entry.path());
}

OutputFolder::~OutputFolder() {
  if (lock_) remove_temp();
}

void OutputFolder::remove_temp() noexcept {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(temp_, ignored))
    if (entry.path().filename() != kLockName) fs::remove(entry.path(), ignored);
  lock_.reset();  // removes its file
  fs::remove(temp_, ignored);
}

void OutputFolder::commit() {
  flush_folder(temp_);
  lock_.reset();
  const auto fail = [&](int error) {
    return Error(folder_ + ": cannot be made: " + std::strerror(error)).line("found", "all of it lies in " + temp_);
  };
  if (!exists_) {  // an empty folder is replaced by rename() itself
    if (rename(temp_.c_str(), folder_.c_str()) != 0) throw fail(errno);
  } else {
    if (renameat2(AT_FDCWD, temp_.c_str(), AT_FDCWD, folder_.c_str(), RENAME_EXCHANGE) != 0) {
      const std::string old = folder_ + ".old";  // a file system that cannot exchange: two steps
      if (rename(folder_.c_str(), old.c_str()) != 0) throw fail(errno);
      if (rename(temp_.c_str(), folder_.c_str()) != 0) {
        const int error = errno;
        (void)rename(old.c_str(), folder_.c_str());
        throw fail(error);
      }
      temp_ = old;
    }
    std::error_code ignored;
    fs::remove_all(temp_, ignored);  // the old one; it held nothing but an export
  }
  flush_folder(parent_path(folder_));
}

}  // namespace irq
