#include "src/io/load_model.h"

#include <algorithm>

#include "src/io/float_pieces.h"
#include "src/quant/quantize.h"

namespace irq {
namespace {

// Host tensor of any float type -> device tensor of its own type.
void upload_as(Backend& backend, const Tensor& dst, const Tensor& src) {
  if (backend.dry()) return;
  if (dst.dtype == src.dtype) return backend.upload(dst, src.data);
  const int64_t n = src.numel();
  std::vector<unsigned char> converted(static_cast<size_t>(n * size_of(dst.dtype)));
  if (dst.dtype == DType::F64) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; ++i) {
      const double d = value_at(src.data, src.dtype, i);
      std::memcpy(converted.data() + 8 * i, &d, 8);
    }
  } else {
    convert_values(converted.data(), dst.dtype, src.data, src.dtype, n);
  }
  backend.upload(dst, converted.data());
}

// A plain tensor of the file. Rows that the model has beyond it are [PAD] (ModelPlan::pad_row): the mean, then zeros.
void upload_plain(Backend& backend, const Tensor& dst, const Tensor& src) {
  const int64_t extra = dst.rows - src.rows;
  if (extra == 0 || backend.dry()) return upload_as(backend, dst, src);
  upload_as(backend, dst.slice_rows(0, src.rows), src);
  std::vector<float> rows(static_cast<size_t>(extra * src.cols), 0.0f);
  constexpr int64_t kStrip = 64;  // columns at a time: whole cache lines of every row
#pragma omp parallel for
  for (int64_t begin = 0; begin < src.cols; begin += kStrip) {
    const int64_t n = std::min(kStrip, src.cols - begin);
    double sum[kStrip] = {};
    for (int64_t row = 0; row < src.rows; ++row)
      for (int64_t i = 0; i < n; ++i)
        sum[i] += static_cast<double>(value_at(src.data, src.dtype, row * src.cols + begin + i));
    for (int64_t i = 0; i < n; ++i)
      rows[static_cast<size_t>(begin + i)] = static_cast<float>(sum[i] / static_cast<double>(src.rows));
  }
  upload_as(backend, dst.slice_rows(src.rows, extra), make_view(rows.data(), DType::F32, extra, src.cols, "[PAD]"));
}

// Where a plain weight goes: its master when it is trained, else its place on the device.
Tensor destination(Llama& model, const Weight& w) { return w.param >= 0 ? model.params().value(w.param) : w.value; }
Tensor destination(Llama& model, const LinearGroup& g, const LinearPart& part) {
  const Tensor stacked = g.param_weight >= 0 ? model.params().value(g.param_weight) : g.resident;
  return stacked.slice_rows(part.row, part.out).slice_cols(0, g.in);
}

// Calls f(name) for every tensor in file order.
template <class Plain, class Matrix>
void for_each(Llama& model, Plain&& plain, Matrix&& matrix) {
  plain("embed", model.embed());
  for (size_t l = 0; l < model.layers().size(); ++l) {
    Layer& layer = model.layers()[l];
    const std::string prefix = strf("layers.%zu.", l);
    const auto group = [&](LinearGroup& g) {
      for (LinearPart& part : g.parts) matrix(prefix + part.name, g, part);
    };
    plain(prefix + "attn_norm", layer.attn_norm);
    group(layer.qkv), group(layer.o);
    plain(prefix + "ffn_norm", layer.ffn_norm);
    group(layer.gate_up), group(layer.down);
  }
  plain("norm", model.norm());
  if (!model.config().tied) plain("head", model.head());
}

void upload_packed(Backend& backend, QuantizedMatrix dst, QuantizedMatrix src) {
  const auto to = matrix_parts(dst), from = matrix_parts(src);
  for (size_t i = 0; i < to.size(); ++i) upload_as(backend, *to[i].tensor, *from[i].tensor);  // trained scales: masters
  if (dst.uses_map()) backend.upload(dst.map, src.map.data);
}

}  // namespace

void load_base(Backend& backend, Llama& model, BaseSource& source, const ByteProgress& progress) {
  int64_t done = 0;
  const int64_t all = source.layout().payload_bytes();
  const auto put = [&](const std::string& name, const Tensor& dst) {
    const Tensor src = source.tensor(name);
    upload_plain(backend, dst, src);
    done += src.bytes();
    source.dont_need(name);
    if (progress) progress(done, all);
  };
  for_each(
      model, [&](const std::string& name, const Weight& w) { put(name, destination(model, w)); },
      [&](const std::string& name, const LinearGroup& g, const LinearPart& part) {
        put(name, destination(model, g, part));
      });
  if (model.plan().full) model.refresh();
}

