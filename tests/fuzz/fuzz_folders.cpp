// What lies in a folder of several files: a Hugging Face model's index and shard, bitsandbytes' quantization state, PEFT's tensors,
// tokenizer_config.json. One of them is the input (its first byte chooses which), the others are right.
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>

#include "src/io/bitsandbytes.h"
#include "src/io/initial_adapter.h"
#include "src/text/tokenizer.h"
#include "tests/fuzz/fuzz_util.h"

namespace irq {
namespace {

const std::string& folder() {
  static const std::string path = [] {
    std::string made = "/dev/shm/irq_fuzz_folders_XXXXXX";
    if (mkdtemp(made.data()) == nullptr) std::abort();
    return made;
  }();
  return path;
}

void put(const std::string& name, const std::string& content) {
  std::ofstream(folder() + "/" + name, std::ios::binary) << content;
}
void drop(const std::string& name) { unlink((folder() + "/" + name).c_str()); }

std::string safetensors(const std::string& header, size_t bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(bytes, '\1');
}

constexpr const char* kModelConfig =
    R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8, "max_position_embeddings": 8%s})";

void read_model(const std::string& config_end) {
  put("config.json", strf(kModelConfig, config_end.c_str()));
  if (config_end.empty()) open_and_read(import_hugging_face, folder());
  else fuzz([] { BitsandbytesFolder{folder()}; });
}

}  // namespace
}  // namespace irq

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace irq;
  if (size == 0) return 0;
  const std::string input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const char* const nf4 =
      R"(, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})";
  switch (data[0] % 5) {
    case 0:  // the index, beside a shard that holds one tensor
      drop("model.safetensors");
      put("a.safetensors",
          safetensors(R"({"model.norm.weight":{"dtype":"F32","shape":[32],"data_offsets":[0,128]}})", 128));
      put("model.safetensors.index.json", input);
      read_model("");
      break;
    case 1:  // the only file
    case 2:
      drop("model.safetensors.index.json");
      put("model.safetensors", data[0] % 5 == 1 ? input : safetensors(input, 4096));
      read_model(data[0] % 2 ? "" : nf4);
      break;
    case 3: {
      put("adapter_config.json", R"({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]})");
      put("adapter_model.safetensors", safetensors(input, 4096));
      fuzz([] { read_initial_adapter(folder(), fuzz_config()); });
      break;
    }
    case 4:
      put("tokenizer.json", R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
                                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "added_tokens": []})");
      put("tokenizer_config.json", input);
      fuzz([] { open_tokenizer(folder() + "/tokenizer.json"); });
  }
  return 0;
}
