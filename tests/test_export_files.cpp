// Exporting as seen from outside: GGUF, folders that appear whole or not at all, refusals, the command.
#include <sys/stat.h>

#include "src/io/output_folder.h"
#include "tests/export_fixture.h"
#include "tests/io_files.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

class ExportFiles : public ExportTest {};

// The tensor's bytes in a GGUF whose tensor table is found by name; enough for files of our own.
std::string gguf_tensor(const std::string& file, const std::string& name, int64_t bytes, size_t* dims = nullptr) {
  std::string field(8, '\0');
  const uint64_t length = name.size();
  std::memcpy(field.data(), &length, 8);
  const size_t at = file.find(field + name) + 8 + name.size();
  uint32_t n = 0;
  uint64_t offset = 0, end = 0, data = 0, count = 0;
  std::memcpy(&n, file.data() + at, 4);
  std::memcpy(&offset, file.data() + at + 4 + 8 * n + 4, 8);
  if (dims) *dims = n;
  // The last tensor's padded end is the end of the file: go from there to where the data part begins.
  std::memcpy(&count, file.data() + 8, 8);
  const std::string last = "output.weight";
  const uint64_t last_length = last.size();
  std::memcpy(field.data(), &last_length, 8);
  const size_t last_at = file.find(field + last) + 8 + last.size();
  std::memcpy(&end, file.data() + last_at + 4 + 16 + 4, 8);
  end += 259 * 64 * 2;
  data = file.size() - (end + 31) / 32 * 32;
  return file.substr(data + offset, static_cast<size_t>(bytes));
}

TEST_F(ExportFiles, GgufTurnsTheRowsOfQueriesAndKeys) {
  ExportSource source(shared("m.irq"), "", false);
  const ExportReport report = export_gguf(source, dir_ / "m.gguf", {.dtype = DType::BF16});
  const std::string file = read_bytes(dir_ / "m.gguf");
  EXPECT_EQ(static_cast<int64_t>(file.size()), report.files.at(0).second);
  EXPECT_CONTAINS(report.notes.at(0), "warning: no tokenizer beside");
  IrqReader irq(shared("m.irq"));
  const int64_t d = eval_config().head_dim, cols = eval_config().dim;
  for (const auto& [own, theirs] :
       {std::pair{"layers.1.wk", "blk.1.attn_k.weight"}, std::pair{"layers.0.wq", "blk.0.attn_q.weight"},
        std::pair{"layers.1.wv", "blk.1.attn_v.weight"}}) {
    const std::vector<float> w = dequantize_on_host(irq.matrix(own));
    const std::string got = gguf_tensor(file, theirs, static_cast<int64_t>(2 * w.size()));
    const bool turned = std::string(own).back() != 'v';
    for (int64_t i = 0; i < static_cast<int64_t>(w.size()); ++i) {
      // meta[2j + p] = hf[j + p D/2] in each head (fidelity 8.1)
      const int64_t row = i / cols, within = row % d, j = within / 2, p = within % 2;
      const int64_t from = turned ? row - within + j + p * d / 2 : row;
      uint16_t bits = 0;
      std::memcpy(&bits, got.data() + 2 * i, 2);
      ASSERT_EQ(bits, to_bf16(w[static_cast<size_t>(from * cols + i % cols)]).bits) << theirs << " " << i;
    }
  }
  size_t dims = 0;
  const std::string norm = gguf_tensor(file, "output_norm.weight", 4 * cols, &dims);
  EXPECT_EQ(dims, 1u);
  EXPECT_EQ(norm, bytes_of(irq.tensor("norm")));  // F32
}

