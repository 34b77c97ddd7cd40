#include "src/core/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "src/core/check.h"
#include "src/core/clock.h"

namespace irq {
namespace {

constexpr double kBarInterval = 0.1;  // seconds between two drawings of the bar
constexpr double kRateWindow = 15;    // seconds; the rate shown is that of the last one to two windows
constexpr int kWidestBar = 30;        // columns between the brackets

int terminal_width() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

bool continues(char c) {
  return (static_cast<unsigned char>(c) & 0xc0u) == 0x80u;
}  // not the first byte of a code point

int columns(const std::string& s) {
  return static_cast<int>(std::count_if(s.begin(), s.end(), [](char c) { return !continues(c); }));
}

// A step line on a narrow terminal: whole items go, the least important first; what is left is cut. Others are kept.
std::string fit_items(std::string text, int width) {
  static constexpr const char* kLeastFirst[] = {"GEMM rate", "| lr ", "B |", "| grad ", "tok/s", "| loss "};
  for (const char* mark : kLeastFirst) {
    if (columns(text) <= width) break;
    const size_t at = text.find(mark);
    const size_t begin = at == std::string::npos ? at : text.rfind("| ", at);
    if (begin == std::string::npos) continue;
    const size_t end = std::min(text.find(" | ", begin + 2), text.size());
    text.erase(begin - 1, end - (begin - 1));
  }
  return fit_columns(text, width);
}

}  // namespace

std::string format_eta(double seconds) {
  if (!(seconds >= 0) || !std::isfinite(seconds)) return "-:--:--";
  const long long s = std::llround(std::min(seconds, 1e9));
  return strf("%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
}

std::string format_rate(double per_second, const std::string& unit) {
  if (unit == "B") return human_bytes(per_second) + "/s";
  if (per_second >= 99.95) return with_commas(std::llround(per_second)) + " " + unit + "/s";
  return strf(per_second >= 0.995 ? "%.1f %s/s" : "%.2f %s/s", per_second, unit.c_str());
}

std::string format_step(const StepLine& s) {
  std::string text = strf("step %ld/%ld", static_cast<long>(s.step), static_cast<long>(s.steps));
  if (!(s.loss < 0)) text += strf(" | loss %.3f", s.loss);  // NaN is shown: a diverged run must look like one
  if (!(s.grad_norm < 0)) text += strf(s.grad_norm < 100 ? " | grad %.2f" : " | grad %.3g", s.grad_norm);
  if (s.lr >= 0) text += strf(" | lr %.1e", s.lr);
  if (s.tokens_per_second >= 0) text += " | " + with_commas(std::llround(s.tokens_per_second)) + " tok/s";
  if (s.gemm_fraction >= 0) text += strf(" | %.0f %% of this GPU's GEMM rate", 100 * s.gemm_fraction);
  if (s.memory_bytes >= 0) text += " | " + human_bytes(s.memory_bytes);
  if (s.eta_seconds >= 0) text += " | eta " + format_eta(s.eta_seconds);
  return text;
}

std::string fit_columns(const std::string& text, int width) {
  if (columns(text) <= width) return text;
  std::string cut;
  int used = 0;
  for (const char c : text) {
    if (!continues(c) && ++used > width) break;
    cut += c;
  }
  return cut;
}

std::string render_bar(int width, const std::string& label, int64_t done, int64_t total, const std::string& unit,
                       double per_second, const std::string& note) {
  const bool bytes = unit == "B";
  const auto amount = [&](int64_t n) { return bytes ? human_bytes(static_cast<double>(n)) : with_commas(n); };
  std::string counts = total > 0 ? amount(done) + "/" + amount(total) : amount(done);
  if (!bytes) counts += " " + unit;
  std::string rate;
  if (per_second > 0) {
    rate = "  " + format_rate(per_second, unit);
    if (total > 0) rate += "  eta " + format_eta(static_cast<double>(total - done) / per_second);
  }
  const std::string tail = note.empty() ? "" : "  " + note;
  // "label [" + bar + "] " + counts + rate + tail
  const int fixed = columns(label) + 4 + columns(counts);
  int room = width - fixed - columns(rate) - columns(tail);
  const bool with_note = room >= 10;
  if (!with_note) room = width - fixed - columns(rate);
  const bool with_rate = room >= 5;
  if (!with_rate) room = width - fixed;
  std::string text = label + " ";
  if (total > 0 && room >= 3) {
    const int bar = std::min(room, kWidestBar);
    const double fraction = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
    const int full = static_cast<int>(fraction * bar);
    text += "[" + std::string(static_cast<size_t>(full), '=');
    if (full < bar) text += ">" + std::string(static_cast<size_t>(bar - full - 1), ' ');
    text += "] ";
  }
  text += counts;
  if (with_rate) text += rate;
  if (with_note) text += tail;
  return fit_columns(text, width);
}

ProgressTarget stderr_target(bool quiet) {
  ProgressTarget target;
  const char* term = std::getenv("TERM");
  const bool terminal = isatty(STDERR_FILENO) && (term == nullptr || std::strcmp(term, "dumb") != 0);
  target.style = quiet ? ProgressStyle::off : terminal ? ProgressStyle::bar : ProgressStyle::lines;
  target.width = terminal_width;
  target.now = now_seconds;
  return target;
}

ProgressBar::ProgressBar(std::string label, int64_t total, std::string unit, bool quiet)
    : ProgressBar(std::move(label), total, std::move(unit), stderr_target(quiet)) {}

ProgressBar::ProgressBar(std::string label, int64_t total, std::string unit, ProgressTarget target)
    : label_(std::move(label)), unit_(std::move(unit)), total_(total), target_(std::move(target)) {
  if (!target_.width) target_.width = terminal_width;
  if (!target_.now) target_.now = now_seconds;
  start_ = mark_time_ = target_.now();
  if (target_.style == ProgressStyle::lines) last_drawn_ = start_;  // a job shorter than the interval prints no line
}

ProgressBar::~ProgressBar() {
  if (!finished_) erase();
}

void ProgressBar::restart_clock(int64_t done) {
  std::lock_guard lock(mutex_);
  start_ = mark_time_ = target_.now();
  first_ = done_ = mark_done_ = done;
  window_rate_ = -1;
}

void ProgressBar::set_total(int64_t total) {
  std::lock_guard lock(mutex_);
  total_ = total;
}

double ProgressBar::elapsed_s() const { return target_.now() - start_; }

double ProgressBar::per_second() const {
  std::lock_guard lock(mutex_);
  const double now = target_.now();
  if (window_rate_ >= 0) {  // the last full window and the one under way
    const double under_way = now - mark_time_;
    return (window_rate_ * kRateWindow + static_cast<double>(done_ - mark_done_)) / (kRateWindow + under_way);
  }
  const double elapsed = now - start_;
  return elapsed > 0 ? static_cast<double>(done_ - first_) / elapsed : 0;
}

double ProgressBar::eta_s() const {
  const double rate = per_second();
  return rate > 0 && total_ > 0 ? static_cast<double>(total_ - done_) / rate : -1;
}

void ProgressBar::note_rate(int64_t done) {
  done_ = done;
  const double now = target_.now();
  if (now - mark_time_ >= kRateWindow) {
    window_rate_ = static_cast<double>(done - mark_done_) / (now - mark_time_);
    mark_time_ = now;
    mark_done_ = done;
  }
}

void ProgressBar::update(int64_t done, const std::string& note) {
  std::lock_guard lock(mutex_);
  note_rate(done);
  if (target_.style == ProgressStyle::off) return;
  const double rate = per_second();
  const int width = target_.style == ProgressStyle::bar ? target_.width() - 1 : 1000;
  std::string line;
  if (target_.style == ProgressStyle::lines) {
    line = render_bar(1000, label_, done, total_, unit_, rate, note);
    if (const size_t open = line.find('['), close = line.find("] ");
        open != std::string::npos && close != std::string::npos)
      line.erase(open, close + 2 - open);  // a bar says nothing in a log
    if (total_ > 0) line += strf("  (%.0f %%)", 100.0 * static_cast<double>(done) / static_cast<double>(total_));
  }
  const bool bar = target_.style == ProgressStyle::bar;
  draw(bar ? render_bar(width, label_, done, total_, unit_, rate, note) : "", line,
       bar && done >= total_ && total_ > 0);
}

void ProgressBar::update_text(int64_t done, const std::string& text, bool always) {
  std::lock_guard lock(mutex_);
  note_rate(done);
  if (target_.style == ProgressStyle::off) return;
  const double fraction =
      total_ > 0 ? std::clamp(static_cast<double>(done) / static_cast<double>(total_), 0.0, 1.0) : 0;
  const int width = target_.style == ProgressStyle::bar ? target_.width() - 1 : 0;
  std::string bar = text;
  if (width >= columns(text) + 13) {  // a small bar before the text where there is room
    const int full = static_cast<int>(fraction * 10);
    bar = "[" + std::string(static_cast<size_t>(full), '=') + std::string(static_cast<size_t>(10 - full), ' ') + "] " +
          text;
  }
  draw(fit_items(bar, width), text, always || (done >= total_ && total_ > 0));
}

void ProgressBar::draw(const std::string& bar, const std::string& line, bool always) {
  const double now = target_.now();
  if (target_.style == ProgressStyle::bar) {
    if (now - last_drawn_ < kBarInterval && !always) return;
    std::fprintf(target_.out, "\r%s\x1b[K", bar.c_str());
    bar_shown_ = true;
  } else {
    if (now - last_drawn_ < target_.interval_s && !always) return;
    std::fprintf(target_.out, "%s\n", line.c_str());
  }
  std::fflush(target_.out);
  last_drawn_ = now;
}

void ProgressBar::erase() {
  if (bar_shown_) std::fprintf(target_.out, "\r\x1b[K");
  bar_shown_ = false;
  std::fflush(target_.out);
}

void ProgressBar::message(const std::string& text) {
  std::lock_guard lock(mutex_);
  if (target_.style == ProgressStyle::off) return;
  erase();
  std::fprintf(target_.out, "%s\n", text.c_str());
  std::fflush(target_.out);
  last_drawn_ = target_.style == ProgressStyle::bar ? -1e9 : last_drawn_;  // the bar comes back with the next update
}

void ProgressBar::finish(const std::string& summary) {
  std::lock_guard lock(mutex_);
  if (finished_) return;
  finished_ = true;
  if (target_.style == ProgressStyle::off) return;
  erase();
  if (!summary.empty()) std::fprintf(target_.out, "%s\n", summary.c_str());
  std::fflush(target_.out);
}

}  // namespace irq
