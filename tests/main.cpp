// Runs all tests; skipped ones are told once per reason, and the last line counts all three outcomes.
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <memory>
#include <string>

namespace {

// GoogleTest's own printer, without the same skip reason hundreds of times.
class Printer : public testing::EmptyTestEventListener {
 public:
  explicit Printer(testing::TestEventListener* inner) : inner_(inner) {}
  void OnTestProgramStart(const testing::UnitTest& u) override { inner_->OnTestProgramStart(u); }
  void OnTestIterationStart(const testing::UnitTest& u, int i) override { inner_->OnTestIterationStart(u, i); }
  void OnTestSuiteStart(const testing::TestSuite& s) override { inner_->OnTestSuiteStart(s); }
  void OnTestStart(const testing::TestInfo& t) override { inner_->OnTestStart(t); }
  void OnTestPartResult(const testing::TestPartResult& r) override {
    if (r.skipped()) ++skips_[r.message()];
    else inner_->OnTestPartResult(r);
  }
  void OnTestEnd(const testing::TestInfo& t) override { inner_->OnTestEnd(t); }
  void OnTestSuiteEnd(const testing::TestSuite& s) override { inner_->OnTestSuiteEnd(s); }
  void OnTestIterationEnd(const testing::UnitTest& u, int i) override { inner_->OnTestIterationEnd(u, i); }
  void OnTestProgramEnd(const testing::UnitTest& u) override {
    inner_->OnTestProgramEnd(u);
    for (const auto& [reason, count] : skips_) std::printf("skipped %d: %s\n", count, reason.c_str());
    std::printf("%d passed, %d failed, %d skipped\n", u.successful_test_count(), u.failed_test_count(),
                u.skipped_test_count());
    std::fflush(stdout);
  }

 private:
  std::unique_ptr<testing::TestEventListener> inner_;
  std::map<std::string, int> skips_;
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  listeners.Append(new Printer(listeners.Release(listeners.default_result_printer())));
  return RUN_ALL_TESTS();
}
