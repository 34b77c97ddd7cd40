#include "src/train/quantize_pipeline.h"

#include <algorithm>

#include "kernels/device_memory.h"
#include "kernels/nf_codebook.h"
#include "src/core/clock.h"
#include "src/core/interrupt.h"
#include "src/io/float_pieces.h"
#include "src/model/method.h"

namespace irq {
namespace {

// Adds the seconds of its life to `sum`.
class Timed {
 public:
  explicit Timed(double& sum) : sum_(sum), start_(now_seconds()) {}
  ~Timed() { sum_ += now_seconds() - start_; }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  double& sum_;
  double start_;
};

// Embeddings and norms are copied, not quantized: nothing else would notice.
void require_finite(const Piece& piece, const TensorSpec& tensor, const std::string& source) {
  const int64_t size = size_of(piece.dtype), at = first_not_finite(piece.data.get(), piece.dtype, piece.bytes / size);
  if (at < 0) return;
  reject_weight(source + ": " + tensor.name, tensor.cols, piece.offset / size + at,
                value_at(piece.data.get(), piece.dtype, at));
}

}  // namespace

// Device memory for the largest matrix: as the source holds it, as F32, and quantized.
class QuantizePipeline::DeviceBuffers {
 public:
  DeviceBuffers(Backend& backend, const BaseSource& in, const QuantFormat& format) : backend_(backend) {
    int64_t source = 0, wide = 0, packed = 0;
    for (const LinearShape& s : layer_linears(in.config())) {
      source = std::max(source, s.out * s.in * size_of(in.dtype()));
      wide = std::max(wide, s.out * s.in * size_of(DType::F32));
      packed = std::max(packed, placed_bytes(s.out, s.in, format));
    }
    map_ = memory_.take(DType::F32, 1, 256, "map");
    wide_ = memory_.take(wide);
    if (in.dtype() != DType::F32) source_ = memory_.take(source);
    packed_ = memory_.take(packed);
    backend.upload(map_, dynamic_map().data());
  }

  // Where a matrix (rows, cols) of this type goes; F32: where it is quantized from.
  Tensor room(DType dtype, int64_t rows, int64_t cols, const char* name) {
    return make_view(dtype == DType::F32 ? wide_ : source_, dtype, rows, cols, name, backend_.device());
  }
  QuantizedMatrix place(int64_t rows, int64_t cols, const QuantFormat& format) {
    return place_quantized(packed_, rows, cols, format, map_, backend_.device());
  }

