// Sessions (base, quantized base, adapter), the loss of a data file, and irq_eval.
#include <cmath>

#include "src/core/file.h"
#include "src/io/npy.h"
#include "src/text/instruct.h"
#include "src/text/token_file.h"
#include "src/train/quantize_base.h"
#include "tests/cli_util.h"
#include "tests/eval_fixture.h"

namespace irq {
namespace {

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
  return worst;
}

std::vector<float> logits_of(const std::string& model, const std::string& adapter, const std::vector<int32_t>& ids,
                             int64_t budget = 0, MemoryPlan* plan = nullptr) {
  const auto backend = eval_backend();
  ModelSession session(*backend, model, adapter);
  const Batch batch = every_position(ids);
  session.load(
      {{.evaluate = {}, .logits = {shape_of(batch)}, .positions = static_cast<int64_t>(ids.size()), .cache_tokens = 0}},
      {}, budget);
  if (plan) *plan = session.plan();
  return session.logits(batch);
}

std::vector<Example> mixed_examples(int count, int64_t vocab) {
  std::vector<Example> examples;
  for (int i = 0; i < count; ++i) {
    Example e;
    e.ids = random_ids(2 + static_cast<size_t>(i * 7 % 30), vocab, static_cast<uint64_t>(i));
    for (size_t t = 0; t < e.ids.size(); ++t) e.trainable.push_back(t > e.ids.size() / 3);
    examples.push_back(e);
  }
  return examples;
}

// The definition, from the logits of each example alone, in double.
LossResult loss_by_hand(ModelSession& session, const std::vector<Example>& examples) {
  LossResult result;
  const int64_t vocab = session.config().vocab;
  for (const Example& e : examples) {
    const std::vector<float> logits = session.logits(every_position(e.ids));
    for (size_t t = 1; t < e.ids.size(); ++t) {
      if (!e.trainable[t]) continue;
      const float* row = &logits[(t - 1) * static_cast<size_t>(vocab)];
      double sum = 0;
      for (int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v]));
      result.nll_sum += std::log(sum) - row[e.ids[t]];
      ++result.tokens;
    }
  }
  return result;
}

TEST(Eval, LossIsTheMeanOverTrainableTokens) {
  const TempFolder folder;
  write_weights(folder.name("m.bin"), eval_config(), random_weights(eval_config(), 1));
  const auto backend = eval_backend();
  ModelSession session(*backend, folder.name("m.bin"));
  const std::vector<Example> examples = mixed_examples(25, 259);
  LossWorkloads work = loss_workloads(examples, Device::CPU);
  for (Workload& w : work.workloads) w.logits.push_back({64, 64, 1}), w.positions = 64;
  EXPECT_EQ(session.load(work.workloads), 0u);
  const LossResult expected = loss_by_hand(session, examples);
  for (const int64_t max_rows : work.max_rows) {  // however it is batched
    int64_t last_rows = 0;
    const LossResult r = evaluate_loss(session, examples, max_rows, [&](int64_t rows) { last_rows = rows; });
    EXPECT_EQ(r.tokens, expected.tokens);
    EXPECT_NEAR(r.nll(), expected.nll(), 1e-5 * expected.nll());  // F32 sums over 259 logits, against double
    EXPECT_DOUBLE_EQ(r.perplexity(), std::exp(r.nll()));
    int64_t rows = 0;
    for (const Example& e : examples) rows += static_cast<int64_t>(e.ids.size()) - 1;
    EXPECT_EQ(last_rows, rows);
  }
}

TEST(Eval, PackRangesKeepTheBudget) {
  const auto sized = [](std::vector<size_t> sizes) {
    std::vector<Example> examples;
    for (const size_t n : sizes) examples.push_back({std::vector<int32_t>(n + 1, 5), std::vector<uint8_t>(n + 1, 1)});
    return examples;
  };
  using Ranges = std::vector<ExampleRange>;
  EXPECT_EQ(pack_ranges(sized({3, 3, 4, 1}), 10), (Ranges{{0, 3}, {3, 4}}));
  EXPECT_EQ(pack_ranges(sized({30, 1, 30}), 10), (Ranges{{0, 1}, {1, 2}, {2, 3}}));  // too long: alone
  EXPECT_EQ(pack_ranges(sized({1, 1}), 1), (Ranges{{0, 1}, {1, 2}}));
  EXPECT_EQ(pack_ranges({}, 10), Ranges{});
  // The planned shapes are those of the batches.
  const std::vector<Example> examples = mixed_examples(40, 259);
  const LossWorkloads work = loss_workloads(examples, Device::CPU);
  for (size_t i = 0; i < work.workloads.size(); ++i)
    for (const ExampleRange& range : pack_ranges(examples, work.max_rows[i])) {
      const StepShape s = shape_of(pack_range(examples, range));
      EXPECT_TRUE(std::any_of(
          work.workloads[i].evaluate.begin(), work.workloads[i].evaluate.end(),
          [&](const StepShape& o) { return o.rows >= s.rows && o.labels >= s.labels && o.sequences >= s.sequences; }));
    }
}

