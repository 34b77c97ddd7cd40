// A folder that appears whole or not at all.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "src/core/file.h"

namespace irq {

// Files are written into path(), a sibling DIR.tmp of DIR; commit() makes it DIR in one step. Without commit() nothing is
// left. An existing DIR that is not empty is refused; with `overwrite` it is replaced, but only if it holds nothing except
// files that exports are made of (a typing error must not cost somebody's folder).
class OutputFolder {
 public:
  // An Error at once where the disk has less than expected_bytes free, or another process writes to the same folder.
  OutputFolder(const std::string& folder, bool overwrite, int64_t expected_bytes);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  const std::string& path() const { return temp_; }
  const std::string& folder() const { return folder_; }
  std::string file(const std::string& name) const { return temp_ + "/" + name; }
  void commit();

 private:
  void remove_temp() noexcept;

  std::string folder_, temp_;
  bool exists_ = false;  // there is something to replace
  std::unique_ptr<FileLock> lock_;
};

// Is this a name that some export writes?
bool is_export_file(const std::string& name);

}  // namespace irq
