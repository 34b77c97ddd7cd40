#include "src/eval/model_session.h"

#include <algorithm>

#include "src/io/adapter_base.h"
#include "src/io/load_model.h"
#include "src/io/synthetic.h"

namespace irq {
namespace {

bool has_tensor(const AdapterFile& adapter, const char* suffix) {
  return std::any_of(adapter.tensors.begin(), adapter.tensors.end(),
                     [&](const NamedArray& t) { return t.name.ends_with(suffix); });
}

// Keys and values of every layer, (capacity, G D) each, and room for one layer's of batches that pass.
KvCache push_cache(Arena& arena, const ModelConfig& config, DType storage, const Workload& work) {
  KvCache cache;
  const int64_t capacity = cache.capacity = work.cache_tokens;
  if (work.passing_rows > 0) {
    cache.passing_keys = arena.push("KV cache", storage, capacity + work.passing_rows, config.kv_width());
    cache.passing_values = arena.push("KV cache", storage, capacity + work.passing_rows, config.kv_width());
  }
  for (int64_t l = 0; capacity > 0 && l < config.layers; ++l) {
    cache.keys.push_back(arena.push("KV cache", storage, capacity, config.kv_width()));
    cache.values.push_back(arena.push("KV cache", storage, capacity, config.kv_width()));
  }
  return cache;
}

}  // namespace

ModelSession::ModelSession(Backend& backend, const std::string& model_path, const std::string& adapter_path,
                           uint64_t seed)
    : backend_(backend), path_(model_path), adapter_path_(adapter_path) {
  if (sniff(path_) == FileKind::quantized) quantized_ = std::make_unique<IrqReader>(path_);
  else base_ = open_base(path_, seed);
  if (adapter_path_.empty()) return;
  adapter_ = std::make_unique<AdapterFile>(read_adapter(adapter_path_));
  require_adapter_base(quantized_ ? BaseIdentity{path_, quantized_->hash(), true, quantized_->source_hash()}
                                  : BaseIdentity{path_, base_->hash()},
                       adapter_->base_hash, adapter_path_);
  require_integer_base(*adapter_, quantized_.get(), adapter_path_);
}

const ModelConfig& ModelSession::config() const { return quantized_ ? quantized_->config() : base_->config(); }

std::string ModelSession::describe() const {
  std::string text = path_ + ": " + irq::describe(config());
  if (quantized_)
    text += strf(", %s%d%s", quantized_->format().kind == QuantKind::nf ? "NF" : "INT", quantized_->format().bits,
                 quantized_->format().shift == ShiftKind::tau ? " with ICQ" : "");
  else text += strf(", %s", name_of(base_->dtype()));
  if (adapter_)
    text += strf("; adapter %s: %s", adapter_path_.c_str(), adapter_->method.c_str()) +
            (adapter_->trains_scales() ? "" : strf(", rank %ld", adapter_->rank));
  return text;
}

ModelPlan ModelSession::model_plan(int64_t positions) const {
  ModelPlan p;
  p.config = config();
  p.positions = positions;
  p.quantized = quantized_ != nullptr;
  if (quantized_) p.format = quantized_->format();
  p.scales = adapter_ && adapter_->trains_scales();
  if (adapter_ && !p.scales) {
    p.lora = true;
    p.lora_config = {adapter_->rank,
                     adapter_->alpha,
                     0,
                     adapter_->targets,
                     has_tensor(*adapter_, ".beta1"),
                     has_tensor(*adapter_, ".beta2"),
                     adapter_->tile,
                     adapter_->pool};
  }
  return p;
}

MemoryPlan ModelSession::try_plan(const Workload& work, Residency residency) const {
  MemoryPlan plan{model_plan(work.positions), 0, 0, {}};
  plan.model.residency = residency;
  for (const auto* shapes : {&work.evaluate, &work.scores})
    for (const StepShape& s : *shapes) plan.max_labels = std::max(plan.max_labels, s.labels);
  CheckedBackend dry(backend_.device(), backend_.precision());
  Arena arena = Arena::planning(backend_.device());
  Trainer trainer(dry, arena, plan.model, plan.max_labels);
  const KvCache cache = push_cache(arena, config(), backend_.precision().storage, work);
  if (work.decode_rows > 0) Decoder(dry, arena, trainer.model(), cache, work.decode_rows).enqueue();
  stage_largest_matrix(arena, plan.model);
  for (const StepShape& s : work.evaluate) trainer.evaluate(hollow_batch(s));
  for (const StepShape& s : work.logits) trainer.logits(hollow_batch(s), work.cache_tokens > 0 ? &cache : nullptr);
  for (const StepShape& s : work.scores) trainer.row_losses(hollow_batch(s));
  plan.peak_bytes = arena.peak();
  plan.ledger = arena.ledger();
  return plan;
}

void ModelSession::throw_too_large(const MemoryPlan& plan, int64_t budget_bytes) const {
  std::string largest;
  for (size_t i = 0; i < std::min<size_t>(plan.ledger.size(), 3); ++i)
    largest += (i ? ", " : "") + plan.ledger[i].first + " " + human_bytes(static_cast<double>(plan.ledger[i].second));
  throw Error(path_ + ": does not fit into memory")
      .line("needed", human_bytes(static_cast<double>(plan.peak_bytes)) + " at the least: " + largest)
      .line("free", human_bytes(static_cast<double>(budget_bytes)))
      .line("try", quantized_ ? "shorter sequences (--window, --max-tokens), or --device cpu"
                              : "./irq_quantize " + path_ + " model.irq --bits 4    then use model.irq");
}

// Unpacked weights before large batches: dequantizing costs every pass the same, however few rows it has. Few rows on a GPU
// read the codes themselves, and then packed is fastest. A CPU gains nothing: taking codes apart costs more than reading.
std::vector<Residency> ModelSession::residencies(const std::vector<Workload>& choices) const {
  if (!quantized_) return {Residency::packed};
  if (backend_.device() == Device::CUDA && choices[0].decode_rows > 0) return {Residency::packed};
  return {Residency::cached, Residency::packed};
}

size_t ModelSession::load(const std::vector<Workload>& choices, const ByteProgress& progress, int64_t budget_bytes) {
  IRQ_CHECK(!arena_ && !choices.empty(), "%s is loaded once", path_.c_str());
  const int64_t free = backend_.free_bytes();
  const int64_t spare = backend_.device() == Device::CUDA ? int64_t{256} << 20 : free / 10;
  const int64_t budget = budget_bytes > 0 ? budget_bytes : free - spare;
  size_t chosen = choices.size();
  for (const Residency residency : residencies(choices))
    for (size_t i = 0; i < choices.size() && chosen == choices.size(); ++i) {
      plan_ = try_plan(choices[i], residency);
      if (plan_.peak_bytes <= budget) chosen = i;
    }
  if (chosen == choices.size()) throw_too_large(plan_, budget);

  arena_ = std::make_unique<Arena>(memory_.take(plan_.peak_bytes), plan_.peak_bytes, backend_.device());
  trainer_ = std::make_unique<Trainer>(backend_, *arena_, plan_.model, plan_.max_labels);
  cache_ = push_cache(*arena_, config(), backend_.precision().storage, choices[chosen]);
  Llama& model = trainer_->model();
  if (const int64_t rows = choices[chosen].decode_rows; rows > 0)
    decoder_ = std::make_unique<Decoder>(backend_, *arena_, model, cache_, rows);
  model.init_rope();
  if (quantized_) load_quantized(backend_, *arena_, model, *quantized_, progress);
  else load_base(backend_, model, *base_, progress);
  if (adapter_) {
    upload_adapter(backend_, model, *adapter_, adapter_path_);
    adapter_->tensors.clear();  // they are on the device now
  }
  model.refresh();
  return chosen;
}

std::pair<double, int64_t> ModelSession::evaluate(const Batch& batch) { return trainer_->evaluate(batch); }
std::vector<double> ModelSession::row_losses(const Batch& batch) { return trainer_->row_losses(batch); }
std::vector<double> ModelSession::row_losses(const Batch& batch, int64_t kept) {
  IRQ_CHECK(kept <= cache_.capacity && kept + batch.rows() <= cache_.passing_keys.rows, "%ld cached rows, %ld more",
            kept, batch.rows());
  cache_.kept = kept;
  std::vector<double> losses = trainer_->row_losses(batch, &cache_);
  cache_.kept = -1;
  return losses;
}
std::vector<float> ModelSession::logits(const Batch& batch) { return trainer_->logits(batch); }
std::vector<float> ModelSession::logits(const Batch& batch, std::vector<KvCache::Write> writes) {
  cache_.writes = std::move(writes);
  return trainer_->logits(batch, &cache_);
}

}  // namespace irq