TEST(Eval, SmallerBatchesWhereMemoryIsShort) {
  const TempFolder folder;
  write_weights(folder.name("m.bin"), eval_config(), random_weights(eval_config(), 1));
  const std::vector<Example> examples = mixed_examples(60, 259);
  const LossWorkloads work = loss_workloads(examples, Device::CPU);
  const auto backend = eval_backend();
  ModelSession large(*backend, folder.name("m.bin"));
  ASSERT_EQ(large.load(work.workloads), 0u);
  ModelSession small(*backend, folder.name("m.bin"));
  const size_t chosen = small.load(work.workloads, {}, large.plan().peak_bytes - 1);
  EXPECT_GT(chosen, 0u);
  EXPECT_LT(small.plan().peak_bytes, large.plan().peak_bytes);
  const LossResult a = evaluate_loss(large, examples, work.max_rows[0]),
                   b = evaluate_loss(small, examples, work.max_rows[chosen]);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_NEAR(a.nll(), b.nll(), 1e-6 * a.nll());  // other sums of the same rows
  ModelSession none(*backend, folder.name("m.bin"));
  const std::string text = error_of([&] { none.load(work.workloads, {}, 1000); });
  EXPECT_CONTAINS(text, "does not fit into memory");
  EXPECT_CONTAINS(text, "free    : 1.00 kB");
  EXPECT_CONTAINS(text, "./irq_quantize");
}

// W + scale (B + beta2 E)(A + beta1 P), written out (fidelity 4.3; interleaved groups), is a base that needs no adapter.
Weights merged(const ModelConfig& c, Weights weights, const AdapterFile& a) {
  const double scale = a.alpha / static_cast<double>(a.rank);
  const int64_t r = a.rank;
  for (int64_t l = 0; l < c.layers; ++l)
    for (const LinearShape& s : layer_linears(c)) {
      const std::string name = strf("layers.%ld.%s", l, s.name);
      const NamedArray *A = a.find(name + ".A"), *B = a.find(name + ".B"), *b1 = a.find(name + ".beta1"),
                       *b2 = a.find(name + ".beta2");
      if (!A) continue;
      const int64_t g = std::gcd(s.in, r), g2 = std::gcd(s.out, r);
      const auto at_a = [&](int64_t j, int64_t i) {
        const bool in_group = i / (s.in / g) == j / (r / g);
        return A->data[static_cast<size_t>(j * s.in + i)] +
               (b1 && in_group ? b1->data[0] * static_cast<double>(g) / static_cast<double>(s.in) : 0.0);
      };
      const auto at_b = [&](int64_t o, int64_t k) {
        const bool in_group = k / (r / g2) == o / (s.out / g2);
        return B->data[static_cast<size_t>(o * r + k)] +
               (b2 && in_group ? b2->data[0] * static_cast<double>(g2) / static_cast<double>(r) : 0.0);
      };
      std::vector<float>& w = weights[name];
      for (int64_t o = 0; o < s.out; ++o)
        for (int64_t i = 0; i < s.in; ++i) {
          double sum = 0;
          for (int64_t k = 0; k < r; ++k) sum += at_b(o, k) * at_a(k, i);
          w[static_cast<size_t>(o * s.in + i)] += static_cast<float>(scale * sum);
        }
    }
  return weights;
}

TEST(Eval, AnAdapterIsTheMergedModel) {
  const TempFolder folder;
  const ModelConfig c = eval_config();
  const Weights weights = random_weights(c, 1);
  const uint64_t hash = write_weights(folder.name("m.bin"), c, weights);
  const std::vector<int32_t> ids = random_ids(20, c.vocab, 9);
  const std::vector<float> plain = logits_of(folder.name("m.bin"), "", ids);
  struct Case {
    uint32_t targets;
    bool u1, u2;
  };
  for (const Case& k : {Case{kAllTargets, true, true}, Case{parse_targets("wq,w_down"), false, true},
                        Case{parse_targets("v_proj,o_proj,up_proj"), true, false}, Case{kAllTargets, false, false}}) {
    const AdapterFile a = random_adapter(c, k.targets, k.u1, k.u2, hash);
    write_adapter(folder.name("a.lora"), a);
    write_weights(folder.name("merged.bin"), c, merged(c, weights, a));
    const std::vector<float> adapted = logits_of(folder.name("m.bin"), folder.name("a.lora"), ids);
    EXPECT_GT(largest_difference(adapted, plain), 0.1);
    // Logits of size 5, F32 sums in another order through two layers.
    EXPECT_LT(largest_difference(adapted, logits_of(folder.name("merged.bin"), "", ids)), 1e-3) << k.targets;
  }
}

