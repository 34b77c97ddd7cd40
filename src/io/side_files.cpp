#include <algorithm>
#include <filesystem>

#include "src/core/check.h"
#include "src/core/file.h"
#include "src/io/convert.h"

namespace irq {
namespace {

bool holds(const std::string& path, const std::string& content) {
  std::error_code problem;
  const auto size = std::filesystem::file_size(path, problem);
  return !problem && size == content.size() && read_text_file(path) == content;
}

}  // namespace

std::vector<std::string> write_side_files(const std::vector<SideFile>& files, const std::string& model_path) {
  if (files.empty()) return {};
  const std::string folder = parent_path(model_path) + "/", file_name = base_name(model_path);
  const size_t dot = file_name.find_last_of('.');
  const std::string stem = folder + (dot == std::string::npos || dot == 0 ? file_name : file_name.substr(0, dot)) + ".";

  // The plain names serve every model of the folder. So they are taken only if that changes nothing for another model: what is
  // there is what would be written. Names of this model's own are found first, so where there are some, they must be right.
  bool own_names = false;
  for (const char* name : kSideFiles) {
    const auto ours = std::find_if(files.begin(), files.end(), [&](const SideFile& f) { return f.name == name; });
    if (file_exists(stem + name)) own_names = true;
    if (file_exists(folder + name)) own_names |= ours == files.end() || !holds(folder + name, ours->content);
  }
  std::vector<std::string> lines;
  for (const SideFile& f : files) {
    const std::string path = (own_names ? stem : folder) + f.name;
    if (holds(path, f.content)) continue;
    write_text_file(path, f.content);
    lines.push_back("wrote " + path);
  }
  for (const char* name : kSideFiles) {
    const bool ours = std::any_of(files.begin(), files.end(), [&](const SideFile& f) { return f.name == name; });
    if (own_names && !ours && file_exists(stem + name))
      lines.push_back("note: " + stem + name + " was there before and is no file of this model: remove it");
  }
  return lines;
}

}  // namespace irq
