#include "bench/variants.h"

#include <algorithm>
#include <cstdio>
#include <optional>

#include "bench/compare.h"
#include "bench/op_row.h"
#include "tests/cases/attention.h"
#include "tests/cases/nfk.h"

namespace irq {
namespace {

std::vector<Variant>& all_variants() {
  static std::vector<Variant> variants;
  return variants;
}

// An op with variants: cases that show mistakes, and those of LLaMA-7B that are timed.
struct Lesson {
  const char* op;
  bool
      exact;  // same bits as the reference; else within the case's tolerance for BF16, whose reason stands in tests/cases
  std::vector<OpCase> checked, timed;
};

// Ordinary blocks, and every seventh constant (all candidates equal), as padding or a pruned row would be.
OpCase icq_blocks(int64_t blocks) {
  OpCase c = icq_search_case(4, blocks * kBlock, false);
  c.args.back().value = [](Rng& r, int64_t i) {
    const double x = r.normal();
    return i / kBlock % 7 == 6 ? (i / kBlock % 2 == 0 ? 0.25 : 0.0) : static_cast<double>(static_cast<float>(0.02 * x));
  };
  return c;
}

std::vector<Lesson> lessons() {
  const QuantFormat nf4;
  const int64_t rows = 11008, cols = 4096;
  const auto sequences = [](const char* name, int heads, int count, int length) {
    return attention_fwd_case(
        packed_attention(name, 128, heads, heads, std::vector<int>(static_cast<size_t>(count), length)));
  };
  return {
      // 165 blocks: no multiple of what a warp or a thread block takes; a row stride
      {"nfk_dequant", true, {nfk_dequant_case(nf4, {33, 320, 64})}, {nfk_dequant_case(nf4, {rows, cols, 0})}},
      {"icq_search", true, {icq_blocks(4 * 130 + 3)}, {icq_search_case(4, rows * cols, false)}},
      {"attention_fwd",  // a length that is no multiple of a tile; one shorter than a tile
       false,
       {sequences("s=200", 2, 3, 200), sequences("s=40", 1, 5, 40)},
       {sequences("N=8192,s=2048", 32, 4, 2048)}},
      // rows that do not fill the last tile; 9 blocks a row
      {"nfk_matmul",
       false,
       {nfk_matmul_case(nf4, 1, {40, 576, 0}, 0), nfk_matmul_case(nf4, 3, {41, 1024, 8}, 0),
        nfk_matmul_case(nf4, 8, {40, 576, 0}, 0)},
       {nfk_matmul_case(nf4, 1, {rows, cols, 0}, 0), nfk_matmul_case(nf4, 8, {rows, cols, 0}, 0)}},
  };
}

std::vector<float> values(Backend& backend, const Tensor& t) {
  std::vector<unsigned char> bytes(static_cast<size_t>(t.numel() * size_of(t.dtype)));
  backend.download(bytes.data(), t);
  std::vector<float> out(static_cast<size_t>(t.numel()));
  for (size_t i = 0; i < out.size(); ++i)
    if (t.dtype == DType::BF16) {
      Bf16 b;
      std::memcpy(&b, bytes.data() + 2 * i, 2);
      out[i] = to_float(b);
    } else {
      std::memcpy(&out[i], bytes.data() + 4 * i, 4);
    }
  return out;
}

// A case with its tensors on the GPU and what its outputs should be.
class Checker {
 public:
  enum class Expect { cpu, production };
  Checker(Backend& cuda, RandomData& random, const OpCase& c, bool exact, Expect expect)
      : cuda_(cuda), case_(c), tolerance_(exact ? 0 : c.tolerance_bf16), memory_(cuda, random, c) {
    if (expect == Expect::cpu) run_reference(exact);
    else run(c.run, expected_);
  }
  // "" or what is wrong.
  std::string check(const Variant& v) const {
    std::vector<std::vector<float>> results;
    run(v.run ? v.run : case_.run, results);
    for (size_t i = 0; i < results.size(); ++i) {
      const std::string wrong = difference(results[i], expected_[i], tolerance_);
      if (!wrong.empty()) return strf("%s: %s: %s", case_.name.c_str(), case_.args[i].name, wrong.c_str());
    }
    return "";
  }