QuantizedMatrix take_packed(Arena& arena, const QuantFormat& format, int64_t rows, int64_t cols) {
  QuantizedMatrix q;
  q.rows = rows, q.cols = cols, q.format = format;
  for (const MatrixPart& part : matrix_parts(q))
    *part.tensor = arena.take("matrix being loaded", part.dtype, 1, part.count);
  q.map = arena.take("matrix being loaded", DType::F32, 1, 256);
  return q;
}

void give_packed(Arena& arena, QuantizedMatrix& q) {
  for (const MatrixPart& part : matrix_parts(q)) arena.give(*part.tensor);
  arena.give(q.map);
}

void stage_largest_matrix(Arena& arena, const ModelPlan& plan) {
  if (!plan.quantized || plan.packs(0)) return;
  for (const LinearShape& s : layer_linears(plan.config)) {
    QuantizedMatrix q = take_packed(arena, plan.format, s.out, s.in);
    give_packed(arena, q);
  }
}

void load_quantized(Backend& backend, Arena& arena, Llama& model, IrqReader& source, const ByteProgress& progress) {
  int64_t done = 0;
  const int64_t all = source.layout().payload_bytes();
  for_each(
      model,
      [&](const std::string& name, const Weight& w) {
        const Tensor src = source.tensor(name);
        upload_plain(backend, destination(model, w), src);
        done += src.bytes();
        source.dont_need(name);
        if (progress) progress(done, all);
      },
      [&](const std::string& name, const LinearGroup& g, const LinearPart& part) {
        const QuantizedMatrix src = source.matrix(name);
        if (part.quantized) {
          upload_packed(backend, part.packed, src);
        } else {
          QuantizedMatrix staged = take_packed(arena, src.format, src.rows, src.cols);
          upload_packed(backend, staged, src);
          dequantize(backend, destination(model, g, part), staged);
          backend.synchronize();
          give_packed(arena, staged);
        }
        done += src.codes.bytes();
        source.dont_need(name);
        if (progress) progress(done, all);
      });
}

std::vector<NamedArray> download_params(Backend& backend, ParamStore& params) {
  std::vector<NamedArray> arrays;
  for (size_t i = 0; i < params.params().size(); ++i) {
    const Param& p = params.params()[i];
    NamedArray a{p.name, p.rows, p.cols, std::vector<float>(static_cast<size_t>(p.rows * p.cols))};
    IRQ_CHECK(params.values().dtype == DType::F32, "only f32 masters are saved");
    backend.download(a.data.data(), params.value(static_cast<int>(i)));
    arrays.push_back(std::move(a));
  }
  return arrays;
}

void upload_adapter(Backend& backend, Llama& model, const AdapterFile& adapter, const std::string& path) {
  ParamStore& params = model.params();
  if (adapter.trains_scales() && adapter.tensors.size() != params.params().size())  // a scale of 0 would pass unseen
    throw Error(path + ": this adapter does not fit the model")
        .line("expected", strf("the scales of %zu linears", params.params().size()))
        .line("found", std::to_string(adapter.tensors.size()));
  backend.fill(params.values(), 0);
  for (const NamedArray& a : adapter.tensors) {
    const int index = params.find(a.name);
    const Param* p = index < 0 ? nullptr : &params.params()[static_cast<size_t>(index)];
    if (p == nullptr || p->rows != a.rows || p->cols != a.cols)
      throw Error(path + ": this adapter does not fit the model")
          .line("tensor", strf("%s (%ld, %ld)", a.name.c_str(), a.rows, a.cols))
          .line("expected", p ? strf("(%ld, %ld)", p->rows, p->cols) : "no tensor of that name")
          .line("likely", "it was trained on another model, or with other target modules")
          .line("try", "./irq_inspect " + path);
    backend.upload(params.value(index), a.data.data());
  }
}

void write_model(Backend& backend, Llama& model, const std::string& path, DType dtype) {
  BaseWriter writer(path, model.config(), dtype);
  std::vector<float> values;
  std::vector<unsigned char> rounded;
  const auto put = [&](const std::string& name, const Tensor& src) {
    const TensorSpec* spec = writer.layout().find(name);
    values.resize(static_cast<size_t>(src.numel()));
    backend.download(values.data(), src);
    if (spec->dtype == DType::F32) return writer.write(name, values.data(), spec->bytes());
    rounded.resize(static_cast<size_t>(spec->bytes()));
    convert_values(rounded.data(), spec->dtype, values.data(), DType::F32, src.numel());
    writer.write(name, rounded.data(), spec->bytes());
  };
  for_each(
      model, [&](const std::string& name, const Weight& w) { put(name, destination(model, w)); },
      [&](const std::string& name, const LinearGroup& g, const LinearPart& part) {
        put(name, destination(model, g, part));
      });
  writer.finish();
}

}  // namespace irq
