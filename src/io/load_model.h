// Fills a built Llama from a base, and writes a trained one back.
#pragma once
#include "src/io/checkpoint.h"
#include "src/model/llama.h"

namespace irq {

// Frozen weights from a plain base, rounded to the storage type; with plan.full the masters, exactly. Ends with refresh()
// for a full model; an adapter must be initialised or read before its own refresh().
void load_base(Backend& backend, Llama& model, BaseSource& source, const ByteProgress& progress = {});
// Packed weights from a quantized base (dequantized once where the plan caches them).
void load_quantized(Backend& backend, Arena& arena, Llama& model, IrqReader& source, const ByteProgress& progress = {});
// The largest scratch load_quantized() needs, on a planning arena too.
void stage_largest_matrix(Arena& arena, const ModelPlan& plan);

// Every trained parameter under its name, f32 (for .lora). Stacked weights of a full model are not split here.
std::vector<NamedArray> download_params(Backend& backend, ParamStore& params);
// The adapter's arrays into the model's parameters: names and shapes must agree; Adam's state is untouched.
void upload_adapter(Backend& backend, Llama& model, const AdapterFile& adapter, const std::string& path);
// A fully trained model as a .bin of `dtype`.
void write_model(Backend& backend, Llama& model, const std::string& path, DType dtype);

}  // namespace irq
