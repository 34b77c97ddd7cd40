#include "src/train/gptq_base.h"

#include <algorithm>
#include <numeric>

#include "kernels/device_memory.h"
#include "src/core/clock.h"
#include "src/core/hash.h"
#include "src/core/interrupt.h"
#include "src/core/rng.h"
#include "src/io/float_pieces.h"
#include "src/model/rope_tables.h"
#include "src/ops/plain_layer.h"
#include "src/quant/gptq.h"

namespace irq {
namespace {

constexpr int64_t kChunkRows = 8192;  // rows that go through a layer at once, unless a sequence is longer

// Sequences packed into batches of at most `most` rows each.
std::vector<Batch> pack_chunks(const std::vector<std::vector<int32_t>>& sequences, int64_t most) {
  std::vector<Batch> chunks;
  std::vector<Example> examples;
  int64_t rows = 0;
  const auto flush = [&] {
    std::vector<const Example*> all;
    for (const Example& e : examples) all.push_back(&e);
    if (!all.empty()) chunks.push_back(pack(all, std::vector<int32_t>(all.size(), 0)));
    examples.clear(), rows = 0;
  };
  for (const std::vector<int32_t>& ids : sequences) {
    const auto length =
        static_cast<int64_t>(ids.size()) - 1;  // the last token is read by no linear: pack() leaves it out
    if (rows + length > most) flush();
    examples.push_back({ids, std::vector<uint8_t>(ids.size(), 0)}), rows += length;
  }
  flush();
  return chunks;
}

PlainShape shape_of(const ModelConfig& c) { return {c.dim, c.ffn, c.heads, c.kv_heads, c.head_dim, c.norm_eps}; }

// The calibration data on its way through the model.
class Stream {
 public:
  Stream(Backend& backend, const ModelConfig& config, const Calibration& calibration)
      : backend_(backend), config_(config), memory_(backend) {
    const DType storage = backend.precision().storage, master = backend.precision().master;
    int64_t longest = 0, rows = 0;
    for (const auto& ids : calibration.sequences) longest = std::max(longest, static_cast<int64_t>(ids.size()) - 1);
    chunks_ = pack_chunks(calibration.sequences, std::max(kChunkRows, longest));
    for (const Batch& b : chunks_) rows += b.rows(), most_rows_ = std::max(most_rows_, b.rows());
    x_ = memory_.take(storage, rows, config.dim, "residual stream");
    const Tensor tokens = memory_.take(DType::I32, 1, rows, "tokens");
    int64_t row = 0;
    for (const Batch& b : chunks_) {
      PlainRows r;
      r.x = x_.slice_rows(row, b.rows());
      r.positions = memory_.take(DType::I32, 1, b.rows(), "positions");
      r.seqs = memory_.take(DType::I32, static_cast<int64_t>(b.seqs.size()), 6, "sequences");
      tokens_.push_back(tokens.slice_cols(row, b.rows()));
      backend.upload(tokens_.back(), b.tokens.data());
      backend.upload(r.positions, b.positions.data());
      backend.upload(r.seqs, b.seqs.data());
      rows_.push_back(r);
      row += b.rows();
    }
    const RopeTables rope = rope_tables(config, longest);
    const Tensor cosines = memory_.take(master, longest, config.head_dim / 2, "cos"),
                 sines = memory_.take(master, longest, config.head_dim / 2, "sin");
    put(cosines, rope.cosines), put(sines, rope.sines);
    layer_ = std::make_unique<PlainLayer>(backend, shape_of(config), most_rows_, cosines, sines);
    sequences_ = static_cast<double>(calibration.sequences.size());
  }

  void embed(const Tensor& host_table) {
    DeviceMemory room(backend_);
    const DType storage = backend_.precision().storage;
    const Tensor table = room.take(storage, host_table.rows, host_table.cols, "embed");
    load(table, host_table, room);
    for (size_t i = 0; i < rows_.size(); ++i) layer_->embed(rows_[i].x, table, tokens_[i]);
    backend_.synchronize();  // the table goes now
  }
  void set_norm(bool attention, const Tensor& host) {
    DeviceMemory room(backend_);
    load(attention ? layer_->attn_norm() : layer_->ffn_norm(), host, room);
    backend_.synchronize();
  }
  // H of the inputs of stage 0 to 3: q|k|v, o, gate|up, down. All weights of the stages before are in place.
  void measure(GptqSolver& solver, int stage) {
    for (const PlainRows& r : rows_) {
      if (stage == 2) layer_->add_attention(r);
      const Tensor x = stage == 0   ? layer_->input_of_qkv(r)
                       : stage == 1 ? layer_->input_of_o(r)
                       : stage == 2 ? layer_->input_of_gate_up(r)
                                    : layer_->input_of_down(r);
      solver.measure(x, 2 / sequences_);
    }
  }
  void leave_layer() {
    for (const PlainRows& r : rows_) layer_->add_ffn(r);
  }
  Tensor weight(int linear) const { return layer_->weight(linear); }