 private:
  Backend& backend_;
  DeviceMemory memory_{backend_};
  Tensor map_;
  void *source_ = nullptr, *wide_ = nullptr, *packed_ = nullptr;
};

QuantizePipeline::QuantizePipeline(Backend& backend, BaseSource& in, const std::string& out_path,
                                   const QuantizeOptions& options)
    : backend_(backend),
      in_(in),
      out_path_(out_path),
      options_(options),
      start_(now_seconds()),
      info_(quantized_info(in, options)),
      writer_(out_path, info_),
      device_(std::make_unique<DeviceBuffers>(backend, in, info_.format)),
      quantizer_(backend),
      loftq_spec_(options.loftq.value_or(LoftqSpec{.targets = 0})),
      loftq_(backend, loftq_spec_),
      stream_(in.stream(backend.device())) {
  IRQ_CHECK(options.format != BaseFormat::gptq, "GPTQ sees more than one matrix at a time");
  begin_summary(summary_, options.bits);
}

QuantizePipeline::~QuantizePipeline() = default;

void QuantizePipeline::run(const QuantizeProgress& progress) {
  for (const TensorSpec& tensor : in_.layout().tensors()) {
    throw_if_interrupted();
    const int64_t linear = linear_index(in_.config(), tensor.name);
    if (linear < 0) {
      copy(tensor);
      continue;
    }
    quantize(tensor, linear);
    if (progress) progress(static_cast<int64_t>(summary_.matrices.size()), 7 * in_.config().layers, tensor.name);
  }
  wait_for_writer();
}

QuantizeSummary QuantizePipeline::finish() {
  {
    const Timed timed(summary_.times.finish);
    summary_.hash = writer_.finish();
  }
  end_summary(summary_, out_path_);
  summary_.seconds = now_seconds() - start_;
  return std::move(summary_);
}

// From the ring to the file.
void QuantizePipeline::copy(const TensorSpec& tensor) {
  QuantizeTimes& times = summary_.times;
  double inside = 0;
  const double began = now_seconds();
  stream_->read(tensor, [&](const Piece& piece) {
    const Timed timed(inside);
    {
      const Timed checking(times.check);
      require_finite(piece, tensor, in_.path());
    }
    write_behind([this, piece, name = tensor.name] { writer_.write(name, piece.data.get(), piece.bytes); });
  });
  times.read += now_seconds() - began - inside;
}

void QuantizePipeline::quantize(const TensorSpec& tensor, int64_t linear) {
  QuantizeTimes& times = summary_.times;
  const auto on_device = [&times] { return times.upload + times.compute + times.download; };
  const double before = on_device();
  const std::string shown = in_.path() + ": " + tensor.name;
  Tensor w;
  const int64_t source_bytes = load(tensor, &w, shown.c_str());
  QuantizedMatrix q = device_->place(tensor.rows, tensor.cols, info_.format);
  const bool adapted = loftq_spec_.targets >> (linear % 7) & 1u;
  const QuantizeStats stats = compute(q, w, adapted);
  MatrixImage& image = images_[summary_.matrices.size() % 2];
  download(image, q, adapted ? loftq_.quantizer() : quantizer_);
  if (adapted) take_factors(tensor.name);
  write_behind([this, &image, name = tensor.name, stats] {
    auto counting =
        std::async(std::launch::async, [&] { count_entropies(summary_, image.entropy_plain, image.entropy); });
    writer_.write_matrix(name, image.q, stats.entropy_plain, stats.entropy);
    counting.get();
  });
  add_matrix(summary_,
             {tensor.name, tensor.rows, tensor.cols, stats.entropy_plain, stats.entropy, stats.error_plain, stats.error,
              on_device() - before, adapted ? loftq_.steps() : std::vector<LoftqStep>{}},
             source_bytes, quantized_bytes(tensor.rows, tensor.cols, info_.format));
}

// The matrix on the device in F32, as *w; returns its bytes in the source.
int64_t QuantizePipeline::load(const TensorSpec& tensor, Tensor* w, const char* shown) {
  QuantizeTimes& times = summary_.times;
  const double began = now_seconds(), uploads_before = times.upload;
  int64_t bytes = 0;
  Tensor as_is;
  stream_->read(tensor, [&](const Piece& piece) {
    const Timed timed(times.upload);
    const int64_t size = size_of(piece.dtype);
    as_is = device_->room(piece.dtype, tensor.rows, tensor.cols, shown);
    backend_.upload(as_is.flat().slice_cols(piece.offset / size, piece.bytes / size), piece.data.get());
    bytes += piece.bytes;
  });
  times.read += now_seconds() - began - (times.upload - uploads_before);
  *w = device_->room(DType::F32, tensor.rows, tensor.cols, shown);
  if (as_is && as_is.dtype != DType::F32) backend_.copy(*w, as_is);
  return bytes;
}

QuantizeStats QuantizePipeline::compute(const QuantizedMatrix& q, const Tensor& w, bool adapted) {
  const Timed timed(summary_.times.compute);
  if (adapted) return loftq_.run(q, w);
  if (options_.format == BaseFormat::nf)
    return quantizer_.run(q, w, options_.icq ? &options_.spec : nullptr, options_.errors);
  return quantizer_.run_integer(q, w, integer_spec(options_), options_.errors);
}

void QuantizePipeline::download(MatrixImage& image, QuantizedMatrix& device, const Quantizer& quantizer) {
  const Timed timed(summary_.times.download);
  const int64_t packed = placed_bytes(device.rows, device.cols, device.format);
  const int64_t plain = quantizer.entropy_plain().bytes(), stored = quantizer.entropy().bytes();
  if (const int64_t bytes = packed + plain + stored; bytes > image.bytes) {
    image.memory.reset();
    image.memory.emplace(backend_.device(), bytes);
    image.bytes = bytes;
  }
  const Tensor map = make_view(const_cast<float*>(dynamic_map().data()), DType::F32, 1, 256, "map");
  unsigned char* memory = image.memory->data();
  image.q = place_quantized(memory, device.rows, device.cols, device.format, map, Device::CPU);
  const auto from = matrix_parts(device), to = matrix_parts(image.q);
  for (size_t i = 0; i < from.size(); ++i) backend_.download(to[i].tensor->data, *from[i].tensor);
  const auto take = [&](unsigned char* to, const Tensor& t) {
    backend_.download(to, t);
    return std::span(reinterpret_cast<float*>(to), static_cast<size_t>(t.numel()));
  };
  image.entropy_plain = take(memory + packed, quantizer.entropy_plain());
  image.entropy = take(memory + packed + plain, quantizer.entropy());
}

void QuantizePipeline::take_factors(const std::string& name) {
  for (const auto& [part, t] : {std::pair<const char*, Tensor>{".A", loftq_.right()}, {".B", loftq_.left()}}) {
    NamedArray array{name + part, t.rows, t.cols, {}};
    array.data.resize(static_cast<size_t>(t.numel()));
    backend_.download(array.data.data(), t);
    summary_.factors.push_back(std::move(array));
  }
}

void QuantizePipeline::wait_for_writer() {
  const Timed timed(summary_.times.write);
  if (writing_.valid()) writing_.get();
}

// One job at a time, in the order of the calls; an exception of the last one is thrown here. What a job holds goes with it.
void QuantizePipeline::write_behind(std::function<void()> job) {
  wait_for_writer();
  writing_ = std::async(std::launch::async, [this, job = std::move(job)] {
    const Timed timed(summary_.times.writing);
    job();
  });
}

}  // namespace irq
