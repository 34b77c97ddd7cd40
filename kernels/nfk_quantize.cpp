// NF-k codes and absmax of every block (paper Eqs 1-2), and the double quantization of scales and shifts. CPU reference.
#include "kernels/common.h"
#include "kernels/nfk_block.h"

namespace irq {
namespace {

// Appends n codes most significant bit first; the padding of the last byte is 0.
void pack_codes(uint8_t* out, const uint8_t* codes, int n, int bits) {
  uint32_t window = 0;
  int held = 0;
  for (int i = 0; i < n; ++i) {
    window = (window << bits) | codes[i];
    held += bits;
    if (held >= 8) *out++ = static_cast<uint8_t>(window >> (held -= 8));
  }
  if (held > 0) *out = static_cast<uint8_t>(window << (8 - held));
}

// The mean's fixed order, the same on every device: lane l of 256 adds elements l, l + 256, ... of its part in turn, then
// the lanes are halved onto each other. First over chunks of 4,096, then once more over the chunks' sums.
constexpr int kLanes = 256;
constexpr int64_t kChunk = 4096;

template <class T>
double lane_sum(const T* x, int64_t n) {
  double lane[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lane[i % kLanes] += static_cast<double>(x[i]);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

double fixed_order_sum(const float* x, int64_t n) {
  std::vector<double> chunks(static_cast<size_t>(ceil_div(n, kChunk)));
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < static_cast<int64_t>(chunks.size()); ++c)
    chunks[static_cast<size_t>(c)] = lane_sum(x + c * kChunk, std::min(kChunk, n - c * kChunk));
  return lane_sum(chunks.data(), static_cast<int64_t>(chunks.size()));
}

// Nearest map entry by fp32 midpoints fl(fl(a + b) / 2); a tie goes to the even index; NaN to 0 (fidelity 2.3).
uint8_t round_to_map(const float* map, float x) {
  int low = 0, high = 255;  // the number of midpoints below x lies in [low, high]
  while (low < high) {
    const int middle = (low + high) / 2;
    if ((map[middle] + map[middle + 1]) * 0.5f < x) low = middle + 1;
    else high = middle;
  }
  if (low < 255 && low % 2 == 1 && (map[low] + map[low + 1]) * 0.5f == x) ++low;
  return static_cast<uint8_t>(low);
}

// Entry with the smallest fl(|x - entry|), the first on ties; NaN to 0 (fidelity 3.3). Entries further off than the two
// around x differ by whole gaps of the map, which are far above fp32 rounding.
uint8_t nearest_in_map(const float* map, float x) {
  int low = 0, high = 255;  // the last entry <= x, or 0
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (map[middle] <= x) low = middle;
    else high = middle - 1;
  }
  if (low < 255 && std::abs(x - map[low + 1]) < std::abs(x - map[low])) ++low;
  return static_cast<uint8_t>(low);
}

}  // namespace

void CpuBackend::nfk_quantize(Tensor codes, Tensor absmax, Tensor entropy, Tensor w, Tensor tau, int bits) {
  const Codebook& book = nf_codebook(bits);
  const int64_t numel = w.numel(), blocks = ceil_div(numel, kBlock);
  const float* weights = w.as<float>();
  uint8_t* out_codes = codes.as<uint8_t>();
  float* out_absmax = absmax.as<float>();
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, numel - b * kBlock));
    float u[kBlock];
    for (int i = 0; i < n; ++i) u[i] = tau ? weights[b * kBlock + i] - tau.as<float>()[b] : weights[b * kBlock + i];
    const float a = block_absmax(u, n), rcp = 1.0f / a;
    uint8_t code[kBlock] = {}, counts[16] = {};
    for (int i = 0; i < n; ++i) {
      code[i] = static_cast<uint8_t>(nfk_code(book, u[i], a, rcp));
      ++counts[code[i]];
    }
    pack_codes(out_codes + b * kBlock / 8 * bits, code, n, bits);
    out_absmax[b] = a;
    if (entropy) entropy.as<float>()[b] = entropy_bits(entropy_sum(counts, 1 << bits), n);
  }
}

void CpuBackend::double_quantize_scales(Tensor scale_codes, Tensor scale_groups, Tensor scale_offset, Tensor absmax,
                                        Tensor map) {
  const int64_t blocks = absmax.numel();
  if (blocks == 0) return;
  const float *s = absmax.as<float>(), *table = map.as<float>();
  const float offset = static_cast<float>(fixed_order_sum(s, blocks) / static_cast<double>(blocks));
  scale_offset.as<float>()[0] = offset;
  for (int64_t g = 0; g < ceil_div(blocks, kScaleGroup); ++g) {
    const int64_t begin = g * kScaleGroup;
    const int n = static_cast<int>(std::min<int64_t>(kScaleGroup, blocks - begin));
    float d[kScaleGroup];
    for (int i = 0; i < n; ++i) d[i] = s[begin + i] - offset;
    const float largest = block_absmax(d, n), rcp = 1.0f / largest;
    scale_groups.as<float>()[g] = largest;
    for (int i = 0; i < n; ++i) scale_codes.as<uint8_t>()[begin + i] = round_to_map(table, d[i] * rcp);
  }
}

void CpuBackend::double_quantize_tau(Tensor tau_codes, Tensor tau_groups, Tensor tau, Tensor map) {
  const int64_t blocks = tau.numel();
  const float *t = tau.as<float>(), *table = map.as<float>();
  for (int64_t g = 0; g < ceil_div(blocks, kScaleGroup); ++g) {
    const int64_t begin = g * kScaleGroup;
    const int n = static_cast<int>(std::min<int64_t>(kScaleGroup, blocks - begin));
    const float largest = block_absmax(t + begin, n);
    tau_groups.as<float>()[g] = largest;
    for (int i = 0; i < n; ++i) tau_codes.as<uint8_t>()[begin + i] = nearest_in_map(table, t[begin + i] / largest);
  }
}

void CpuBackend::dequantize_tau(Tensor tau_hat, Tensor tau_codes, Tensor tau_groups, Tensor map) {
  for (int64_t b = 0; b < tau_hat.numel(); ++b)
    tau_hat.as<float>()[b] = map.as<float>()[tau_codes.as<uint8_t>()[b]] * tau_groups.as<float>()[b / kScaleGroup];
}

}  // namespace irq