TEST_F(ExportFiles, WeightsThatDoNotFitF16AreRefused) {
  Weights weights = random_weights(eval_config(), 3);
  weights["layers.1.w_up"][77] = 65520;  // rounds to infinity; 65519 would still be 65504
  write_weights(dir_ / "m.bin", eval_config(), weights);
  ExportSource source(dir_ / "m.bin", "", false);
  const std::string text = error_of([&] { export_hugging_face(source, dir_ / "hf", {.dtype = DType::F16}); });
  EXPECT_EQ(text, (dir_ / "m.bin") +
                      ": a weight of layers.1.w_up does not fit f16\n  expected: at most 65504 in f16\n"
                      "  try     : --dtype bf16");
  EXPECT_EQ(names_in(dir_.path()), std::vector<std::string>{"m.bin"});
}

TEST_F(ExportFiles, AnotherBaseIsRefused) {
  const std::string hashes =
      strf("\n  expected: base %016lx\n  found   : %016lx (%s)", irq_hash_, hash_, shared("m.bin").c_str());
  const std::string head =
      shared("a.lora") + ": this adapter was trained on another base" + hashes +
      "\n  likely  : it was trained on the quantized base, which is a file of its own\n  why     : ";
  const std::string tail = "\n  try     : " + shared("m.irq") + "    in the place of    " + shared("m.bin");
  const std::string learned = "an adapter of a quantized base has learned to correct its rounding: ";
  EXPECT_EQ(error_of([&] { ExportSource(shared("m.bin"), shared("a.lora"), true); }),
            head + learned + "merged into the 16-bit original it loses accuracy" + tail);
  EXPECT_EQ(error_of([&] { ExportSource(shared("m.bin"), shared("a.lora"), false); }),
            head + learned + "on another base it loses accuracy" + tail);
  // The other way round it fits: trained on the .bin, used on the .irq made of it.
  write_adapter(dir_ / "b.lora", random_adapter(eval_config(), kAllTargets, false, false, hash_));
  ExportSource(shared("m.irq"), dir_ / "b.lora", true);
}