TEST(Eval, AnAdapterOfAnotherBaseIsRefused) {
  const TempFolder folder;
  const ModelConfig c = eval_config();
  const std::string bin = folder.name("m.bin"), irq_path = folder.name("m.irq"), lora = folder.name("a.lora");
  const uint64_t hash = write_weights(bin, c, random_weights(c, 1));
  const auto backend = eval_backend();
  BaseReader base(bin);
  const uint64_t quantized_hash = quantize_base(*backend, base, irq_path, {}).hash;
  const auto open = [&](const std::string& model, uint64_t base_hash) {
    write_adapter(lora, random_adapter(c, kAllTargets, true, true, base_hash));
    ModelSession session(*backend, model, lora);
  };
  open(bin, hash), open(irq_path, quantized_hash), open(irq_path, hash);  // no Error
  const std::string text = error_of([&] { open(bin, quantized_hash); });
  EXPECT_CONTAINS(text, lora + ": this adapter was trained on another base");
  EXPECT_CONTAINS(text, strf("expected: base %016lx", quantized_hash));
  EXPECT_CONTAINS(text, strf("found   : %016lx (%s)", hash, bin.c_str()));
  EXPECT_CONTAINS(text, "try     : " + irq_path + "    in the place of    " + bin);  // it lies beside the .bin
  EXPECT_CONTAINS(error_of([&] { open(bin, 12345); }), "./irq_inspect FILE");
  const std::string other = error_of([&] { open(irq_path, 12345); });
  EXPECT_CONTAINS(other, strf("%016lx (%s), made from %016lx", quantized_hash, irq_path.c_str(), hash));
  EXPECT_CONTAINS(error_of([&] { ModelSession session(*backend, lora); }), "an adapter given in the model's place");
  EXPECT_CONTAINS(error_of([&] { ModelSession session(*backend, bin, bin); }), "not an adapter");
}

TEST(Eval, PackedAndUnpackedWeightsGiveTheSameBits) {
  const TempFolder folder;
  const ModelConfig c = eval_config();
  const auto backend = eval_backend();
  write_weights(folder.name("m.bin"), c, random_weights(c, 1));
  BaseReader base(folder.name("m.bin"));
  const uint64_t hash = quantize_base(*backend, base, folder.name("m.irq"), {}).hash;
  write_adapter(folder.name("a.lora"), random_adapter(c, kAllTargets, true, true, hash));
  const std::vector<int32_t> ids = random_ids(20, c.vocab, 9);
  MemoryPlan roomy, tight;
  const std::vector<float> cached = logits_of(folder.name("m.irq"), folder.name("a.lora"), ids, 0, &roomy);
  const std::vector<float> packed =
      logits_of(folder.name("m.irq"), folder.name("a.lora"), ids, roomy.peak_bytes - 1, &tight);
  EXPECT_EQ(roomy.model.residency, Residency::cached);
  EXPECT_EQ(tight.model.residency, Residency::packed);
  EXPECT_EQ(cached, packed);
}

TEST(Eval, RandomWeightsFollowTheSeed) {
  const TempFolder folder;
  const std::string path = folder.write(
      "config.json",
      R"({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
          "vocab_size": 50, "max_position_embeddings": 32, "rms_norm_eps": 1e-5})");
  const auto backend = eval_backend();
  const auto logits = [&](uint64_t seed) {
    ModelSession session(*backend, path, "", seed);
    session.load({{.evaluate = {}, .logits = {{3, 3, 1}}, .positions = 3, .cache_tokens = 0}});
    return session.logits(every_position({1, 2, 3}));
  };
  EXPECT_EQ(logits(1), logits(1));
  EXPECT_NE(logits(1), logits(2));
}

// ---- the command ---------------------------------------------------------------------------------------------------
struct EvalCommand : testing::Test {
  TempFolder folder;
  std::string bin = folder.name("m.bin"), data = folder.name("d.tok");
  std::vector<int32_t> stream = random_ids(101, 259, 4);
  void SetUp() override {
    write_weights(bin, eval_config(), random_weights(eval_config(), 1));
    write_token_file(data, stream);
  }
  CommandResult run(std::vector<std::string> args) {
    args.insert(args.end(), {"--device", "cpu", "--quiet"});
    return run_command("irq_eval", args);
  }
};

