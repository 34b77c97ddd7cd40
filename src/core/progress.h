// Progress of a long job on stderr: a live bar on a terminal, plain lines at intervals in a pipe, nothing when quiet.
#pragma once
#include <cstdint>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>

namespace irq {

std::string format_eta(double seconds);  // "0:13:42", "27:46:40"; "-:--:--" when unknown (negative or not finite)
std::string format_rate(double per_second,
                        const std::string& unit);  // "20,412 tok/s", "3.1 matrices/s", "1.2 GB/s" for unit "B"

// One line of training. A value below 0 (or NaN for loss and grad) is unknown and its field is left out.
//   step 120/10000 | loss 1.134 | grad 0.41 | lr 2.0e-04 | 20,412 tok/s | 74 % of this GPU's GEMM rate | 14.1 GB | eta 0:13:42
struct StepLine {
  int64_t step = 0, steps = 0;
  double loss = -1, grad_norm = -1, lr = -1;
  double tokens_per_second = -1, gemm_fraction = -1;  // gemm_fraction: 0.74
  double memory_bytes = -1, eta_seconds = -1;
};
std::string format_step(const StepLine& s);

// "quantize [=======>      ] 112/224 matrices  3.1 matrices/s  eta 0:00:36  layers.15.wo", cut to `width` columns: the
// note goes first, then the bar shrinks, then the rate goes.
std::string render_bar(int width, const std::string& label, int64_t done, int64_t total, const std::string& unit,
                       double per_second, const std::string& note);
// `text` in at most `width` columns, counted in UTF-8 code points.
std::string fit_columns(const std::string& text, int width);

enum class ProgressStyle { off, lines, bar };
struct ProgressTarget {
  FILE* out = stderr;
  ProgressStyle style = ProgressStyle::lines;
  double interval_s = 10;       // between two plain lines
  std::function<int()> width;   // columns of the terminal, asked before every drawing: windows are resized
  std::function<double()> now;  // seconds, monotonic
};
// stderr as it is: a bar on a terminal that can move its cursor, else lines; off when quiet.
ProgressTarget stderr_target(bool quiet);

// Thread-safe. Usage: ProgressBar p("quantize", 224, "matrices", quiet);  p.update(n, name);  p.finish("224 matrices in 41 s");
class ProgressBar {
 public:
  ProgressBar(std::string label, int64_t total, std::string unit, bool quiet = false);
  ProgressBar(std::string label, int64_t total, std::string unit, ProgressTarget target);
  ~ProgressBar();  // clears the bar if finish() was never called (an error is about to be printed)
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(int64_t done, const std::string& note = "");
  void set_total(int64_t total);  // where it becomes known only later
  // The bar's text is given whole (a step line, for example); plain lines print it as it is.
  // `always` prints the plain line whether or not the interval has passed (the first step, an evaluation).
  void update_text(int64_t done, const std::string& text, bool always = false);
  void message(const std::string& text);         // a line of its own above the bar
  void finish(const std::string& summary = "");  // ends the bar; "" leaves no trace on a terminal
  void restart_clock(int64_t done);              // rates count from here (a resumed run)
  double elapsed_s() const;
  double per_second() const;  // units per second since the start, over the last half minute if longer
  double eta_s() const;       // negative when unknown

 private:
  void draw(const std::string& bar, const std::string& line, bool always);
  void note_rate(int64_t done);
  void erase();

  std::string label_, unit_;
  int64_t total_ = 0, done_ = 0, first_ = 0;
  ProgressTarget target_;
  double start_ = 0, last_drawn_ = -1e9;
  double mark_time_ = 0, window_rate_ = -1;  // the rate of the last full window
  int64_t mark_done_ = 0;
  bool bar_shown_ = false, finished_ = false;
  mutable std::recursive_mutex mutex_;
};

}  // namespace irq
