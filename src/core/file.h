// Files: a read-only map, a file that appears whole or not at all, and an advisory lock.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace irq {

std::string base_name(const std::string& path);    // "model.bin" of "a/b/model.bin"
std::string parent_path(const std::string& path);  // "a/b"; "." where there is none
bool file_exists(const std::string& path);
std::string read_text_file(const std::string& path, int64_t limit_bytes = int64_t{1} << 30);
void write_text_file(const std::string& path, const std::string& text);  // atomically

// Throws a usage Error if writing `out` would destroy one of the files that the same command reads: `out` (or out.tmp, under
// which it is written first) is that file, through links too. Names of no file are skipped.
void refuse_overwriting(const std::string& out, const std::vector<std::string>& inputs);
// The same of a folder that is replaced as a whole: none of the inputs may lie in it.
void refuse_overwriting_folder(const std::string& out, const std::vector<std::string>& inputs);

// A whole regular file, mapped read-only. Nothing is read until it is touched. Movable; views die with it. The file stays
// open, so that read_at() reads what is mapped, whatever has its name by then.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const unsigned char* data() const { return data_; }  // null for an empty file
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  // Copies a byte range, with no page of it mapped: what is read once costs half as much that way. For any thread. An Error
  // where the file has become shorter or the disk fails.
  void read_at(int64_t begin, void* to, int64_t bytes) const;
  // Hints to the kernel about a byte range: it will be read soon, front to back | it is no longer needed.
  void will_need(int64_t begin, int64_t bytes) const;
  void dont_need(int64_t begin, int64_t bytes) const;

 private:
  std::string path_;
  const unsigned char* data_ = nullptr;
  int64_t size_ = 0;
  int fd_ = -1;
};

// Writes NAME.tmp beside NAME; commit() makes it NAME in one step, after all bytes are on the disk. Until then, and if
// the program fails or is killed, an older NAME stays whole. Of two writers of one name the second gets an Error; a
// NAME.tmp left by a killed one is used again.
class AtomicFile {
 public:
  // expected_bytes > 0: an Error at once where the disk has less free, or the process may not write so much (ulimit -f).
  explicit AtomicFile(const std::string& path, int64_t expected_bytes = 0);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();  // without commit(): removes the temporary file

  void write(const void* data, int64_t bytes);  // appends
  void write(const std::string& text) { write(text.data(), static_cast<int64_t>(text.size())); }
  void write_at(int64_t offset, const void* data, int64_t bytes);  // over bytes already written
  int64_t size() const { return written_; }
  void commit();

 private:
  void abandon();
  void flush();
  void write_all(const unsigned char* p, int64_t bytes, int64_t offset);
  void take_room(int64_t end);
  void begin_writeback(int64_t end);
  [[noreturn]] void fail(const char* action, int error);

  std::string shown_path_, path_, temp_path_;
  int fd_ = -1;
  int64_t written_ = 0;   // bytes appended, buffered ones included
  int64_t begun_ = 0;     // of them, what the kernel has been asked to bring to the disk
  int64_t expected_ = 0;  // bytes in the end; 0: not known
  int64_t taken_ = 0;     // of them, those whose room is taken
  std::vector<unsigned char> buffer_;
};

// An exclusive advisory lock on a small file, held until destruction (or the process ends). If another process holds it,
// on_wait is called once and the constructor waits; an interrupt ends the wait with Exit::interrupted.
class FileLock {
 public:
  explicit FileLock(const std::string& path, const std::function<void()>& on_wait = {});
  static std::unique_ptr<FileLock> try_lock(const std::string& path);  // null if another holds it
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock();

 private:
  FileLock(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_ = -1;
};

}  // namespace irq
