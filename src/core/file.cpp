#include "src/core/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>

#include "src/core/bus_error.h"
#include "src/core/check.h"
#include "src/core/disk.h"

namespace irq {
namespace {

constexpr int64_t kPage = 4096;
constexpr size_t kBufferBytes = size_t{1} << 20;

Error cannot_open(const std::string& path, int error) {
  if (error == ENOENT) {
    Error e(path + ": no such file");
    if (!file_exists(parent_path(path))) e.line("found", "the folder " + parent_path(path) + " does not exist either");
    return e;
  }
  return Error(path + ": cannot be opened: " + std::strerror(error));
}

// Is `fd` still the file that `path` names? (Another process may have renamed or removed it since it was opened.)
bool still_named(int fd, const std::string& path) {
  struct stat by_fd, by_name;
  return fstat(fd, &by_fd) == 0 && stat(path.c_str(), &by_name) == 0 && by_fd.st_dev == by_name.st_dev &&
         by_fd.st_ino == by_name.st_ino;
}

// Opens (creating) and locks `path`. Returns -1 if another holds the lock and `wait` is false; throws on other failures.
int open_locked(const std::string& path, bool wait) {
  for (;;) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
      const int error = errno;
      Error e(path + ": cannot be created: " + std::strerror(error));
      if (error == ENOENT) e.line("try", "mkdir -p " + parent_path(path));
      throw e;
    }
    if (flock(fd, LOCK_EX | (wait ? 0 : LOCK_NB)) != 0) {
      const int error = errno;
      close(fd);
      if (error == EWOULDBLOCK) return -1;
      if (error == EINTR) throw Error(path + ": interrupted while waiting for this lock", Exit::interrupted);
      throw Error(path + ": cannot be locked: " + std::strerror(error));
    }
    if (still_named(fd, path)) return fd;
    close(fd);  // its former holder took it away between our open and our lock: take the next one
  }
}

}  // namespace

