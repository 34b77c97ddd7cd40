// What the tests of exporting share: a small model in every form, and exported folders read back.
#pragma once
#include <memory>
#include <nlohmann/json.hpp>

#include "src/eval/model_session.h"
#include "src/io/export.h"
#include "src/io/foreign_names.h"
#include "src/io/inspect.h"
#include "src/io/safetensors.h"
#include "src/train/quantize_base.h"
#include "tests/cli_util.h"
#include "tests/eval_fixture.h"
#include "tests/scratch_dir.h"

namespace irq {

// m.bin of eval_config() in F32, m.irq made of it (NF4 with ICQ), a.lora and tile.lora trained on m.irq.
class ExportTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = std::make_unique<ScratchDir>();
    const ModelConfig c = eval_config();
    hash_ = write_weights(shared("m.bin"), c, random_weights(c, 1));
    BaseReader base(shared("m.bin"));
    irq_hash_ = quantize_base(*eval_backend(), base, shared("m.irq"), {}).hash;
    AdapterFile a = random_adapter(c, kAllTargets, true, true, irq_hash_);
    write_adapter(shared("a.lora"), a);
    a.tile = true;
    write_adapter(shared("tile.lora"), a);
  }
  static void TearDownTestSuite() { shared_.reset(); }
  static std::string shared(const std::string& name) { return *shared_ / name; }

  static nlohmann::json json_of(const std::string& path) { return nlohmann::json::parse(read_bytes(path)); }
  static std::vector<std::string> names_in(const std::string& folder) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
  static std::string tensor_bytes(const SafetensorsReader& r, const std::string& name) {
    const SafetensorsEntry* e = r.find(name);
    EXPECT_NE(e, nullptr) << name;
    return e ? std::string(reinterpret_cast<const char*>(r.data(*e)), static_cast<size_t>(e->bytes)) : "";
  }
  static std::vector<float> floats(const std::string& bytes) {
    std::vector<float> x(bytes.size() / 4);
    std::memcpy(x.data(), bytes.data(), 4 * x.size());
    return x;
  }
  // A folder of F32 weights as a .bin.
  static void to_bin(const std::string& folder, const std::string& path, const ModelConfig& c) {
    const SafetensorsReader r(folder + "/model.safetensors");
    BaseWriter w(path, c, DType::F32);
    while (const TensorSpec* t = w.next()) {
      const std::string name = t->name, bytes = tensor_bytes(r, hugging_face_module(name) + ".weight");
      w.write(name, bytes.data(), static_cast<int64_t>(bytes.size()));
    }
    w.finish();
  }
  static std::vector<float> logits(const std::string& model, const std::string& adapter = "") {
    const std::vector<int32_t> ids = random_ids(20, eval_config().vocab, 9);
    const auto backend = eval_backend();
    ModelSession session(*backend, model, adapter);
    session.load({{.evaluate = {}, .logits = {{20, 20, 1}}, .positions = 20, .cache_tokens = 0}});
    return session.logits(every_position(ids));
  }
  static double relative_l2(const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < b.size(); ++i) {
      const double d = static_cast<double>(a.at(i)) - static_cast<double>(b[i]);
      difference += d * d, size += static_cast<double>(b[i]) * static_cast<double>(b[i]);
    }
    return std::sqrt(difference / size);
  }

  static inline uint64_t hash_ = 0, irq_hash_ = 0;
  ScratchDir dir_;

 private:
  static inline std::unique_ptr<ScratchDir> shared_;
};

}  // namespace irq
