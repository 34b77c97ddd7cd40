// Hash, map, atomic writing, lock.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <bit>
#include <csignal>
#include <thread>

#include "src/core/file.h"
#include "src/core/hash.h"
#include "src/core/rng.h"
#include "tests/scratch_dir.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

std::string random_bytes(size_t n, uint64_t seed) {
  Rng rng(seed);
  std::string s(n, '\0');
  for (char& c : s) c = static_cast<char>(rng.next_u32());
  return s;
}

uint64_t hash_of(const std::string& s) { return hash_bytes(s.data(), s.size()); }

// The numbers come from a separate evaluation, in Python's integers, of the definition in hash.h. They may never change:
// every file written before would look damaged.
TEST(Hash, StaysWhatItWas) {
  EXPECT_EQ(hash_of(""), 0x9e784a80d8971860ull);
  EXPECT_EQ(hash_of("a"), 0x3e155fcae4340698ull);
  EXPECT_EQ(hash_of("The quick brown fox jumps over the lazy dog"), 0xc95fe0e14ad6e342ull);
  std::string ascending(1000, '\0');
  for (size_t i = 0; i < ascending.size(); ++i) ascending[i] = static_cast<char>(i);
  EXPECT_EQ(hash_of(ascending), 0x5d767f506406c317ull);
}

TEST(Hash, PiecesGiveTheSameAsTheWhole) {
  const std::string s = random_bytes(1000, 1);
  Rng rng(2);
  for (int trial = 0; trial < 200; ++trial) {
    Hasher h;
    for (size_t at = 0; at < s.size();) {
      const size_t n = std::min(s.size() - at, static_cast<size_t>(rng.below(trial % 2 ? 5 : 90)));
      h.update(s.data() + at, n);
      if (trial % 3 == 0) (void)h.digest();  // asking in between changes nothing
      at += n;
    }
    ASSERT_EQ(h.digest(), hash_of(s));
    ASSERT_EQ(h.bytes(), s.size());
  }
}

// Every single flip is found, and turns about half of the 64 bits: over 100 bytes x 8 flips the mean is 32 with a standard
// error of 4 / sqrt(800) = 0.14; one flip turning fewer than 8 bits has a chance below 1e-9.
TEST(Hash, EveryBitReachesTheWholeHash) {
  std::string s = random_bytes(100, 3);
  const uint64_t h = hash_of(s);
  double turned = 0;
  for (size_t bit = 0; bit < 800; ++bit) {
    s[bit / 8] = static_cast<char>(s[bit / 8] ^ (1 << bit % 8));
    const int n = std::popcount(h ^ hash_of(s));
    EXPECT_GE(n, 8) << "bit " << bit;
    turned += n;
    s[bit / 8] = static_cast<char>(s[bit / 8] ^ (1 << bit % 8));
  }
  EXPECT_NEAR(turned / 800, 32.0, 0.7);
}

TEST(Hash, EveryPairOfFlipsIsFound) {
  std::string s = random_bytes(128, 4);
  const uint64_t h = hash_of(s);
  const auto flip = [&](size_t bit) { s[bit / 8] = static_cast<char>(s[bit / 8] ^ (1 << bit % 8)); };
  for (size_t a = 0; a < 1024; ++a)
    for (size_t b = a + 1; b < 1024; ++b) {
      flip(a), flip(b);
      ASSERT_NE(hash_of(s), h) << a << " " << b;
      flip(a), flip(b);
    }
}

TEST(Hash, ZerosOfEveryLengthDiffer) {
  std::string zeros;
  std::vector<uint64_t> seen;
  for (int n = 0; n < 200; ++n, zeros += '\0') seen.push_back(hash_of(zeros));
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
}

TEST(MappedFile, ReadsAndMoves) {
  ScratchDir dir;
  const std::string bytes = random_bytes(10000, 5);
  write_bytes(dir / "f", bytes);
  MappedFile a(dir / "f");
  ASSERT_EQ(a.size(), 10000);
  a.will_need(0, a.size());
  a.dont_need(0, a.size());
  MappedFile b = std::move(a);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b.data()), 10000), bytes);
  write_bytes(dir / "empty", "");
  EXPECT_EQ(MappedFile(dir / "empty").size(), 0);
  EXPECT_EQ(read_text_file(dir / "empty"), "");
}

