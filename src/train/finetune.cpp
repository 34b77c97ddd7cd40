// The run itself: restore or initialise, train, evaluate, save.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numbers>

#include "src/core/clock.h"
#include "src/core/interrupt.h"
#include "src/core/progress.h"
#include "src/io/float_pieces.h"
#include "src/model/flops.h"
#include "src/ops/matmul_rate.h"
#include "src/train/finetune_run.h"
#include "src/train/matmul_cache.h"

namespace irq {
namespace {

constexpr int64_t kCeilingSide = 8192;  // of the square product that a step's rate is compared with, some 30 ms

// The first tensor of a base that holds a NaN or an infinity; "" if there is none.
template <class Source>
std::string unusable_tensor(Source& source) {
  for (const TensorSpec& spec : source.layout().tensors())
    if (spec.dtype != DType::U8 && first_not_finite(source.tensor(spec.name)) >= 0) return spec.name;
  return "";
}

}  // namespace

// A run that came to nothing leaves no folder either: remove() takes empty ones only.
Finetune::~Finetune() {
  release_memory();
  folder_lock_.reset();
  std::error_code ignored;
  for (const std::string& folder : made_folders_) std::filesystem::remove(folder, ignored);
}

void Finetune::claim_memory() {
  arena_ = std::make_unique<Arena>(memory_.take(plan_.peak_bytes), plan_.peak_bytes, backend_.device());
  trainer_ = std::make_unique<Trainer>(backend_, *arena_, plan_.model, plan_.max_labels);
}

void Finetune::release_memory() {
  trainer_.reset();
  arena_.reset();
  memory_.release();
}

void Finetune::note(const std::string& text) const {
  if (!o_.quiet) std::fprintf(stderr, "%s\n", text.c_str());
}

// Weights and fresh trained parameters; all of Adam's state is 0.
void Finetune::load_weights() {
  Llama& model = trainer_->model();
  ProgressBar bar("load", 100, "%", o_.quiet);
  const ByteProgress progress = [&](int64_t done, int64_t all) { bar.update(done * 100 / std::max<int64_t>(all, 1)); };
  model.init_rope();
  if (quantized_) load_quantized(backend_, *arena_, model, *quantized_, progress);
  else if (!from_scratch()) load_base(backend_, model, *base_, progress);
  bar.finish();
  if (initial_) {
    upload_adapter(backend_, model, initial_->adapter, o_.init_adapter);
    initial_->adapter.tensors.clear();  // they are on the device now
    return;
  }
  if (loftq_) return upload_loftq();
  if (!method_.full) return model.init_adapters(o_.seed);
  if (from_scratch()) model.init_full(o_.seed);
}

void Finetune::restore_or_init() {
  load_weights();
  const bool tune = o_.tune_matmul == "on";
  backend_.tune_matmul(false);  // the ceiling's product is no shape of this run: nothing is to be remembered of it
  if (backend_.device() == Device::CUDA) gemm_rate_ = square_matmul_rate(backend_, kCeilingSide);
  backend_.tune_matmul(tune);
  if (tune) load_matmul_cache(backend_);
  state_.seed = o_.seed, state_.base_hash = base_hash_, state_.identity = identity();
  if (saved_) {
    state_ = load_state(backend_, trainer_->model().params(), out("train.state"));
    loader_->seek(state_.cursor);
    if (tune) backend_.restore_matmul_choices(state_.matmul);  // before the cache's: it may have been timed anew
    note(strf("resuming after step %ld", state_.step));
  } else {
    std::error_code ignored;  // a state of the run that is overwritten must not be taken for this one's
    std::filesystem::remove(out("train.state"), ignored);
  }
  trainer_->model().refresh();
}

// The log opens with the command that does the same run again, and so does each resumption in it.
// A finished run that is resumed with nothing left to do keeps its log as it is.
void Finetune::open_log() {
  if (o_.resume && state_.finished && state_.step == steps_ && log_is_finished(out("log.jsonl"), state_.step)) return;
  log_ = std::make_unique<RunLog>(out("log.jsonl"), o_.resume, state_.step);
  std::string quantized;  // its seconds: null where the quantized base was there already
  if (quantized_)
    quantized = ", \"quantized\": " + json_text(base_name(quantized_->path())) +
                ", \"quantize_seconds\": " + json_number(quantize_seconds_);
  log_->write("{\"command\": " + json_text(command_again()) + ", \"typed\": " + json_text(o_.command) +
              strf(", \"after_step\": %ld, \"base\": \"%016lx\", \"data\": \"%016lx\", \"device\": %s, "
                   "\"planned_bytes\": %ld, \"trained_parameters\": %ld",
                   state_.step, base_hash_, data_hash_, json_text(backend_.describe()).c_str(), plan_.peak_bytes,
                   trainer_->model().params().size()) +
              quantized + "}");
}

void Finetune::fail_not_finite(const std::string& when, const std::string& found) {
  Error error(when + ": the loss or the gradient is not a number");
  error.line("found", found);
  const std::string tensor = quantized_ ? unusable_tensor(*quantized_) : unusable_tensor(*base_);
  if (!tensor.empty()) {
    error.line("likely", (quantized_ ? quantized_->path() : o_.base) + ": a weight of " + tensor + " is not finite");
    throw error.line("try", "convert or download the model again");
  }
  if (state_.step == 0) error.line("likely", "weights so large that the sums overflow");
  else error.line("likely", "a learning rate that is too high");
  throw error.line("try", strf("--lr %g", *o_.lr / 4));
}

// -1 without held-out data. An interrupt leaves the steps done so far in the training state.
double Finetune::held_out_loss() {
  if (eval_batches_.empty()) return -1;
  ProgressBar bar("evaluate", static_cast<int64_t>(eval_batches_.size()), "batches", o_.quiet);
  double nll = 0;
  int64_t labels = 0, done = 0;
  for (const Batch& b : eval_batches_) {
    const auto [batch_nll, batch_labels] = trainer_->evaluate(b);
    nll += batch_nll, labels += batch_labels;
    bar.update(++done);
    if (!interrupted()) continue;
    if (state_.step > 0 && !state_.finished) checkpoint(false);
    throw_if_interrupted();
  }
  const double loss = nll / static_cast<double>(std::max<int64_t>(labels, 1));
  bar.finish();
  if (!std::isfinite(loss)) fail_not_finite(strf("held-out loss after step %ld", state_.step), strf("loss %g", loss));
  if (log_)
    log_->write(strf("{\"step\": %ld, \"held_out_loss\": %s, \"held_out_tokens\": %ld}", state_.step,
                     json_number(loss).c_str(), labels));
  return loss;
}

double Finetune::learning_rate(int64_t step) const {
  if (step <= o_.warmup) return *o_.lr * static_cast<double>(step) / static_cast<double>(o_.warmup);
  if (o_.schedule == "constant") return *o_.lr;
  const double done =
      static_cast<double>(step - o_.warmup) / static_cast<double>(std::max<int64_t>(steps_ - o_.warmup, 1));
  return *o_.lr * (0.05 + 0.95 * 0.5 * (1 + std::cos(std::numbers::pi * done)));  // cosine down to 5 %
}

void Finetune::checkpoint(bool finished) {
  state_.finished = finished;
  state_.cursor = loader_->cursor();
  state_.matmul = backend_.matmul_choices(true);
  save_state(backend_, trainer_->model().params(), state_, out("train.state"));
}

// Shapes are timed when they are first met: most in the first step, some whenever a step has a new number of rows. Returns
// what the user should know, once.
std::string Finetune::note_timed_matmuls() {
  const std::vector<MatmulTiming> timed = backend_.take_matmul_timings();
  if (timed.empty()) return "";
  log_->write("{\"note\": " + json_text(describe(timed)) + "}");
  const std::string failed = save_matmul_cache(backend_);
  if (!failed.empty() && !std::exchange(told_cache_, true))
    return "note: the fastest matmuls are not remembered for the next run: " + failed;
  return std::exchange(told_timings_, true) ? "" : describe(timed);
}

double Finetune::flops(const std::vector<Batch>& window) const {
  const uint32_t targets = method_.lora ? parse_targets(*o_.targets) : 0;
  return model_flops(config_, *o_.rank, window, targets, method_.full, method_.scales);
}

void Finetune::train() {
  ProgressBar bar("train", steps_, "steps", o_.quiet);
  bar.restart_clock(state_.step);
  const int64_t first = state_.step + 1;
  const double start = now_seconds();
  double window_start = start, tokens_per_second = 0, window_flops = 0, gemm_fraction = -1;
  int64_t window_tokens = 0;
  while (state_.step < steps_) {
    const int64_t step = state_.step + 1;
    const double step_start = now_seconds();
    const bool ends = step == first || step == steps_, last = step == steps_;
    std::vector<Batch> window;
    for (const MicroBatch& m : loader_->next()) window.push_back(m.packed());
    optimizer_.lr = learning_rate(step);
    if (o_.print_tape && step == first) trainer_->print_next_tape();
    const StepResult r = trainer_->step(window, step, optimizer_);
    const double step_seconds = now_seconds() - step_start;  // the loss is on the host: the device is done
    if (!std::isfinite(r.loss) || !std::isfinite(r.grad_norm))
      fail_not_finite(strf("step %ld", step), strf("loss %g, gradient norm %g", r.loss, r.grad_norm));
    state_.step = step;
    if (const std::string text = note_timed_matmuls(); !text.empty()) bar.message(text);
    if (o_.print_tape && step == first) std::printf("%s", trainer_->tape_table().c_str());
    window_tokens += r.tokens, window_flops += flops(window);
    if (const double now = now_seconds(); now - window_start > 0.5 || ends) {
      tokens_per_second = static_cast<double>(window_tokens) / (now - window_start);
      if (gemm_rate_ > 0) gemm_fraction = window_flops / (now - window_start) / gemm_rate_;
      window_start = now, window_tokens = 0, window_flops = 0;
    }
    const StepLine line{step,          steps_,
                        r.loss,        r.grad_norm,
                        optimizer_.lr, tokens_per_second,
                        gemm_fraction, static_cast<double>(arena_->peak()),
                        bar.eta_s()};
    bar.update_text(step, format_step(line), ends);
    log_->write(
        strf("{\"step\": %ld, \"loss\": %s, \"grad_norm\": %s, \"lr\": %s, \"tokens\": %ld, \"labels\": %ld, "
             "\"tokens_per_s\": %.1f, \"seconds\": %.6f}",
             step, json_number(r.loss).c_str(), json_number(r.grad_norm).c_str(), json_number(optimizer_.lr).c_str(),
             r.tokens, r.labels, tokens_per_second, step_seconds));
    if (last) break;
    if (o_.eval_every > 0 && step % o_.eval_every == 0)
      if (const double loss = held_out_loss(); loss >= 0) bar.message(strf("step %ld: held-out loss %.4f", step, loss));
    if (interrupted()) {
      checkpoint(false);
      bar.finish(strf("interrupted after step %ld; --resume goes on from here", step));
      throw Error("interrupted", Exit::interrupted);
    }
    if (o_.save_every > 0 && step % o_.save_every == 0) checkpoint(false);
  }
  const int64_t done = steps_ - first + 1;
  bar.finish(done > 0 ? strf("%ld steps in %.1f s", done, now_seconds() - start) : strf("%ld steps were done", steps_));
}

void Finetune::save_result() {
  Llama& model = trainer_->model();
  if (method_.full) {
    write_model(backend_, model, out("model.bin"),
                o_.dtype == "f32"   ? DType::F32
                : o_.dtype == "f16" ? DType::F16
                                    : DType::BF16);
    if (const std::string carried = carry_tokenizer(o_.base, out("model.bin")); !carried.empty()) note(carried);
  } else {
    AdapterFile a = result_header();
    a.tensors = download_params(backend_, model.params());
    write_adapter(out("adapter.lora"), a);
  }
  // --overwrite with another method: the former run's result must not lie beside this one's.
  std::error_code ignored;
  std::filesystem::remove(out(method_.full ? "adapter.lora" : "model.bin"), ignored);
  std::filesystem::remove(out("model.irq"), ignored);
  checkpoint(true);
}

int Finetune::run() {
  open_base_file();
  refuse_ignored_flags();
  open_loftq_pair();
  open_init_adapter();
  resolve();
  claim_folder();
  load_examples();
  refuse_ignored_flags();
  require_same_options();
  plan_batches();
  quantize();
  base_hash_ = quantized_ ? quantized_->hash() : base_->hash();
  require_same_base();
  require_init_base();
  build();
  restore_or_init();
  open_log();
  if (state_.step == 0) state_.loss_before = held_out_loss();
  if (state_.loss_before >= 0) note(strf("held-out loss before: %.4f", state_.loss_before));
  train();
  save_result();  // before the last evaluation: what is trained is not at risk any more
  const double trained = held_out_loss();
  const std::string planned = with_commas(plan_.peak_bytes), used = with_commas(arena_->peak());
  note(planned == used ? "memory: the planned " + planned + " bytes were the peak"
                       : "memory: planned " + planned + " bytes, used " + used);
  const int64_t peak = plan_.peak_bytes;  // of all of the run, also where this process did only its end
  if (method_.requantize && trained >= 0) note(strf("held-out loss with the adapter: %.4f", trained));
  const double after = method_.requantize ? requantize() : trained;
  if (log_)
    log_->write(
        strf("{\"step\": %ld, \"finished\": true, \"held_out_loss\": %s, \"peak_bytes\": %ld, "
             "\"requantize_seconds\": %s, \"result\": %s}",
             state_.step, after < 0 ? "null" : json_number(after).c_str(), peak,
             json_number(requantize_seconds_).c_str(), json_text(result_name()).c_str()));
  if (after >= 0)
    std::printf("held-out loss %.4f -> %.4f (%zu examples)\n", state_.loss_before, after, held_out_.examples.size());
  if (trained > state_.loss_before)
    note(strf("note: the held-out loss rose; try --lr %g, or fewer --steps", *o_.lr / 4));
  std::printf("%s\n", out(result_name()).c_str());
  return 0;
}

int finetune(CheckedBackend& backend, TrainOptions options) { return Finetune(backend, std::move(options)).run(); }

}  // namespace irq