TEST_F(ExportFiles, FoldersAppearWholeOrNotAtAll) {
  ExportSource source(shared("m.irq"), "", false);
  const std::string out = dir_ / "hf";
  const auto stop_at = [&](int64_t part) {
    return [part](int64_t done, int64_t all) {
      if (done * 4 >= all * part) throw Error("interrupted", Exit::interrupted);
    };
  };
  EXPECT_EQ(error_of([&] { export_hugging_face(source, out, {}, stop_at(2)); }), "interrupted");
  EXPECT_TRUE(names_in(dir_.path()).empty());

  export_hugging_face(source, out, {});
  const std::string weights = read_bytes(out + "/model.safetensors");
  EXPECT_EQ(error_of([&] {
              export_hugging_face(source, out, {.dtype = DType::F32});
            }).rfind(out + ": the folder is not empty\n  found   : ", 0),
            0u);
  EXPECT_EQ(error_of([&] { export_hugging_face(source, out, {.dtype = DType::F32, .overwrite = true}, stop_at(4)); }),
            "interrupted");
  EXPECT_EQ(read_bytes(out + "/model.safetensors"), weights);  // the old one is as it was
  EXPECT_EQ(names_in(dir_.path()), std::vector<std::string>{"hf"});
  export_hugging_face(source, out + "///", {.dtype = DType::F32, .overwrite = true});
  EXPECT_NE(read_bytes(out + "/model.safetensors"), weights);
  EXPECT_EQ(names_in(dir_.path()), std::vector<std::string>{"hf"});
  // Shards of a former export go with it.
  export_hugging_face(source, out, {.overwrite = true, .shard_bytes = 40'000});
  export_hugging_face(source, out, {.overwrite = true});
  EXPECT_EQ(names_in(out), (std::vector<std::string>{"config.json", "generation_config.json", "model.safetensors"}));
  EXPECT_EQ(read_bytes(out + "/model.safetensors"), weights);  // same input, same bits
}

TEST_F(ExportFiles, OverwriteSparesWhatIsNoExport) {
  const std::string out = dir_ / "precious";
  fs::create_directories(out);
  write_bytes(out + "/config.json", "{}");
  write_bytes(out + "/thesis.txt", "years of work");
  EXPECT_EQ(error_of([&] { OutputFolder(out, true, 0); }),
            out +
                ": --overwrite replaces the whole folder, and this one holds more than an export\n"
                "  found   : thesis.txt\n  try     : another folder");
  EXPECT_EQ(error_of([&] { OutputFolder(out, false, 0); }),
            out + ": the folder is not empty\n  found   : thesis.txt\n  try     : another folder");
  fs::create_directories(dir_ / "new.tmp");
  write_bytes(dir_ / "new.tmp/mine", "x");
  EXPECT_CONTAINS(error_of([&] { OutputFolder(dir_ / "new", false, 0); }), "new.tmp: is in the way");
  EXPECT_EQ(read_bytes(dir_ / "new.tmp/mine"), "x");
  EXPECT_FALSE(is_export_file("model-00001-of-00002.bin"));
  EXPECT_TRUE(is_export_file("model-00001-of-00002.safetensors"));
}

TEST_F(ExportFiles, AFolderLeftByAKilledExportIsUsedAgain) {
  fs::create_directories(dir_ / "x.tmp");
  write_bytes(dir_ / "x.tmp/model.safetensors.tmp", "half");
  write_bytes(dir_ / "x.tmp/export.lock", "");
  fs::create_directories(dir_ / "x");  // empty: taken
  {
    OutputFolder a(dir_ / "x", false, 0);
    EXPECT_CONTAINS(error_of([&] { OutputFolder(dir_ / "x", false, 0); }), "another process is writing this folder");
    write_bytes(a.file("config.json"), "{}");
    a.commit();
  }
  EXPECT_EQ(names_in(dir_ / "x"), std::vector<std::string>{"config.json"});
  EXPECT_FALSE(fs::exists(dir_ / "x.tmp"));
  EXPECT_CONTAINS(error_of([&] { OutputFolder(dir_ / "a/b", false, 0); }), "mkdir -p");
  EXPECT_CONTAINS(error_of([&] { OutputFolder(dir_ / "y", false, int64_t{1} << 60); }), "not enough disk space");
  write_bytes(dir_ / "file", "");
  EXPECT_CONTAINS(error_of([&] { OutputFolder(dir_ / "file", true, 0); }), "is a file, where a folder");
  fs::create_directory_symlink(dir_ / "x", dir_ / "link");
  {
    OutputFolder a(dir_ / "link", true, 0);
    write_bytes(a.file("tokenizer.model"), "");
    a.commit();
  }
  EXPECT_TRUE(fs::is_symlink(dir_ / "link"));
  EXPECT_EQ(names_in(dir_ / "x"), std::vector<std::string>{"tokenizer.model"});
}

TEST_F(ExportFiles, TheTokenizerGoesAlong) {
  fs::copy_file(demo_path("tokenizer.model"), dir_ / "m.tokenizer.model");
  ModelConfig c = eval_config();
  c.vocab = 4100;  // four rows more than pieces
  write_weights(dir_ / "m.bin", c, random_weights(c, 1));
  ExportSource source(dir_ / "m.bin", "", false);
  export_hugging_face(source, dir_ / "hf", {});
  EXPECT_EQ(read_bytes(dir_ / "hf/tokenizer.model"), read_bytes(demo_path("tokenizer.model")));
  EXPECT_EQ(json_of(dir_ / "hf/tokenizer_config.json")["tokenizer_class"], "LlamaTokenizer");
  write_bytes(dir_ / "tokenizer_config.json", "{}");  // of another model
  write_bytes(dir_ / "m.tokenizer_config.json", "{\"legacy\": false}");
  export_hugging_face(source, dir_ / "hf", {.overwrite = true});
  EXPECT_EQ(json_of(dir_ / "hf/tokenizer_config.json"), nlohmann::json({{"legacy", false}}));
  write_bytes(dir_ / "m.chat_template.jinja", "T");
  export_hugging_face(source, dir_ / "hf", {.overwrite = true});
  export_hugging_face(source, dir_ / "hf", {.overwrite = true});  // a template is no foreign file
  EXPECT_EQ(read_bytes(dir_ / "hf/chat_template.jinja"), "T");

  EXPECT_TRUE(export_gguf(source, dir_ / "m.gguf", {}).notes.empty());
  const std::string file = read_bytes(dir_ / "m.gguf");
  for (const char* part : {"tokenizer.ggml.scores", "tokenizer.ggml.token_type", "<0x0A>", "[PAD4096]", "[PAD4099]"})
    EXPECT_NE(file.find(part), std::string::npos) << part;
  EXPECT_EQ(file.find("[PAD4100]"), std::string::npos);
  EXPECT_CONTAINS(error_of([&] { export_gguf(source, dir_ / "m.gguf", {}); }), "the file exists");
  c.vocab = 4000;
  write_weights(dir_ / "m.bin", c, random_weights(c, 1));
  ExportSource fewer(dir_ / "m.bin", "", false);
  EXPECT_CONTAINS(error_of([&] { export_gguf(fewer, dir_ / "n.gguf", {}); }), "does not belong to the model");
  EXPECT_FALSE(fs::exists(dir_ / "n.gguf"));
}

TEST_F(ExportFiles, TheCommandSaysWhatItWrote) {
  const std::string irq = shared("m.irq"), lora = shared("a.lora");
  CommandResult r = run_command("irq_export", {irq, "--adapter", lora, "--hf", dir_ / "hf", "--merge"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_CONTAINS(r.out, (dir_ / "hf") + ": a Hugging Face model in bf16, dequantized, adapter merged, ");
  EXPECT_CONTAINS(r.out, "AutoModelForCausalLM.from_pretrained(\"" + (dir_ / "hf") + "\"");
  EXPECT_CONTAINS(r.err, "merged into 14 matrices");
  r = run_command("irq_export", {irq, "--adapter", lora, "--peft", dir_ / "peft", "--quiet"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.err, "");
  EXPECT_CONTAINS(r.out, "adapter_model.safetensors");
  r = run_command("irq_export", {irq, "--gguf", dir_ / "m.gguf", "--dtype", "f16"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_CONTAINS(r.out, ": a GGUF model in f16, dequantized, ");
}

TEST_F(ExportFiles, FlagsThatMakeNoSenseTogether) {
  const std::string irq = shared("m.irq"), lora = shared("a.lora"), out = dir_ / "out";
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "nothing to write"},
      {{"--hf", out, "--gguf", out}, "one at a time"},
      {{"--peft", out}, "--adapter FILE is missing"},
      {{"--adapter", lora, "--peft", out, "--merge"}, "writes the adapter alone"},
      {{"--adapter", lora, "--peft", out, "--dtype", "f16"}, "always written in f32"},
      {{"--hf", out, "--merge"}, "--merge needs --adapter FILE"},
      {{"--adapter", lora, "--hf", out}, "add --merge"},
      {{"--hf", out, "--base-name", "x"}, "--base-name belongs to --peft"},
      {{"--gguf", irq, "--overwrite"}, "would destroy an input of this command"},
      {{"--hf", ""}, "the name of the output is empty"}};
  for (const auto& [args, part] : cases) {
    std::vector<std::string> all = {irq};
    all.insert(all.end(), args.begin(), args.end());
    const CommandResult r = run_command("irq_export", all);
    EXPECT_EQ(r.status, 2) << part;
    EXPECT_CONTAINS(r.err, part);
    EXPECT_EQ(r.out, "");
  }
  EXPECT_TRUE(names_in(dir_.path()).empty());
}

}  // namespace
}  // namespace irq
