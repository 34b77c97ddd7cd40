// What irq_inspect shows of a file. Every function returns text for standard output, or writes a .npy.
#pragma once
#include <string>

#include "src/io/checkpoint.h"

namespace irq {

// The header's fields in words, and the verdict on the contents: every byte is read and checked (throws where one is wrong).
std::string inspect_summary(const std::string& path, const ByteProgress& progress = {});
// One line per tensor: name, type, shape, offset in the payload, bytes.
std::string inspect_tensors(const std::string& path);
// One line per quantized matrix of an .irq: mean code entropy in bits per weight without and with calibration as recorded,
// and recomputed here from the stored codes (the mean over blocks of -sum p log2 p); at the end the mean over all weights.
std::string inspect_entropy(const std::string& path, const ByteProgress& progress = {});

// NAME is a plain tensor (f16 and bf16 widened to f32) or, for a matrix M of an .irq: M.codes u8 (rows, cols);
// M.scales, M.tau, M.entropy f32 and M.scale_codes, M.tau_codes u8 (blocks); M.scale_groups, M.tau_groups f32 (groups);
// M.scale_offset f32 (1); M.dequant f32 (rows, cols).
void dump_tensor(const std::string& path, const std::string& name, const std::string& npy_path);

// ---- plain host decoding of a quantized matrix, the same arithmetic as the dequantization op ---------------------------
std::vector<uint8_t> unpack_codes(const QuantizedMatrix& q);   // (rows * cols)
std::vector<float> block_scales(const QuantizedMatrix& q);     // (blocks): s_hat
std::vector<float> block_taus(const QuantizedMatrix& q);       // (blocks): tau_hat, 0 where the format has none
std::vector<float> block_entropies(const QuantizedMatrix& q);  // (blocks): bits per weight
std::vector<float> dequantize_on_host(
    const QuantizedMatrix& q);  // (rows * cols), before any rounding to a storage type

}  // namespace irq
