#include "src/train/matmul_cache.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>

#include "src/core/file.h"

namespace irq {
namespace {

constexpr int64_t kLargestFile = int64_t{16} << 20;  // about 100,000 shapes

std::string cache_folder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache && *cache) return std::string(cache) + "/irq";
  const char* home = std::getenv("HOME");
  return home && *home ? std::string(home) + "/.cache/irq" : "";
}

}  // namespace

std::string matmul_cache_path(const Backend& backend) {
  const std::string choices = backend.matmul_choices(true), folder = cache_folder();
  if (choices.empty() || folder.empty()) return "";
  std::string name;  // the choices' first line, which names GPU and library
  for (const char c : choices.substr(0, choices.find('\n')))
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '.') name += c;
    else if (!name.empty() && name.back() != '-') name += '-';
  return folder + "/" + name + ".txt";
}

void load_matmul_cache(Backend& backend) {
  const std::string path = matmul_cache_path(backend);
  if (path.empty() || !file_exists(path)) return;
  try {
    backend.restore_matmul_choices(read_text_file(path, kLargestFile));
  } catch (const Error&) {}  // as if it were not there
}

std::string save_matmul_cache(const Backend& backend) {
  const std::string path = matmul_cache_path(backend);
  if (path.empty()) return "";
  try {
    std::filesystem::create_directories(parent_path(path));
    write_text_file(path, backend.matmul_choices(false));
  } catch (const std::exception& e) { return e.what(); }
  return "";
}

std::string describe(const std::vector<MatmulTiming>& timings) {
  const auto others = std::count_if(timings.begin(), timings.end(), [](const MatmulTiming& t) { return t.chosen > 0; });
  return strf("matmul: %zu shape%s timed, %ld take another algorithm than the library's first", timings.size(),
              timings.size() == 1 ? "" : "s", others);
}

}  // namespace irq