 private:
  // The outputs, which hold NaNs before; nothing for inputs.
  void run(const std::function<void(Backend&, const std::vector<Tensor>&)>& kernel,
           std::vector<std::vector<float>>& results) const {
    const std::vector<Tensor>& t = memory_.tensors();
    const auto output = [&](size_t i) { return case_.args[i].role == Role::out; };
    for (size_t i = 0; i < t.size(); ++i)
      if (output(i))
        cuda_.upload(t[i],
                     std::vector<unsigned char>(static_cast<size_t>(t[i].numel() * size_of(t[i].dtype)), 0xff).data());
    kernel(cuda_, t);
    for (size_t i = 0; i < t.size(); ++i) results.push_back(output(i) ? values(cuda_, t[i]) : std::vector<float>{});
  }
  // The CPU's F32 kernels on what the GPU has, BF16 widened.
  void run_reference(bool exact) {
    const auto cpu = make_cpu_backend({DType::F32, DType::F32});
    std::vector<std::vector<unsigned char>> buffers;
    std::vector<Tensor> tensors;
    for (size_t i = 0; i < case_.args.size(); ++i) {
      const Tensor& from = memory_.tensors()[i];
      const Arg& arg = case_.args[i];
      const DType type = dtype_for(arg.kind, cpu->precision());
      buffers.emplace_back(static_cast<size_t>(from.numel() * size_of(type)));
      if (arg.role != Role::out && type == from.dtype) cuda_.download(buffers.back().data(), from);
      else if (arg.role != Role::out)
        std::memcpy(buffers.back().data(), values(cuda_, from).data(), buffers.back().size());
      tensors.push_back(make_view(buffers.back().data(), type, from.rows, from.cols, arg.name));
    }
    case_.run(*cpu, tensors);
    for (size_t i = 0; i < tensors.size(); ++i) {
      const Arg& arg = case_.args[i];
      expected_.push_back(arg.role == Role::out ? values(*cpu, tensors[i]) : std::vector<float>{});
      if (exact && arg.kind == Kind::storage)  // rounded once, as the GPU's result is
        for (float& x : expected_.back()) x = to_float(to_bf16(x));
    }
  }

