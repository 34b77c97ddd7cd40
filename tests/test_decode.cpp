// Decoding with packed weights and an adapter: against the forward pass of whole sequences, batched against alone, recorded
// against op by op.
#include <set>

#include "src/train/quantize_base.h"
#include "tests/eval_fixture.h"
#include "tests/op_case.h"

namespace irq {
namespace {

constexpr int64_t kPositions = 48;

// Wide enough for the fused kernel: columns in multiples of 256, heads of 64.
ModelConfig decode_config() {
  ModelConfig c;
  c.dim = 256, c.ffn = 512, c.layers = 2, c.heads = 4, c.kv_heads = 2, c.head_dim = 64, c.vocab = 259, c.max_seq = 64;
  return c;
}

// A quantized random model with a random adapter, in files.
struct Files {
  TempFolder folder;
  std::string irq = folder.name("m.irq"), adapter = folder.name("a.lora");
  Files() {
    write_weights(folder.name("m.bin"), decode_config(), random_weights(decode_config(), 3));
    BaseReader base(folder.name("m.bin"));
    const uint64_t hash = quantize_base(*eval_backend(), base, irq, {}).hash;
    AdapterFile a = random_adapter(decode_config(), kAllTargets & ~2u, true, true, hash);  // none on wk
    for (NamedArray& t : a.tensors)
      for (float& x : t.data) x *= 0.25f;
    write_adapter(adapter, a);
  }
};

struct Session {
  std::unique_ptr<CheckedBackend> backend;
  ModelSession session;
  int64_t rows;
  Session(const Files& f, Device device, DType storage, int64_t decode_rows, int64_t budget = 0)
      : backend(make_backend(device, {storage, DType::F32})), session(*backend, f.irq, f.adapter), rows(decode_rows) {
    session.load({{.evaluate = {},
                   .logits = {{128, 128, 8}},
                   .positions = kPositions,
                   .cache_tokens = kPositions * rows,
                   .decode_rows = rows}},
                 {}, budget);
  }
  // Greedy continuation of every prompt up to kPositions tokens, and all logits of row 0.
  std::vector<std::vector<int32_t>> greedy(std::vector<std::vector<int32_t>> ids, std::vector<float>* first = nullptr) {
    const int64_t vocab = session.config().vocab;
    for (int32_t position = 0; position + 1 < kPositions; ++position) {
      std::vector<DecodeRow> next;
      for (size_t i = 0; i < ids.size(); ++i)
        next.push_back({ids[i][static_cast<size_t>(position)], position, static_cast<int32_t>(i * kPositions)});
      const std::vector<float> logits = session.decode(next);
      if (first) first->insert(first->end(), logits.begin(), logits.begin() + vocab);
      for (size_t i = 0; i < ids.size(); ++i)
        if (ids[i].size() == static_cast<size_t>(position) + 1)
          ids[i].push_back(argmax(&logits[i * static_cast<size_t>(vocab)], vocab));
    }
    return ids;
  }
};

std::vector<std::vector<int32_t>> prompts() {
  return {random_ids(9, 259, 1), random_ids(1, 259, 2), random_ids(17, 259, 3), random_ids(4, 259, 4)};
}

// A budget just too small for unpacked weights.
int64_t packed_budget(const Files& f, int64_t rows) {
  const Session unpacked(f, Device::CPU, DType::F32, rows);
  EXPECT_EQ(unpacked.session.plan().model.residency, Residency::cached);
  return unpacked.session.plan().peak_bytes - 1;
}

TEST(Decode, PackedIsTheForwardPassOfTheWholeSequence) {
  const Files f;
  Session s(f, Device::CPU, DType::F32, 1, packed_budget(f, 1));
  EXPECT_EQ(s.session.plan().model.residency, Residency::packed);
  std::vector<float> logits;
  std::vector<int32_t> ids = s.greedy({prompts()[0]}, &logits)[0];
  EXPECT_GT(std::set<int32_t>(ids.begin() + 9, ids.end()).size(), 3u) << "a loop of few tokens would prove little";
  ids.pop_back();
  const std::vector<float> whole = s.session.logits(every_position(ids));
  ASSERT_EQ(whole.size(), logits.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < whole.size(); ++i)
    error += std::pow(double(whole[i]) - double(logits[i]), 2), size += std::pow(double(whole[i]), 2);
  EXPECT_LT(std::sqrt(error / size), 1e-5);  // F32: other orders of sums through two layers
}

TEST(Decode, GreedyTokensDoNotDependOnTheBatch) {
  const Files f;
  std::vector<std::vector<std::vector<int32_t>>> all;
  for (const bool packed : {false, true}) {
    Session together(f, Device::CPU, DType::F32, 4, packed ? packed_budget(f, 4) : 0);
    const auto ids = together.greedy(prompts());
    Session alone(f, Device::CPU, DType::F32, 1, packed ? packed_budget(f, 1) : 0);
    for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(alone.greedy({prompts()[i]})[0], ids[i]) << i;
    all.push_back(ids);
  }
  EXPECT_EQ(all[0], all[1]);
}

TEST(Decode, CudaF32GivesTheTokensOfTheCpu) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const Files f;
  Session cpu(f, Device::CPU, DType::F32, 4), cuda(f, Device::CUDA, DType::F32, 4), one(f, Device::CUDA, DType::F32, 1);
  EXPECT_EQ(cuda.session.plan().model.residency, Residency::packed);
  const auto ids = cpu.greedy(prompts());
  EXPECT_EQ(cuda.greedy(prompts()), ids);
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(one.greedy({prompts()[i]})[0], ids[i]) << i;
}

// BF16: the same bits beside other rows, for the same kernels and shape; near F32.
TEST(Decode, CudaBf16RowsDoNotDependOnEachOther) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const Files f;
  Session s(f, Device::CUDA, DType::BF16, 4);
  std::vector<float> first, second;
  const auto ids = s.greedy(prompts(), &first);
  std::vector<std::vector<int32_t>> others = {ids[0], random_ids(30, 259, 9), random_ids(2, 259, 8),
                                              random_ids(5, 259, 7)};
  s.greedy(others, &second);
  EXPECT_EQ(first, second);
  Session cpu(f, Device::CPU, DType::F32, 1);
  std::vector<float> reference;
  cpu.greedy({ids[0]}, &reference);
  double error = 0, size = 0;
  for (size_t i = 0; i < reference.size(); ++i)
    error += std::pow(double(reference[i]) - double(first[i]), 2), size += std::pow(double(reference[i]), 2);
  // About 20 roundings to bf16 (1.1e-3 rms) in a row: 5e-3, twice that as the weights are rounded too; and attention scores with a
  // deviation of 4, each off by 2e-3 of that from q and from k, move the softmax's weights by 1e-2 in both layers.
  EXPECT_LT(std::sqrt(error / size), 4e-2);
}