std::string base_name(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string parent_path(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

bool file_exists(const std::string& path) {
  struct stat s;
  return stat(path.c_str(), &s) == 0;
}

std::string read_text_file(const std::string& path, int64_t limit_bytes) {
  const MappedFile file(path);
  if (file.size() > limit_bytes)
    throw Error(path + ": too large for a text file of its kind")
        .line("expected", "at most " + with_commas(limit_bytes) + " bytes")
        .line("found", with_commas(file.size()) + " bytes");
  return std::string(reinterpret_cast<const char*>(file.data()), static_cast<size_t>(file.size()));
}

void write_text_file(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

namespace {

bool same_file(const std::string& a, const std::string& b) {
  struct stat x, y;
  return stat(a.c_str(), &x) == 0 && stat(b.c_str(), &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool lies_in(const std::string& file, const std::string& folder) {
  char resolved[PATH_MAX];
  if (!realpath(file.c_str(), resolved)) return false;
  for (std::string at = parent_path(resolved);; at = parent_path(at)) {
    if (same_file(at, folder)) return true;
    if (at == "/") return false;
  }
}

Error would_destroy(const std::string& out, const std::string& found) {
  return Error(out + ": writing it would destroy an input of this command", Exit::usage)
      .line("found", found)
      .line("try", "another name for the output");
}

}  // namespace

void refuse_overwriting(const std::string& out, const std::vector<std::string>& inputs) {
  char resolved[PATH_MAX];
  const std::string temporary = (realpath(out.c_str(), resolved) ? std::string(resolved) : out) + ".tmp";
  for (const std::string& in : inputs) {
    if (same_file(out, in)) throw would_destroy(out, in + (in == out ? " is read" : " is read, and is the same file"));
    if (same_file(temporary, in)) throw would_destroy(out, in + " has the name under which it is written at first");
  }
}

void refuse_overwriting_folder(const std::string& out, const std::vector<std::string>& inputs) {
  for (const std::string& in : inputs)
    for (const std::string& folder : {out, out + ".tmp"})
      if (lies_in(in, folder)) throw would_destroy(out, in + " is read, and lies in " + folder);
}

// ---- MappedFile ------------------------------------------------------------------------------------------------------

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: never wait on a pipe
  if (fd < 0) throw cannot_open(path, errno);
  struct stat s;
  const bool known = fstat(fd, &s) == 0;
  if (!known || !S_ISREG(s.st_mode)) {
    close(fd);
    throw Error(path +
                (known && S_ISDIR(s.st_mode) ? ": is a folder, where a file was expected" : ": is not a regular file"));
  }
  size_ = s.st_size;
  fd_ = fd;
  void* map = size_ > 0 ? mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
  if (map == MAP_FAILED) {
    const int error = errno;
    close(fd);
    throw Error(path + ": cannot be mapped: " + std::strerror(error));
  }
  data_ = static_cast<const unsigned char*>(map);
  if (data_) note_mapping(data_, size_, path_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(fd_, other.fd_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_) forget_mapping(data_);
  if (data_) munmap(const_cast<unsigned char*>(data_), static_cast<size_t>(size_));
  if (fd_ >= 0) close(fd_);
}

void MappedFile::read_at(int64_t begin, void* to, int64_t bytes) const {
  IRQ_CHECK(begin >= 0 && bytes >= 0 && begin + bytes <= size_, "read_at [%ld, +%ld) of %ld", begin, bytes, size_);
  for (char* p = static_cast<char*>(to); bytes > 0;) {
    const ssize_t n = pread(fd_, p, static_cast<size_t>(bytes), begin);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      throw Error(path_ + ": cannot be read any further: " + (n < 0 ? std::strerror(errno) : "it has become shorter"))
          .line("found",
                with_commas(size_) + " bytes when it was opened, nothing to read at byte " + with_commas(begin))
          .line("likely", "the file was cut or replaced in place while it was read, or its disk fails")
          .line("try", "the same command again, once the file is whole");
    p += n, begin += n, bytes -= n;
  }
}

void MappedFile::will_need(int64_t begin, int64_t bytes) const {
  if (bytes <= 0) return;
  const int64_t first = begin / kPage * kPage;
  madvise(const_cast<unsigned char*>(data_) + first, static_cast<size_t>(begin + bytes - first), MADV_WILLNEED);
}

void MappedFile::dont_need(int64_t begin, int64_t bytes) const {
  const int64_t first = (begin + kPage - 1) / kPage * kPage,
                last = (begin + bytes) / kPage * kPage;  // whole pages only
  if (last > first)
    madvise(const_cast<unsigned char*>(data_) + first, static_cast<size_t>(last - first), MADV_DONTNEED);
}

// ---- AtomicFile ------------------------------------------------------------------------------------------------------

AtomicFile::AtomicFile(const std::string& path, int64_t expected_bytes) : shown_path_(path), path_(path) {
  struct stat s;
  if (lstat(path.c_str(), &s) == 0) {
    if (S_ISLNK(s.st_mode)) {  // the link stays, what it points to is replaced
      char resolved[PATH_MAX];
      if (realpath(path.c_str(), resolved)) path_ = resolved;
    }
    if (stat(path_.c_str(), &s) == 0 && !S_ISREG(s.st_mode))
      throw Error(path +
                  (S_ISDIR(s.st_mode) ? ": is a folder, where a file is to be written" : ": is not a regular file"));
  }
  temp_path_ = path_ + ".tmp";
  expected_ = expected_bytes;
  fd_ = open_locked(temp_path_, false);
  if (fd_ < 0)
    throw Error(path + ": another process is writing this file").line("found", temp_path_ + " is locked by it");
  note_unfinished(temp_path_);
  try {
    if (ftruncate(fd_, 0) != 0) fail("emptied", errno);
    require_allowed_bytes(path, parent_path(path_), expected_bytes);
    require_free_bytes(path, parent_path(path_), expected_bytes);  // what a killed writer left is free again by now
    buffer_.reserve(kBufferBytes);
  } catch (...) {
    abandon();
    throw;
  }
}

AtomicFile::~AtomicFile() { abandon(); }

void AtomicFile::abandon() {
  if (fd_ < 0) return;
  forget_unfinished(temp_path_);
  unlink(temp_path_.c_str());  // before the lock goes, so that nobody else's file can be meant
  close(fd_);
  fd_ = -1;
}

void AtomicFile::fail(const char* action, int error) {
  const bool full = error == ENOSPC || error == EDQUOT;
  Error e(shown_path_ + ": cannot be " + action + ": " + std::strerror(error));
  e.line("found", "after " + with_commas(written_) + " bytes; the temporary file is removed" +
                      (file_exists(path_) ? ", the old file is as it was" : ""));
  const auto [free, limit] = room_for_file(parent_path(path_));
  const bool large = error == EFBIG;
  if ((full || large) && expected_ > 0) e.line("needs", with_commas(expected_) + " bytes");
  if (large && limit >= 0) e.line("allowed", with_commas(limit) + " bytes by the file size limit (ulimit -f)");
  if ((full || large) && free >= 0) e.line("free", with_commas(free) + " bytes in " + parent_path(path_));
  if (full) e.line("try", "free some space, or name a file on another disk");
  if (large) e.line("try", "raise the file size limit (ulimit -f unlimited), or use another file system");
  throw e;
}

// Has the file system find the room of the next piece before it is written. In a memory file system the two together take
// three quarters of the time of writing alone; on a disk a long file lies in one row. Where it cannot be done, nothing is lost.
void AtomicFile::take_room(int64_t end) {
  constexpr int64_t kPiece = int64_t{256} << 20;
  if (end <= taken_ || end > expected_) return;
  const int64_t piece = std::min(std::max(end - taken_, kPiece), expected_ - taken_);
  const int status = fallocate(fd_, FALLOC_FL_KEEP_SIZE, taken_, piece);
  if (status != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) fail("written", errno);
  taken_ = status == 0 ? taken_ + piece : expected_;  // not possible here: not tried again
}

void AtomicFile::write_all(const unsigned char* p, int64_t bytes, int64_t offset) {
  take_room(offset + bytes);
  while (bytes > 0) {
    const ssize_t n = pwrite(fd_, p, static_cast<size_t>(std::min<int64_t>(bytes, int64_t{1} << 30)), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("written", n < 0 ? errno : ENOSPC);
    p += n, bytes -= n, offset += n;
  }
}

// Starts bringing what was written up to `end` to the disk, in large pieces and without waiting: else commit()'s fsync waits for
// all of a file of gigabytes.
void AtomicFile::begin_writeback(int64_t end) {
  constexpr int64_t kPiece = int64_t{64} << 20;
  if (end - begun_ < kPiece) return;
  sync_file_range(fd_, begun_, end - begun_, SYNC_FILE_RANGE_WRITE);  // commit() finds what fails here
  begun_ = end;
}

void AtomicFile::flush() {
  const int64_t n = static_cast<int64_t>(buffer_.size());
  write_all(buffer_.data(), n, written_ - n);
  buffer_.clear();
  begin_writeback(written_);
}

void AtomicFile::write(const void* data, int64_t bytes) {
  if (bytes <= 0) return;
  const unsigned char* p = static_cast<const unsigned char*>(data);
  if (buffer_.size() + static_cast<size_t>(bytes) > kBufferBytes) flush();
  if (static_cast<size_t>(bytes) > kBufferBytes) write_all(p, bytes, written_), begin_writeback(written_ + bytes);
  else buffer_.insert(buffer_.end(), p, p + bytes);
  written_ += bytes;
}

void AtomicFile::write_at(int64_t offset, const void* data, int64_t bytes) {
  IRQ_CHECK(offset >= 0 && bytes >= 0 && offset + bytes <= written_, "write_at [%ld, +%ld) of %ld", offset, bytes,
            written_);
  flush();
  write_all(static_cast<const unsigned char*>(data), bytes, offset);
}

void AtomicFile::commit() {
  IRQ_CHECK(fd_ >= 0, "commit() of %s twice", path_.c_str());
  flush();
  if (taken_ > written_ && ftruncate(fd_, written_) != 0) fail("written", errno);  // more was expected than came
  if (fsync(fd_) != 0) fail("written", errno);
  if (rename(temp_path_.c_str(), path_.c_str()) != 0) fail("renamed into place", errno);
  forget_unfinished(temp_path_);
  close(fd_);
  fd_ = -1;
  const int folder = open(parent_path(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {  // so that the new name survives a power cut too (where the file system can do that)
    fsync(folder);
    close(folder);
  }
}

// ---- FileLock --------------------------------------------------------------------------------------------------------

FileLock::FileLock(const std::string& path, const std::function<void()>& on_wait) : path_(path) {
  fd_ = open_locked(path, false);
  if (fd_ < 0) {
    if (on_wait) on_wait();
    fd_ = open_locked(path, true);
  }
  note_unfinished(path_);
}

std::unique_ptr<FileLock> FileLock::try_lock(const std::string& path) {
  const int fd = open_locked(path, false);
  if (fd < 0) return nullptr;
  note_unfinished(path);
  return std::unique_ptr<FileLock>(new FileLock(path, fd));
}

FileLock::~FileLock() {
  if (fd_ < 0) return;
  forget_unfinished(path_);
  unlink(path_.c_str());  // while still locked: a waiter sees that its file lost its name and takes a new one
  close(fd_);
}

}  // namespace irq