  Backend& cuda_;
  const OpCase& case_;
  double tolerance_;
  CaseMemory memory_;
  std::vector<std::vector<float>> expected_;
};

void print_header(const OpCase& c, bool csv) {
  if (csv) return;
  std::printf("\n%s\n  %-32s %12s %10s %-7s %10s %8s %9s %14s\n", c.name.c_str(), "variant", "us", "rate", "unit",
              "ceiling", "of it", "gain", "A100 us, pred");
}

// before: microseconds of the row above, 0 in the first.
void print_row(const OpRow& r, const std::string& name, double before, bool csv) {
  const double unit = r.flops ? 1e12 : 1e9;
  const char* unit_name = r.flops ? "TFLOP/s" : "GB/s";
  if (csv)
    std::printf("%s,\"%s\",%s,right,%.6g,%.6g,%s,%.6g,%.6g,%s,%.6g\n", r.op.c_str(), r.shape.c_str(), name.c_str(),
                r.us, r.rate / unit, unit_name, r.ceiling / unit, r.rate / r.ceiling,
                before > 0 ? strf("%.6g", before / r.us).c_str() : "", r.a100_us);
  else
    std::printf("  %-32s %12.2f %10.4g %-7s %10.4g %6.1f %% %9s %14.2f\n", name.c_str(), r.us, r.rate / unit, unit_name,
                r.ceiling / unit, 100 * r.rate / r.ceiling, before > 0 ? strf("%.2fx", before / r.us).c_str() : "",
                r.a100_us);
  std::fflush(stdout);
}

void print_verdict(const Variant& v, const std::string& wrong, bool csv) {
  const std::string verdict = wrong.empty() ? "right" : "WRONG, not timed: " + wrong;
  if (csv) std::printf("%s,,%s,\"%s\",,,,,,,\n", v.op.c_str(), v.name.c_str(), verdict.c_str());
  else std::printf("  %-32s %s\n", v.name.c_str(), verdict.c_str());
}

// One op's variants, the production kernel as the last, which also answers for the sizes that are timed: too large for the
// CPU. Returns the number that is wrong. meter null: nothing is timed.
int run_lesson(const Lesson& lesson, Backend& backend, Meter* meter, RandomData& random, double& gemm, bool csv) {
  std::vector<Variant> variants = variants_of(lesson.op);
  variants.push_back({lesson.op, "production", {}});
  std::vector<std::string> wrong(variants.size());
  const auto check = [&](const OpCase& c, Checker::Expect expect) {
    const Checker checker(backend, random, c, lesson.exact, expect);
    for (size_t i = 0; i < variants.size(); ++i)
      if (wrong[i].empty()) wrong[i] = checker.check(variants[i]);
  };
  for (const OpCase& c : lesson.checked) check(c, Checker::Expect::cpu);
  if (meter == nullptr) {
    if (!csv) std::printf("%s\n", lesson.op);
    for (size_t i = 0; i < variants.size(); ++i) print_verdict(variants[i], wrong[i], csv);
  } else {
    for (const OpCase& c : lesson.timed) check(c, Checker::Expect::production);
    for (const OpCase& c : lesson.timed) {
      print_header(c, csv);
      double before = 0;
      for (size_t i = 0; i < variants.size(); ++i) {
        if (!wrong[i].empty()) {
          print_verdict(variants[i], wrong[i], csv);
          continue;
        }
        OpCase timed = c;
        if (variants[i].run) timed.run = variants[i].run;
        const OpRow row = measure_op(backend, *meter, random, timed, gemm);
        print_row(row, variants[i].name, before, csv);
        before = row.us;
      }
    }
  }
  return static_cast<int>(std::count_if(wrong.begin(), wrong.end(), [](const std::string& w) { return !w.empty(); }));
}

}  // namespace

bool add_variant(Variant variant) {
  all_variants().push_back(std::move(variant));
  return true;
}

std::vector<Variant> variants_of(const std::string& op) {
  std::vector<Variant> chosen;
  for (const Variant& v : all_variants())
    if (v.op == op) chosen.push_back(v);
  std::sort(chosen.begin(), chosen.end(), [](const Variant& a, const Variant& b) { return a.name < b.name; });
  return chosen;
}

bool has_variants(const std::string& op) {
  const std::vector<Lesson> all = lessons();
  return op == "all" || std::any_of(all.begin(), all.end(), [&](const Lesson& l) { return l.op == op; });
}

int run_variant_bench(const VariantBenchOptions& o) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty())
    throw Error("--variants: the variants are CUDA kernels")
        .line("reason", reason)
        .line(
            "try",
            "a machine with an NVIDIA GPU and the CUDA Toolkit; --device cpu without --variants times the references");
  const auto backend = make_cuda_backend({DType::BF16, DType::F32});
  RandomData random(o.seed);
  std::optional<Meter> meter;
  double gemm = 0;
  const char* comment = o.csv ? "# " : "";
  std::printf("%sdevice : %s\n", comment, backend->describe().c_str());
  if (!o.check_only) {
    meter.emplace(*backend, random, o.repeats);
    gemm = meter->gemm_rate();
    std::printf("%sceiling: %ld^3 GEMM in bf16 %.4g TFLOP/s, large copy %.4g GB/s read + written\n", comment,
                meter->gemm_size(), gemm / 1e12, meter->copy_rate() / 1e9);
    std::printf(
        "%sgain   : how many times as fast as the row above; each variant equals the CPU reference, or is not timed\n",
        comment);
  }
  if (o.csv) std::printf("op,shape,variant,result,us,rate,unit,ceiling,fraction_of_ceiling,gain,a100_predicted_us\n");
  int wrong = 0;
  for (const Lesson& lesson : lessons())
    if (o.op == "all" || o.op == lesson.op)
      wrong += run_lesson(lesson, *backend, meter ? &*meter : nullptr, random, gemm, o.csv);
  if (wrong > 0) std::fprintf(stderr, "irq_bench: %d wrong result%s\n", wrong, wrong == 1 ? "" : "s");
  return wrong > 0 ? 1 : 0;
}

}  // namespace irq