TEST_F(EvalCommand, LossOfATokenFile) {
  const std::string json = folder.name("out.json");
  const CommandResult r = run({bin, "--loss", data, "--window", "40", "--stride", "10", "--json", json});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.err, "");
  const auto backend = eval_backend();
  ModelSession session(*backend, bin);
  session.load({small_workload()});
  const LossResult expected = loss_by_hand(session, cut_windows(stream, 40, 10));
  EXPECT_EQ(expected.tokens, 100);  // each id but the first, once
  double nll = 0, perplexity = 0;
  long tokens = 0;
  ASSERT_EQ(std::sscanf(read_text(json).c_str(), "{ \"loss\": { \"nll\": %lf, \"tokens\": %ld, \"perplexity\": %lf } }",
                        &nll, &tokens, &perplexity),
            3)
      << read_text(json);
  EXPECT_EQ(tokens, 100);
  EXPECT_NEAR(nll, expected.nll(), 1e-5 * nll);
  EXPECT_NEAR(perplexity, std::exp(nll), 1e-9 * perplexity);
  EXPECT_CONTAINS(r.out, strf("d.tok             100  %10.6f", nll));
}

TEST_F(EvalCommand, LogitsOfEveryPosition) {
  const std::string npy = folder.name("l.npy");
  const CommandResult r = run({bin, "--logits", "5,6 7", npy});
  ASSERT_EQ(r.status, 0) << r.err;
  const Npy file = read_npy(npy);
  EXPECT_EQ(file.shape, (std::vector<int64_t>{3, 259}));
  const std::vector<float> expected = logits_of(bin, "", {5, 6, 7});
  EXPECT_EQ(std::vector<float>(file.as<float>(), file.as<float>() + file.count()), expected);
}

// No output replaces what is read, the tokenizer beside the model included.
TEST_F(EvalCommand, InputsStay) {
  const std::string tokenizer = folder.write("tokenizer.model", "T"), before = read_text(bin), text = read_text(data);
  for (const std::string& out : {bin, data, tokenizer}) {
    for (const CommandResult& r :
         {run({bin, "--loss", data, "--json", out}), run({bin, "--loss", data, "--logits", "1,2", out})}) {
      EXPECT_EQ(r.status, 2) << out;
      EXPECT_CONTAINS(r.err, out + ": writing it would destroy an input of this command");
    }
  }
  EXPECT_EQ(run_command("irq_inspect", {bin, "--dump", "layers.0.wq", bin}).status, 2);
  EXPECT_EQ(run_command("irq_inspect", {bin, "--dump", "layers.0.wq", tokenizer}).status, 2);
  EXPECT_EQ(read_text(bin), before);
  EXPECT_EQ(read_text(data), text);
  EXPECT_EQ(read_text(tokenizer), "T");
}

TEST_F(EvalCommand, NotANumberIsNoResult) {
  auto weights = random_weights(eval_config(), 1);
  weights["norm"][3] = std::nanf("");
  write_weights(bin, eval_config(), weights);
  const CommandResult r = run({bin, "--logits", "1,2", folder.name("l.npy")});
  EXPECT_EQ(r.status, 1);
  EXPECT_CONTAINS(r.err, "the logits are not numbers\n  found   : nan at position 0\n");
  EXPECT_FALSE(std::filesystem::exists(folder.name("l.npy")));
  const CommandResult inspected = run_command("irq_inspect", {bin});
  EXPECT_CONTAINS(inspected.out, "  values   : 1 are NaN or infinite, the first in norm: the file cannot be used\n");
}

TEST_F(EvalCommand, SaysWhatIsWrong) {
  const auto fails = [&](std::vector<std::string> args, int status, const std::string& text) {
    const CommandResult r = run(std::move(args));
    EXPECT_EQ(r.status, status) << r.err;
    EXPECT_CONTAINS(r.err, text);
  };
  fails({bin}, 2, "nothing to evaluate");
  fails({bin, "--logits", "1,2", folder.name("x.npy"), "--window", "3"}, 2, "belong to --loss");
  fails({bin, "--logits", "1,300", folder.name("x.npy")}, 2, "ids from 0 to 258");
  for (const char* empty : {"1,,2", ",1", "1,", "1, ,2"})
    fails({bin, "--logits", empty, folder.name("x.npy")}, 2, "an empty element in the list");
  fails({bin, "--logits", "1,b", folder.name("x.npy")}, 2, "'b' is not a token id");
  fails({bin, "--loss", data, "--window", "10", "--stride", "11"}, 2, "more than the window");
  fails({bin, "--loss", folder.write("t.txt", "some text")}, 1, "need the model's tokenizer");
  fails({folder.name("none.bin"), "--loss", data}, 1, "none.bin");
  fails({bin, "--loss", folder.name("none.tok")}, 1, "none.tok: cannot be read");
}

}  // namespace
}  // namespace irq