TEST(MappedFile, ReadsWithoutMapping) {
  ScratchDir dir;
  const std::string bytes = random_bytes(10000, 5);
  write_bytes(dir / "f", bytes);
  MappedFile first(dir / "f");
  const MappedFile f = std::move(first);
  std::string copy(5000, '\0');
  write_bytes(dir / "f", "another file of this name");
  f.read_at(4000, copy.data(), 5000);
  EXPECT_EQ(copy, bytes.substr(4000, 5000));
  write_bytes(dir / "g", bytes);
  const MappedFile g(dir / "g");
  fs::resize_file(dir / "g", 6000);
  EXPECT_EQ(error_of([&] { g.read_at(4000, copy.data(), 5000); }),
            (dir / "g") +
                ": cannot be read any further: it has become shorter\n"
                "  found   : 10,000 bytes when it was opened, nothing to read at byte 6,000\n"
                "  likely  : the file was cut or replaced in place while it was read, or its disk fails\n"
                "  try     : the same command again, once the file is whole");
}

TEST(MappedFile, SaysWhatIsWrong) {
  ScratchDir dir;
  EXPECT_EQ(error_of([&] { MappedFile f(dir / "none"); }), dir / "none: no such file");
  EXPECT_EQ(error_of([&] { MappedFile f(dir / "no/ne"); }),
            dir / "no/ne: no such file\n  found   : the folder " + (dir / "no") + " does not exist either");
  EXPECT_EQ(error_of([&] { MappedFile f(dir.path()); }), dir.path() + ": is a folder, where a file was expected");
  EXPECT_EQ(error_of([&] { MappedFile f("/dev/null"); }), "/dev/null: is not a regular file");
}

TEST(File, NoOutputReplacesAnInput) {
  ScratchDir dir;
  write_bytes(dir / "m.bin", "model");
  write_bytes(dir / "o.tmp", "model");
  std::filesystem::create_symlink(dir / "m.bin", dir / "link");
  std::filesystem::create_directory(dir / "sub");
  write_bytes(dir / "sub/x", "data");
  const std::vector<std::string> inputs = {"", dir / "absent", dir / "o.tmp", dir / "sub/x", dir / "m.bin"};
  for (const char* out : {"m.bin", "link", "sub/../m.bin", "sub/x", "o", "o.tmp"}) {
    const std::string text = error_of([&] { refuse_overwriting(dir / out, inputs); });
    EXPECT_NE(text.find("would destroy an input"), std::string::npos) << out << ": " << text;
  }
  for (const char* out : {"new", "sub", "sub/new", "m.bin2"}) EXPECT_NO_THROW(refuse_overwriting(dir / out, inputs));
  EXPECT_THROW(refuse_overwriting_folder(dir / "sub", inputs), Error);
  EXPECT_THROW(refuse_overwriting_folder(dir.path(), inputs), Error);
  EXPECT_NO_THROW(refuse_overwriting_folder(dir / "new", inputs));
}

TEST(AtomicFile, AppearsWholeOrNotAtAll) {
  ScratchDir dir;
  const std::string path = dir / "f", big = random_bytes(3 << 20, 6);
  {
    AtomicFile f(path, 1000);
    f.write("head");
    f.write(big);
    f.write("tail");
    f.write_at(0, "HEAD", 4);
    EXPECT_FALSE(file_exists(path));
    f.commit();
  }
  EXPECT_EQ(read_bytes(path), "HEAD" + big + "tail");
  try {
    AtomicFile f(path);
    f.write("half");
    throw std::runtime_error("something fails");
  } catch (const std::runtime_error&) {}
  EXPECT_EQ(read_bytes(path), "HEAD" + big + "tail") << "the old file stays";
  EXPECT_FALSE(file_exists(path + ".tmp"));
}

TEST(AtomicFile, SecondWriterIsRefusedAndLeftoversAreUsedAgain) {
  ScratchDir dir;
  const std::string path = dir / "f";
  {
    AtomicFile first(path);
    EXPECT_EQ(error_of([&] { AtomicFile second(path); }),
              path + ": another process is writing this file\n  found   : " + path + ".tmp is locked by it");
    first.write("1");
    first.commit();
  }
  write_bytes(path + ".tmp", std::string(100, 'x'));  // as a killed writer leaves it
  AtomicFile again(path);
  again.write("22");
  again.commit();
  EXPECT_EQ(read_bytes(path), "22");
  EXPECT_FALSE(file_exists(path + ".tmp"));
}

TEST(AtomicFile, FollowsALinkAndKeepsIt) {
  ScratchDir dir;
  write_bytes(dir / "target", "old");
  fs::create_symlink(dir / "target", dir / "link");
  write_text_file(dir / "link", "new");
  EXPECT_TRUE(fs::is_symlink(dir / "link"));
  EXPECT_EQ(read_bytes(dir / "target"), "new");
}