 private:
  void load(const Tensor& to, const Tensor& host, DeviceMemory& room) {
    if (to.dtype == host.dtype) return backend_.upload(to, host.data);
    const Tensor as_is = room.take(host.dtype, host.rows, host.cols, host.name);
    backend_.upload(as_is, host.data);
    backend_.copy(to, as_is);
  }
  void put(const Tensor& t, const std::vector<double>& values) {
    if (t.dtype == DType::F64) return backend_.upload(t, values.data());
    const std::vector<float> narrow(values.begin(), values.end());
    backend_.upload(t, narrow.data());
  }

  Backend& backend_;
  const ModelConfig& config_;
  DeviceMemory memory_;
  std::vector<Batch> chunks_;
  std::vector<PlainRows> rows_;
  std::vector<Tensor> tokens_;
  Tensor x_;
  int64_t most_rows_ = 0;
  double sequences_ = 1;
  std::unique_ptr<PlainLayer> layer_;
};

// One matrix after the other through the device and into the file.
class Matrices {
 public:
  Matrices(Backend& backend, const ModelConfig& config, const QuantFormat& format)
      : backend_(backend), format_(format), memory_(backend) {
    int64_t weights = 0, packed = 0, rows = 0, cols = 0;
    for (const LinearShape& s : layer_linears(config)) {
      weights = std::max(weights, s.out * s.in), packed = std::max(packed, placed_bytes(s.out, s.in, format));
      rows = std::max(rows, s.out), cols = std::max(cols, s.in);
    }
    wide_ = memory_.take(DType::F32, 1, weights, "W");
    narrow_ = memory_.take(DType::U8, 1, weights * size_of(DType::F32), "W as stored");
    packed_ = memory_.take(DType::U8, 1, packed, "packed");
    solver_ = std::make_unique<GptqSolver>(backend);
    solver_->reserve(rows, cols, weights);
  }
  GptqSolver& solver() { return *solver_; }

  QuantizeStats run(const Tensor& host, const char* shown, const Tensor& dequantized, const IntSpec& spec,
                    const GptqOptions& options) {
    Tensor w = wide_.slice_cols(0, host.numel()).reshape(host.rows, host.cols);
    w.name = shown;
    const Tensor as_is = make_view(narrow_.data, host.dtype, host.rows, host.cols, shown, backend_.device());
    backend_.upload(as_is, host.data);
    backend_.copy(w, as_is);
    q_ = place_quantized(packed_.data, host.rows, host.cols, format_, {}, backend_.device());
    const QuantizeStats stats = solver_->run(q_, w, spec, options);
    dequantize(backend_, dequantized, q_);
    return stats;
  }
  void write(IrqWriter& writer, const std::string& name, const QuantizeStats& stats) {
    host_.resize(static_cast<size_t>(placed_bytes(q_.rows, q_.cols, format_)));
    QuantizedMatrix host = place_quantized(host_.data(), q_.rows, q_.cols, format_, {}, Device::CPU);
    const auto from = matrix_parts(q_), to = matrix_parts(host);
    for (size_t i = 0; i < from.size(); ++i) backend_.download(to[i].tensor->data, *from[i].tensor);
    writer.write_matrix(name, host, stats.entropy_plain, stats.entropy);
  }
  std::vector<float> on_host(const Tensor& t) {
    std::vector<float> values(static_cast<size_t>(t.numel()));
    backend_.download(values.data(), t);
    return values;
  }

