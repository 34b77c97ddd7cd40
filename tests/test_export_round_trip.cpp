// Exported and converted back: the same file, bit for bit.
#include "src/io/convert.h"
#include "tests/export_fixture.h"

namespace irq {
namespace {

class ExportRoundTrip : public ExportTest {};

TEST_F(ExportRoundTrip, ABaseComesBackAsItWas) {
  for (const bool tied : {false, true})
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
      ModelConfig c = eval_config();
      c.tied = tied, c.rope_theta = 500000, c.norm_eps = 1e-5;
      const Weights weights = random_weights(c, 7);
      {
        BaseWriter w(dir_ / "m.bin", c, dtype);
        while (const TensorSpec* t = w.next()) {
          const std::string name = t->name;
          const std::vector<float>& values = weights.at(name);
          if (t->dtype == DType::F32) {
            w.write(name, values.data(), t->bytes());
            continue;
          }
          std::vector<uint16_t> halves;
          for (const float x : values) halves.push_back(dtype == DType::F16 ? to_f16(x).bits : to_bf16(x).bits);
          w.write(name, halves.data(), t->bytes());
        }
        w.finish();
      }
      const std::string want = read_bytes(dir_ / "m.bin");
      ExportSource source(dir_ / "m.bin", "", false);
      export_hugging_face(source, dir_ / "hf", {.overwrite = true, .shard_bytes = 40'000});
      convert(*open_import(dir_ / "hf"), dir_ / "hf.bin");
      EXPECT_EQ(read_bytes(dir_ / "hf.bin"), want) << name_of(dtype) << tied;
      export_gguf(source, dir_ / "m.gguf", {.overwrite = true});
      convert(*open_import(dir_ / "m.gguf"), dir_ / "gguf.bin");
      EXPECT_EQ(read_bytes(dir_ / "gguf.bin"), want) << name_of(dtype) << tied;
    }
}

}  // namespace
}  // namespace irq