TEST(AtomicFile, SaysWhatIsWrong) {
  ScratchDir dir;
  const std::string no_folder = error_of([&] { AtomicFile f(dir / "no/f"); });
  EXPECT_NE(no_folder.find("cannot be created: No such file or directory\n  try     : mkdir -p " + (dir / "no")),
            std::string::npos)
      << no_folder;
  EXPECT_NE(error_of([&] { AtomicFile f(dir.path()); }).find("is a folder"), std::string::npos);
  const std::string full = error_of([&] { AtomicFile f(dir / "f", int64_t{1} << 60); });
  EXPECT_NE(full.find("f: not enough disk space to write it\n  needs   : 1,152,921,504,606,846,976 bytes"),
            std::string::npos)
      << full;
  EXPECT_FALSE(file_exists(dir / "f.tmp"));
}

// Writes 3 MB over an old file where only `what_stops_it` leaves room for less.
void expect_old_file_whole(const std::string& path, const std::string& reason) {
  const std::string text = error_of([&] {
    AtomicFile f(path);
    f.write(std::string(3 << 20, 'x'));
    f.commit();
  });
  EXPECT_NE(text.find(path + ": cannot be written: " + reason), std::string::npos) << text;
  EXPECT_NE(text.find("the old file is as it was"), std::string::npos) << text;
  EXPECT_EQ(read_bytes(path), "old");
  EXPECT_FALSE(file_exists(path + ".tmp"));
}

TEST(AtomicFile, FileSizeLimit) {
  ScratchDir dir;
  write_bytes(dir / "f", "old");
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {1 << 20, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_old_file_whole(dir / "f", "File too large");
  // Told before anything is written, where the size is known.
  const std::string early = error_of([&] { AtomicFile f(dir / "f", 3 << 20); });
  EXPECT_EQ(early.find((dir / "f") + ": cannot be written: File too large\n  needs   : 3,145,728 bytes (3.15 MB)\n"
                                     "  allowed : 1,048,576 bytes (1.05 MB) by the file size limit (ulimit -f)\n"),
            0u)
      << early;
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
}

TEST(AtomicFile, FullDisk) {
  ScratchDir dir;
  fs::create_directory(dir / "disk");
  const std::string disk = dir / "disk";
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=1m") != 0)
    GTEST_SKIP() << "a small file system cannot be mounted here";
  write_bytes(disk + "/f", "old");
  expect_old_file_whole(disk + "/f", "No space left on device");
  const std::string early = error_of([&] { AtomicFile f(disk + "/g", 2 << 20); });
  EXPECT_NE(early.find("not enough disk space"), std::string::npos);
  // Room that a killed writer's file takes is there for the next one.
  fs::remove(disk + "/f");
  write_bytes(disk + "/g.tmp", std::string(900 << 10, 'x'));
  {
    AtomicFile g(disk + "/g", 800 << 10);
    g.write(std::string(800 << 10, 'y'));
    g.commit();
  }
  EXPECT_EQ(fs::file_size(disk + "/g"), 800u << 10);
  umount(disk.c_str());
}

// The room taken in advance is given back where less comes than was expected.
TEST(AtomicFile, LessThanExpected) {
  ScratchDir dir;
  AtomicFile f(dir / "f", 8 << 20);
  f.write(std::string(3 << 20, 'x'));
  f.commit();
  EXPECT_EQ(fs::file_size(dir / "f"), 3u << 20);
  struct stat s;
  ASSERT_EQ(stat((dir / "f").c_str(), &s), 0);
  EXPECT_LT(s.st_blocks * 512, 4 << 20);
}

TEST(FileLock, OneHolderAtATime) {
  ScratchDir dir;
  const std::string path = dir / "lock";
  auto first = FileLock::try_lock(path);
  ASSERT_TRUE(first);
  EXPECT_FALSE(FileLock::try_lock(path));
  std::atomic<bool> waiting{false}, got{false};
  std::thread other([&] {
    FileLock lock(path, [&] { waiting = true; });
    got = true;
  });
  while (!waiting) std::this_thread::yield();
  EXPECT_FALSE(got);
  first.reset();
  other.join();
  EXPECT_TRUE(got);
  EXPECT_FALSE(file_exists(path)) << "the last holder tidies up";
}

// Four threads add to a counter in a file 50 times each; without mutual exclusion some additions would be lost.
TEST(FileLock, ManyHoldersLoseNothing) {
  ScratchDir dir;
  write_bytes(dir / "count", "0");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        FileLock lock(dir / "lock");
        write_bytes(dir / "count", std::to_string(std::stoi(read_bytes(dir / "count")) + 1));
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(read_bytes(dir / "count"), "200");
}

TEST(FileLock, EndsWithItsProcess) {
  ScratchDir dir;
  const std::string path = dir / "lock";
  const pid_t child = fork();
  if (child == 0) {
    new FileLock(path);  // held, never released
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(FileLock::try_lock(path));
}

}  // namespace
}  // namespace irq
