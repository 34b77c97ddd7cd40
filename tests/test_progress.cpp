// Progress: what is drawn, where it fits, and when it is silent.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "src/core/progress.h"

namespace irq {
namespace {

// A stream in memory, a clock and a window that the test moves.
struct Screen {
  char* data = nullptr;
  size_t size = 0;
  FILE* out = open_memstream(&data, &size);
  double now = 100;
  int width = 80;
  ~Screen() {
    std::fclose(out);
    std::free(data);
  }
  std::string text() {
    std::fflush(out);
    return std::string(data, size);
  }
  ProgressTarget target(ProgressStyle style) {
    return {out, style, 10, [this] { return width; }, [this] { return now; }};
  }
};

TEST(Progress, Eta) {
  EXPECT_EQ(format_eta(0), "0:00:00");
  EXPECT_EQ(format_eta(822), "0:13:42");
  EXPECT_EQ(format_eta(59.6), "0:01:00");
  EXPECT_EQ(format_eta(100000), "27:46:40");
  EXPECT_EQ(format_eta(-1), "-:--:--");
  EXPECT_EQ(format_eta(NAN), "-:--:--");
  EXPECT_EQ(format_eta(INFINITY), "-:--:--");
}

TEST(Progress, Rate) {
  EXPECT_EQ(format_rate(20412.3, "tok"), "20,412 tok/s");
  EXPECT_EQ(format_rate(3.14, "matrices"), "3.1 matrices/s");
  EXPECT_EQ(format_rate(0.051, "steps"), "0.05 steps/s");
  EXPECT_EQ(format_rate(1.2e9, "B"), "1.20 GB/s");
}

TEST(Progress, StepLine) {
  StepLine s;
  s.step = 120, s.steps = 10000, s.loss = 1.134, s.grad_norm = 0.41, s.lr = 2e-4;
  s.tokens_per_second = 20412, s.gemm_fraction = 0.74, s.memory_bytes = 14.1e9, s.eta_seconds = 822;
  EXPECT_EQ(format_step(s),
            "step 120/10000 | loss 1.134 | grad 0.41 | lr 2.0e-04 | 20,412 tok/s | 74 % of this GPU's GEMM rate | "
            "14.1 GB | eta 0:13:42");
  s.gemm_fraction = s.memory_bytes = -1;  // not known on a CPU
  EXPECT_EQ(format_step(s), "step 120/10000 | loss 1.134 | grad 0.41 | lr 2.0e-04 | 20,412 tok/s | eta 0:13:42");
  s.loss = NAN;  // a diverged run must look like one
  EXPECT_NE(format_step(s).find("loss nan"), std::string::npos) << format_step(s);
}

TEST(Progress, BarFitsEveryWidth) {
  EXPECT_EQ(render_bar(120, "quantize", 112, 224, "matrices", 3.1, "layers.15.wo"),
            "quantize [===============>              ] 112/224 matrices  3.1 matrices/s  eta 0:00:36  layers.15.wo");
  for (int width = 1; width <= 140; ++width) {
    const std::string bar = render_bar(width, "quantize", 112, 224, "matrices", 3.1, "layers.15.wo");
    EXPECT_LE(bar.size(), static_cast<size_t>(width)) << bar;
    const bool counts = bar.find("112/224 matrices") != std::string::npos;
    EXPECT_EQ(counts, width >= 25) << bar;  // the last thing to go: "quantize " and these 16 columns
  }
  EXPECT_EQ(render_bar(60, "copy", 5, 0, "files", 0, ""), "copy 5 files");  // no total: no bar, no eta
  EXPECT_EQ(render_bar(80, "read", 500000000, 1000000000, "B", 1e8, ""),
            "read [===============>              ] 500.0 MB/1.00 GB  100.0 MB/s  eta 0:00:05");
  EXPECT_NE(render_bar(80, "x", 7, 7, "y", 1, "").find("[==============================]"), std::string::npos);
}

TEST(Progress, ColumnsAreCodePoints) {
  EXPECT_EQ(fit_columns("caf\xc3\xa9s", 4), "caf\xc3\xa9");  // never half a character
  EXPECT_EQ(fit_columns("abc", 3), "abc");
  EXPECT_EQ(fit_columns("abc", 0), "");
}

TEST(Progress, LinesInAPipe) {
  Screen screen;
  ProgressBar p("quantize", 100, "matrices", screen.target(ProgressStyle::lines));
  for (int i = 1; i <= 100; ++i) {
    screen.now += 0.25;
    p.update(i, "m");
  }
  p.finish("100 matrices");
  // 25 s at one line every 10 s; no escape, no carriage return.
  EXPECT_EQ(screen.text(),
            "quantize 40/100 matrices  4.0 matrices/s  eta 0:00:15  m  (40 %)\n"
            "quantize 80/100 matrices  4.0 matrices/s  eta 0:00:05  m  (80 %)\n"
            "100 matrices\n");
}

TEST(Progress, BarOnATerminal) {
  Screen screen;
  screen.width = 40;
  {
    ProgressBar p("q", 4, "m", screen.target(ProgressStyle::bar));
    screen.now += 1;
    p.update(1);
    p.update(2);  // within a tenth of a second: not drawn
    p.message("note");
    screen.now += 1;
    p.update(3);
  }  // not finished: the bar is taken away before an error is printed
  EXPECT_EQ(screen.text(),
            "\rq [=>     ] 1/4 m  1.0 m/s  eta 0:00:03\x1b[K"
            "\r\x1b[Knote\n"
            "\rq [=====> ] 3/4 m  1.5 m/s  eta 0:00:01\x1b[K"
            "\r\x1b[K");
}

TEST(Progress, QuietIsSilent) {
  Screen screen;
  ProgressBar p("q", 4, "m", screen.target(ProgressStyle::off));
  screen.now += 60;
  p.update(4);
  p.update_text(4, "step 4/4", true);
  p.message("note");
  p.finish("done");
  EXPECT_EQ(screen.text(), "");
}

TEST(Progress, RateFollowsTheLastHalfMinute) {
  Screen screen;
  ProgressBar p("train", 100000, "steps", screen.target(ProgressStyle::off));
  for (int i = 1; i <= 100; ++i) screen.now += 1, p.update(i);  // a slow beginning, 1 step/s
  for (int i = 1; i <= 100; ++i) screen.now += 1, p.update(100 + 10 * i);
  EXPECT_NEAR(p.per_second(), 10, 1e-9);
  EXPECT_NEAR(p.eta_s(), (100000 - 1100) / 10.0, 1e-6);
  EXPECT_NEAR(p.elapsed_s(), 200, 1e-9);
}

TEST(Progress, ResumedRunCountsFromItsStart) {
  Screen screen;
  ProgressBar p("train", 1000, "steps", screen.target(ProgressStyle::off));
  p.restart_clock(900);
  screen.now += 10;
  p.update(910);
  EXPECT_NEAR(p.per_second(), 1, 1e-9);
  EXPECT_NEAR(p.eta_s(), 90, 1e-6);
}

// Whole items go, the least important first; the end of the line stays.
TEST(Progress, StepLineFitsTheTerminal) {
  StepLine s;
  s.step = 120, s.steps = 10000, s.loss = 1.134, s.grad_norm = 0.41, s.lr = 2e-4;
  s.tokens_per_second = 20412, s.gemm_fraction = 0.74, s.memory_bytes = 14.1e9, s.eta_seconds = 822;
  const std::pair<int, const char*> cases[] = {
      {80, "step 120/10000 | loss 1.134 | grad 0.41 | 20,412 tok/s | 14.1 GB | eta 0:13:42"},
      {75, "step 120/10000 | loss 1.134 | grad 0.41 | 20,412 tok/s | eta 0:13:42"},
      {60, "step 120/10000 | loss 1.134 | 20,412 tok/s | eta 0:13:42"},
      {45, "step 120/10000 | loss 1.134 | eta 0:13:42"},
      {30, "step 120/10000 | eta 0:13:42"},
      {20, "step 120/10000 | et"}};
  for (const auto& [width, line] : cases) {
    Screen screen;
    screen.width = width;
    ProgressBar p("train", 10000, "steps", screen.target(ProgressStyle::bar));
    screen.now += 1;
    p.update_text(120, format_step(s));
    EXPECT_NE(screen.text().find(std::string("\r") + line + "\x1b[K"), std::string::npos) << screen.text();
    p.finish();
  }
}

TEST(Progress, TextIsCutToTheWindow) {
  Screen screen;
  screen.width = 20;
  ProgressBar p("train", 10, "steps", screen.target(ProgressStyle::bar));
  screen.now += 1;
  p.update_text(5, "step 5/10 | loss 1.134 | grad 0.41");
  EXPECT_EQ(screen.text(), "\rstep 5/10\x1b[K");
  screen.width = 80;
  screen.now += 1;
  p.update_text(6, "step 6/10");
  EXPECT_NE(screen.text().find("\r[======    ] step 6/10\x1b[K"), std::string::npos) << screen.text();
  p.finish();
}

}  // namespace
}  // namespace irq