 private:
  Backend& backend_;
  QuantFormat format_;
  DeviceMemory memory_;
  Tensor wide_, narrow_, packed_;
  QuantizedMatrix q_;
  std::vector<char> host_;
  std::unique_ptr<GptqSolver> solver_;
};

void require_finite(const Tensor& host, const std::string& name) {
  const int64_t at = first_not_finite(host);
  if (at >= 0) reject_weight(name, host.cols, at, value_at(host.data, host.dtype, at));
}

}  // namespace

Calibration choose_calibration(const std::vector<Example>& examples, int64_t samples, int64_t length, uint64_t seed,
                               const std::string& subject) {
  std::vector<size_t> order(examples.size());
  std::iota(order.begin(), order.end(), size_t{0});
  Rng rng(seed);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
  Calibration c;
  Hasher hasher;
  for (const size_t i : order) {
    std::vector<int32_t> ids = examples[i].ids;
    const int64_t room = std::min(length, samples * length - c.tokens);
    if (room < 1) break;
    if (static_cast<int64_t>(ids.size()) > room + 1) ids.resize(static_cast<size_t>(room) + 1);  // one more: see pack()
    if (ids.size() < 2) continue;
    hasher.update(ids.data(), ids.size() * sizeof(ids[0]));
    c.tokens += static_cast<int64_t>(ids.size()) - 1;
    c.sequences.push_back(std::move(ids));
  }
  if (c.sequences.empty())
    throw Error(subject + ": nothing to calibrate GPTQ on")
        .line("expected", "an example of at least two tokens")
        .line("try", "another --calibration file");
  c.hash = hasher.digest();
  return c;
}

QuantizeSummary gptq_base(Backend& backend, BaseSource& in, const std::string& out_path, const QuantizeOptions& options,
                          const QuantizeProgress& progress) {
  const double start = now_seconds();
  const ModelConfig& config = in.config();
  const IrqInfo info = quantized_info(in, options);
  const IntSpec spec = integer_spec(options);
  const GptqOptions gptq{options.act_order, options.fresh};
  IrqWriter writer(out_path, info);
  Stream stream(backend, config, options.calibration);
  Matrices matrices(backend, config, info.format);
  QuantizeSummary summary;
  begin_summary(summary, options.bits);
  constexpr int kStageOf[7] = {0, 0, 0, 1, 2, 2, 3};  // linears of one stage share their input
  for (const TensorSpec& tensor : in.layout().tensors()) {
    throw_if_interrupted();
    const Tensor host = in.tensor(tensor.name);
    const std::string shown = in.path() + ": " + tensor.name;
    const int64_t index = linear_index(config, tensor.name);
    if (index < 0) {
      require_finite(host, shown);
      if (tensor.name == "embed") stream.embed(host);
      if (tensor.name.ends_with(".attn_norm")) stream.set_norm(true, host);
      if (tensor.name.ends_with(".ffn_norm")) stream.set_norm(false, host);
      writer.write(tensor.name, host.data, host.bytes());
      in.dont_need(tensor.name);
      continue;
    }
    const double began = now_seconds();
    const auto linear = static_cast<int>(index % 7);
    if (linear == 0 || kStageOf[linear] != kStageOf[linear - 1]) {
      matrices.solver().begin(host.cols);
      stream.measure(matrices.solver(), kStageOf[linear]);
      matrices.solver().factorize(shown.c_str(), gptq);
    }
    const QuantizeStats stats = matrices.run(host, shown.c_str(), stream.weight(linear), spec, gptq);
    matrices.write(writer, tensor.name, stats);
    if (linear == 6 && index / 7 + 1 < config.layers) stream.leave_layer();
    MatrixReport report;
    report.name = tensor.name, report.rows = host.rows, report.cols = host.cols;
    report.entropy_plain = stats.entropy_plain, report.entropy = stats.entropy;
    report.seconds = now_seconds() - began;
    add_matrix(summary, report, host.bytes(), quantized_bytes(host.rows, host.cols, info.format));
    count_entropies(summary, matrices.on_host(matrices.solver().entropy_plain()),
                    matrices.on_host(matrices.solver().entropy()));
    in.dont_need(tensor.name);
    if (progress) progress(static_cast<int64_t>(summary.matrices.size()), 7 * config.layers, tensor.name);
  }
  summary.hash = writer.finish();
  end_summary(summary, out_path);
  summary.seconds = now_seconds() - start;
  return summary;
}

QuantizeSummary quantize_as_asked(Backend& backend, BaseSource& in, const std::string& out_path,
                                  const QuantizeOptions& options, const QuantizeProgress& progress) {
  return options.format == BaseFormat::gptq ? gptq_base(backend, in, out_path, options, progress)
                                            : quantize_base(backend, in, out_path, options, progress);
}

}  // namespace irq
