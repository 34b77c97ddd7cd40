// An adapter belongs to the base it was trained on, down to the last bit: its file carries that base's hash.
#pragma once
#include <cstdint>
#include <string>

namespace irq {

struct AdapterFile;
class IrqReader;

// A model file as an adapter sees it.
struct BaseIdentity {
  std::string path;
  uint64_t hash = 0;         // of the file's content
  bool quantized = false;    // an .irq ...
  uint64_t source_hash = 0;  // ... and what it was made from
};

// The trainer writes the hash of the file it trained on into the adapter. On an .irq an adapter fits as well that was
// trained on the .bin this .irq was made from. Anything else is an Error with both hashes, which names the right file if
// it lies beside the model or the adapter. `why` (may be ""): what would go wrong otherwise.
void require_adapter_base(const BaseIdentity& base, uint64_t wanted, const std::string& adapter_path,
                          const std::string& why = "");

// Scales that were trained belong to integers: an Error where `base` (null: not quantized) has none.
void require_integer_base(const AdapterFile& adapter, const IrqReader* base, const std::string& adapter_path);

}  // namespace irq
