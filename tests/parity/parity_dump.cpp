// One training step of learning rate 0, written out: what tests/parity/parity.py compares with torch.
//   OUT/logits.npy (rows, V), OUT/loss.npy (1), OUT/NAME.npy for the gradient of every trained parameter NAME, all f64.
// TOKENS is a text file: one sequence a line, each token as ID:L with L = 1 where predicting this token counts.
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/device_memory.h"
#include "src/io/load_model.h"
#include "src/io/npy.h"
#include "src/train/trainer.h"
#include "tools/cli.h"

namespace irq {
namespace {

struct Options {
  std::string model, tokens, out, adapter, precision = "f32", recompute = "none", residency = "packed";
};

std::vector<Example> read_tokens(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error(path + ": cannot be read");
  std::vector<Example> sequences;
  for (std::string line; std::getline(file, line);) {
    Example x;
    std::istringstream words(line);
    int id, label;
    for (char colon; words >> id >> colon >> label;) {
      x.ids.push_back(id);
      x.trainable.push_back(label != 0);
    }
    if (!words.eof())
      throw Error(path + ": not a list of tokens").line("expected", "ID:L ID:L ...").line("found", line);
    if (!x.ids.empty()) sequences.push_back(x);
  }
  return sequences;
}

Batch pack_all(const std::vector<Example>& sequences) {
  std::vector<const Example*> pointers;
  std::vector<int32_t> numbers;
  for (const Example& x : sequences) {
    numbers.push_back(static_cast<int32_t>(pointers.size()));
    pointers.push_back(&x);
  }
  return pack(pointers, numbers);
}

// The same sequences with every row scored, the last token's too (its target is a token that nobody looks at).
Batch every_row(std::vector<Example> sequences) {
  for (Example& x : sequences) {
    x.ids.push_back(0);
    x.trainable.assign(x.ids.size(), 1);
  }
  return pack_all(sequences);
}

Precision parse_precision(const std::string& text) {
  if (text == "f64") return {DType::F64, DType::F64};
  if (text == "f32") return {DType::F32, DType::F32};
  return {DType::BF16, DType::F32};
}

std::vector<double> download(Backend& backend, const Tensor& t) {
  std::vector<double> values(static_cast<size_t>(t.numel()));
  if (t.dtype == DType::F64) {
    backend.download(values.data(), t);
    return values;
  }
  std::vector<float> narrow(values.size());
  backend.download(narrow.data(), t);
  return {narrow.begin(), narrow.end()};
}

// Every array of the file into its parameter, in the master precision (upload_adapter() knows F32 only).
void load_adapter(Backend& backend, Llama& model, const AdapterFile& adapter, const std::string& path) {
  ParamStore& params = model.params();
  if (adapter.tensors.size() != params.params().size())
    throw Error(
        strf("%s: %zu tensors for %zu parameters", path.c_str(), adapter.tensors.size(), params.params().size()));
  for (const NamedArray& a : adapter.tensors) {
    const int index = params.find(a.name);
    if (index < 0) throw Error(path + ": no such parameter: " + a.name);
    const Tensor t = params.value(index);
    IRQ_CHECK(t.rows == a.rows && t.cols == a.cols, "%s is (%ld, %ld)", a.name.c_str(), a.rows, a.cols);
    const std::vector<double> wide(a.data.begin(), a.data.end());
    backend.upload(t, t.dtype == DType::F64 ? static_cast<const void*>(wide.data()) : a.data.data());
  }
}

ModelPlan make_plan(const Options& o, const ModelConfig& config, const AdapterFile& adapter) {
  ModelPlan plan;
  plan.config = config;
  plan.training = true;
  plan.positions = config.max_seq;
  plan.full = o.adapter.empty();
  plan.scales = adapter.trains_scales(), plan.lora = !plan.full && !plan.scales;
  if (plan.lora) {
    const Method& method = find_method(adapter.method);
    plan.lora_config = {adapter.rank, adapter.alpha, adapter.dropout, adapter.targets,
                        method.u1,    method.u2,     adapter.tile,    adapter.pool};
  }
  plan.recompute = o.recompute == "block"     ? Recompute::block
                   : o.recompute == "gate_up" ? Recompute::gate_up
                                              : Recompute::none;
  plan.recompute_layers = config.layers;
  plan.residency = o.residency == "cached" ? Residency::cached : Residency::packed;
  return plan;
}

OptimizerConfig at_rest() {
  OptimizerConfig c;
  c.lr = 0, c.clip = 0;
  return c;
}

// The bytes that a step and the logits need.
int64_t measure(Backend& like, const ModelPlan& plan, const Batch& train, const Batch& all) {
  CheckedBackend dry(like.device(), like.precision());
  Arena arena = Arena::planning(like.device());
  Trainer trainer(dry, arena, plan, static_cast<int64_t>(all.label_rows.size()));
  stage_largest_matrix(arena, plan);
  trainer.step({train}, 1, at_rest());
  trainer.logits(all);
  return arena.peak();
}

void dump(const Options& o, const std::string& name, const std::vector<int64_t>& shape,
          const std::vector<double>& values) {
  write_npy(o.out + "/" + name + ".npy", NpyType::f64, shape, values.data());
}

int run(const Options& o, Backend& backend) {
  const bool quantized = sniff(o.model) == FileKind::quantized;
  std::unique_ptr<BaseReader> base;
  std::unique_ptr<IrqReader> packed;
  if (quantized) packed = std::make_unique<IrqReader>(o.model);
  else base = std::make_unique<BaseReader>(o.model);
  const AdapterFile adapter = o.adapter.empty() ? AdapterFile{} : read_adapter(o.adapter);
  const uint64_t hash = quantized ? packed->hash() : base->hash();
  if (!o.adapter.empty() && adapter.base_hash != hash)
    throw Error(o.adapter + ": made for another base")
        .line("expected", strf("hash %016lx", hash))
        .line("found", strf("hash %016lx", adapter.base_hash));

  ModelPlan plan = make_plan(o, quantized ? packed->config() : base->config(), adapter);
  plan.quantized = quantized;
  if (quantized) plan.format = packed->format();
  const std::vector<Example> sequences = read_tokens(o.tokens);
  const Batch train = pack_all(sequences), all = every_row(sequences);

  const int64_t bytes = measure(backend, plan, train, all);
  DeviceMemory memory(backend);
  Arena arena(memory.take(bytes), bytes, backend.device());
  Trainer trainer(backend, arena, plan, static_cast<int64_t>(all.label_rows.size()));
  Llama& model = trainer.model();
  model.init_rope();
  if (quantized) load_quantized(backend, arena, model, *packed);
  else load_base(backend, model, *base);
  if (plan.lora) load_adapter(backend, model, adapter, o.adapter);
  model.refresh();

  std::filesystem::create_directories(o.out);
  const std::vector<float> logits = trainer.logits(all);
  dump(o, "logits", {all.real_labels, plan.config.vocab}, {logits.begin(), logits.end()});
  const StepResult step = trainer.step({train}, 1, at_rest());
  dump(o, "loss", {1}, {step.loss});
  ParamStore& params = model.params();
  for (size_t i = 0; i < params.params().size(); ++i) {
    const Param& p = params.params()[i];
    dump(o, p.name, {p.rows, p.cols}, download(backend, params.grad_value(static_cast<int>(i))));
  }
  std::printf("%s, %s: loss %.9g of %ld labels in %ld rows, %zu gradients, norm %.6g\n", backend.describe().c_str(),
              o.precision.c_str(), step.loss, step.labels, step.tokens, params.params().size(), step.grad_norm);
  return 0;
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Cli cli("parity_dump", "write logits, loss and gradients of one step, for comparison with another implementation");
  Options o;
  cli.positional("MODEL", &o.model, "a .bin or .irq file");
  cli.positional("TOKENS", &o.tokens,
                 "a text file: one sequence a line, tokens as ID:L, L = 1 where the token is scored");
  cli.positional("OUT", &o.out, "a folder for the .npy files");
  cli.option("--adapter", &o.adapter, "a .lora file (absent: every parameter trains)");
  cli.option("--storage", &o.precision, "storage type (f64: CPU only, bf16: CUDA only)", {"f64", "f32", "bf16"});
  cli.option("--recompute", &o.recompute, "what backward makes again", {"none", "gate_up", "block"});
  cli.option("--residency", &o.residency, "how a .irq lies in memory", {"packed", "cached"});
  return cli.run(argc, argv, [&] {
    const Device device = cli.device() == "cuda" ? Device::CUDA : Device::CPU;
    return run(o, *make_backend(device, parse_precision(o.precision)));
  });
}
