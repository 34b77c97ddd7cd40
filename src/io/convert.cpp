#include "src/io/convert.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <future>

#include "src/core/check.h"
#include "src/core/clock.h"
#include "src/core/interrupt.h"
#include "src/io/float_pieces.h"

namespace irq {
namespace {

constexpr int64_t kPieceValues = int64_t{4} << 20;

std::string coordinates(int64_t index, int64_t cols) { return strf("row %ld, column %ld", index / cols, index % cols); }

// One tensor after the other into the file: a piece is read, checked and converted while the one before it is written.
class Converter {
 public:
  Converter(BaseWriter& writer, ConvertSummary& summary, const ByteProgress& progress)
      : writer_(writer), summary_(summary), progress_(progress) {}

  void run(ImportedModel& in, const TensorSpec& spec) {
    const Tensor from = in.tensor(spec.name);
    IRQ_CHECK(from.rows == spec.rows && from.cols == spec.cols && from.contiguous(), "%s: (%ld, %ld) for (%ld, %ld)",
              spec.name.c_str(), from.rows, from.cols, spec.rows, spec.cols);
    for (int64_t begin = 0; begin < from.numel(); begin += kPieceValues) {
      throw_if_interrupted();
      const int64_t count = std::min(kPieceValues, from.numel() - begin);
      const void* piece = prepare(from, begin, count, spec.dtype);
      wait();
      in.advance(begin * size_of(from.dtype));  // what the writer has just finished with
      writing_ = std::async(std::launch::async, [this, &spec, piece, count] {
        writer_.write(spec.name, piece, count * size_of(spec.dtype));
      });
      written_ += count * size_of(spec.dtype);
      if (progress_) progress_(written_, writer_.layout().payload_bytes());
    }
    wait();  // the view ends with the next call of tensor()
    summary_.source_bytes += from.bytes();
    ++summary_.tensors;
  }

 private:
  // The piece in the file's type: the view itself where that is its type already.
  const void* prepare(const Tensor& from, int64_t begin, int64_t count, DType to) {
    const char* values = static_cast<const char*>(from.data) + begin * size_of(from.dtype);
    if (const int64_t bad = first_not_finite(values, from.dtype, count); bad >= 0)
      throw Error(std::string(from.name) + ": a weight is not a finite number")
          .line("found", "NaN or infinity in " + coordinates(begin + bad, from.cols))
          .line("likely", "a damaged file, or a training run that diverged")
          .line("try", "download the model again, or take an earlier checkpoint of it");
    if (from.dtype == to) return values;
    std::vector<char>& buffer = buffers_[turn_ ^= 1];  // the other one is being written
    buffer.resize(static_cast<size_t>(kPieceValues * size_of(to)));
    convert_values(buffer.data(), to, values, from.dtype, count);
    if (const int64_t bad = first_not_finite(buffer.data(), to, count); bad >= 0) {
      float value = 0;
      convert_values(&value, DType::F32, values + bad * size_of(from.dtype), from.dtype, 1);
      throw Error(std::string(from.name) + ": a weight is too large for " + name_of(to))
          .line("found", strf("%g in ", static_cast<double>(value)) + coordinates(begin + bad, from.cols))
          .line("expected", to == DType::F16 ? "less than 65,520 in size" : "less than 3.39e38 in size")
          .line("try", to == DType::F16 ? "--dtype bf16 or --dtype f32" : "--dtype f32");
    }
    return buffer.data();
  }
  void wait() {
    if (writing_.valid()) writing_.get();
  }

  BaseWriter& writer_;
  ConvertSummary& summary_;
  const ByteProgress& progress_;
  std::vector<char> buffers_[2];
  int turn_ = 0;
  int64_t written_ = 0;
  std::future<void> writing_;  // last: its destructor waits for the thread that uses the rest
};

}  // namespace

ConvertSummary convert(ImportedModel& in, const std::string& out_path, std::optional<DType> dtype,
                       const ByteProgress& progress) {
  const double start = now_seconds();
  ConvertSummary summary;
  summary.dtype = dtype.value_or(in.dtype());
  const std::vector<SideFile> side_files = in.side_files();  // a broken one is an error before the long part
  BaseWriter writer(out_path, in.config(), summary.dtype);
  Converter converter(writer, summary, progress);
  for (const TensorSpec& spec : writer.layout().tensors()) converter.run(in, spec);
  summary.hash = writer.finish();
  summary.file_bytes = static_cast<int64_t>(std::filesystem::file_size(out_path));
  summary.seconds = now_seconds() - start;
  summary.notes = write_side_files(side_files, out_path);
  return summary;
}

}  // namespace irq