// One sequence takes the fused layers, four go op by op: near F32 alike.
TEST(Decode, CudaBf16OfOneSequenceIsNearF32) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const Files f;
  Session cpu(f, Device::CPU, DType::F32, 1);
  std::vector<float> reference, fused, by_ops;
  const auto ids = cpu.greedy({prompts()[2]}, &reference);
  Session(f, Device::CUDA, DType::BF16, 1).greedy(ids, &fused);
  Session(f, Device::CUDA, DType::BF16, 4).greedy({ids[0], ids[0], ids[0], ids[0]}, &by_ops);
  const auto distance = [](const std::vector<float>& a, const std::vector<float>& b) {
    double error = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i)
      error += std::pow(double(a[i]) - double(b[i]), 2), size += std::pow(double(b[i]), 2);
    return std::sqrt(error / size);
  };
  EXPECT_LT(distance(fused, reference), 4e-2);  // as above
  EXPECT_LT(distance(fused, reference), 2 * distance(by_ops, reference));
}

// The device's choice is what argmax() makes of the logits, for the sequences that are there.
TEST(Decode, TheDevicesChoiceIsTheLikeliestToken) {
  const Files f;
  for (const Device device : {Device::CPU, Device::CUDA}) {
    if (device == Device::CUDA && !cuda_unavailable_reason().empty()) continue;
    for (const int64_t rows : {1, 3}) {
      Session s(f, device, device == Device::CUDA ? DType::BF16 : DType::F32, rows);
      for (int32_t position = 0; position < 12; ++position) {
        std::vector<DecodeRow> next;
        for (int64_t i = 0; i < rows; ++i)
          next.push_back(
              {static_cast<int32_t>((37 * position + 11 * i) % 259), position, static_cast<int32_t>(i * kPositions)});
        const std::vector<float> logits = s.session.decode(next);
        const std::vector<int32_t> likeliest = s.session.decode_greedily(next);
        for (size_t i = 0; i < next.size(); ++i) EXPECT_EQ(likeliest[i], argmax(&logits[i * 259], 259));
      }
    }
  }
}

// The first step of a session runs op by op, those behind it as one recording.
TEST(Decode, ARecordingGivesTheSameBits) {
  const Files f;
  for (const Device device : {Device::CPU, Device::CUDA}) {
    if (device == Device::CUDA && !cuda_unavailable_reason().empty()) continue;
    for (const int64_t rows : {1, 3}) {
      Session s(f, device, device == Device::CUDA ? DType::BF16 : DType::F32, rows);
      std::vector<DecodeRow> next;
      for (int64_t i = 0; i < rows; ++i)
        next.push_back({static_cast<int32_t>(10 + i), 0, static_cast<int32_t>(i * kPositions)});
      const std::vector<float> op_by_op = s.session.decode(next), recorded = s.session.decode(next);
      EXPECT_EQ(op_by_op, recorded);
      for (DecodeRow& r : next) r.position = 1, r.token += 100;
      EXPECT_NE(s.session.decode(next), recorded);  // the recording reads what is there now
    }
  }
}

TEST(Decode, RowsWithoutASequence) {
  const Files f;
  Session s(f, Device::CPU, DType::F32, 3);
  const std::vector<float> all = s.session.decode({{5, 0, 0}, {6, 0, 48}, {7, 0, 96}});
  const std::vector<float> some = s.session.decode({{5, 0, 0}, {}, {7, 0, 96}});
  for (const size_t row : {0, 2})
    for (size_t i = row * 259; i < (row + 1) * 259; ++i) EXPECT_EQ(some[i], all[i]);
  EXPECT_THROW(s.session.decode({{5, 0, 0}}), Error);
  EXPECT_THROW(s.session.decode({{5, 0, 0}, {}, {7, 100, 96}}), Error);
}

}  // namespace
}  // namespace irq
