// What  : the layers of a decoded token in one launch: q|k|v with norm, RoPE and cache, attention, o, gate|up, down, each with
//         its adapters and residual, for one row.
// Math  : kernels/nfk_layers.h, and for each linear what nfk_linear.cu says: levels as bf16, products by block of 64 from the
//         tensor cores, scales, shifts, u and sums F32, one rounding at the end. Attention: running softmax, F32.
// Shapes: one row of BF16, columns a multiple of 256 up to 16,384, dq8 scales, ranks a multiple of 8, heads of 64 or 128, one
//         sequence; what does not fit goes through packed_layers_by_ops() or the kernel of nfk_linear.cu.
// Cost  : k/8 + 0.03 bytes a weight and the keys: a layer of LLaMA-7B NF4, rank 64, 512 keys is 126 MB, 45 us at 2.8 TB/s; its
//         measured time stands in bench/NOTES.md. About 700 instructions a piece of 8,192 weights, 150 of them copies.
// Tricky: one block of 16 warps per multiprocessor stays for the whole launch. A warp takes every sixteenth piece (16 rows by 8
//         blocks) of its block's tiles and leaves 16 sums in shared memory; nobody waits for anybody until a linear's end, where
//         four lanes a row add up, apply the adapter and finish. Weights do not depend on x: each warp's copies run two pieces
//         ahead, into the next linears; so are A, the norm and the keys loaded before x is there, and B's rows asked for. What
//         linears, attention and its splits give passes to the other blocks in words that carry the number of their linear, as
//         u does: one look both waits and reads, no fence, no counter, and blocks never meet. So words may be overwritten only
//         when all who need them have read them: nobody gets past the next x before every block has finished its rows of this
//         linear, and a block that has none and no part of u waits for no x and for no u. Column j of a
//         tensor-core product is block j of the piece, so that one chain of products serves eight blocks and the scales come
//         after it. x lies in the gaps of the table of pairs. Registers are the budget: what is spilled on its way from
//         memory is waited for.
//         All blocks must run at once: one per multiprocessor, and nothing they wait for comes later in the stream.
#include <bit>

#include "kernels/nfk_layers.h"
#include "kernels/nfk_layers_attention.cuh"
#include "kernels/nfk_layers_block.cuh"

namespace irq {
namespace {

using Finish = PackedLinear::Finish;

template <int kBits>
struct StreamRun : StreamBlock<kBits> {
  // Attention behind linear n.
  template <int D>
  __device__ __forceinline__ void attend(const StreamAttention& a, int n) {
    const int units = a.heads * a.splits;
    float* const scratch = this->partial();
#pragma unroll 1
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
      StreamKeys ahead{};
      const StreamAttend<D> now(*this, a, n, unit);
      now.load_all(ahead, 0);
      __syncthreads();  // nobody reads the sums any more that lie in the scratch
      now.run(ahead, scratch);
    }
#pragma unroll 1
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) merge_splits<D>(*this, a, unit, n);
  }

  __device__ __forceinline__ void run() {
    const int count = this->p.count;
    float entry = 0;
    if (threadIdx.x < 256) entry = __ldg(this->p.all.map + threadIdx.x);
    for (int n = 0; n < kStreamSlots - 1; ++n) this->load_slot(n);
    __syncthreads();
    let_next_kernel_begin();
    this->fill(0);
    StreamAhead early;
    this->look_ahead(early, 0);
    this->prefetch_all_late(0);
    fill_pair_table<kBits, kStreamThreads, 256>(this->template in_shared<uint32_t>(0),
                                                this->p.all.level[this->lane & ((1 << kBits) - 1)]);
    if (threadIdx.x < 256) this->template in_shared<float>(this->at.map)[threadIdx.x] = entry;
    wait_for_previous_kernel();  // all before was on weights
    const unsigned epoch = __ldcg(&this->p.all.meeting->epoch);
    if (threadIdx.x == 0) this->first_number() = epoch + 1;  // read after the first linear's x is there
    for (int n = 0; n < count; ++n) {
      this->linear(n, early);
      if (n % 4 == 0) {
        const StreamAttention& a = this->p.attend[n / 4];
        if (a.head_dim == 64) attend<64>(a, n);
        else attend<128>(a, n);
      }
      if (n + 1 < count) this->look_ahead(early, n + 1), this->prefetch_all_late(n + 1);
      // Where linear n - 1 was, which everybody has left. Its arguments are waited for while x is.
      this->load_slot(n + kStreamSlots - 1);
    }
    // The last block to leave sets the counters back: nobody looks at them any more.
    __syncthreads();
    if (threadIdx.x != 0) return;
    StreamMeeting* meeting = this->p.all.meeting;
    __threadfence();
    if (atomicAdd(&meeting->left, 1) == gridDim.x - 1) meeting->left = 0, meeting->epoch = this->number(count - 1);
  }
};

template <int kBits>
__global__ void __launch_bounds__(kStreamThreads, 1)
    stream_kernel(const __grid_constant__ StreamProgram p, const __grid_constant__ StreamMemory at) {
  extern __shared__ __align__(16) char memory[];
  const uint32_t begin = smem_address(memory);
  if (begin > kTableAddress) __trap();
  StreamRun<kBits>{{{{p, at, memory + (kTableAddress - begin)}}}}.run();
}

bool aligned_8(const void* p) { return reinterpret_cast<uintptr_t>(p) % 8 == 0; }

StreamLinear stream_linear(const PackedLinearArgs& a) {
  StreamLinear s{};
  const bool paired = a.finish == Finish::swiglu;
  bool whole = a.cols % kStreamColumns == 0;
  int first = 0;
  for (int i = 0; i < PackedLinear::kParts; ++i) {
    const PackedView& q = a.part[i];
    s.part[i] = {q.codes,
                 {q.scale_codes, q.tau_codes},
                 {q.scale_groups, q.tau_groups},
                 q.scale_offset,
                 a.b[i],
                 static_cast<int>(a.b_stride[i]),
                 a.b_column[i],
                 a.b_rank[i],
                 static_cast<int>(q.rows),
                 first};
    first += static_cast<int>(q.rows);
    whole = whole && aligned_8(q.scale_codes) && aligned_8(q.tau_codes);
    StreamTiles& t = s.tiles_of[i];
    t = {i == 0 ? 0 : a.tile_end[i - 1], 0, kLinearRows, 8};
    if (a.finish == Finish::rope && i < 2) t.shift = a.tile_shift, t.step = 2 * a.half, t.upper = a.half;
    if (paired) t.step = 8, t.upper = 0;
    if (i + 1 < PackedLinear::kParts) s.tile_end[i] = paired ? a.tiles : a.tile_end[i];
  }
  s.paired = paired, s.whole_pieces = whole;
  s.tiles = a.tiles, s.cols = a.cols, s.finish = a.finish;
  s.x = a.x, s.norm = a.norm, s.y = a.y, s.base = a.base, s.a = a.a;
  s.a_stride = static_cast<int>(a.a_stride), s.ranks = a.ranks, s.segments = a.segments;
  s.eps = a.eps, s.base_scale = a.base_scale;
  s.cos_stride = static_cast<int>(a.cos_stride), s.sin_stride = static_cast<int>(a.sin_stride);
  s.half = a.half, s.kv_stride = static_cast<int>(a.kv_stride);
  s.cosine = a.cosine, s.sine = a.sine, s.positions = a.positions, s.cache_rows = a.cache_rows;
  s.keys = a.keys, s.values = a.values;
  return s;
}

bool stream_takes(const PackedLinearArgs& a) {
  bool ok = a.m_count == 1 && a.cols % kLinearColumns == 0 && a.cols <= kStreamMaxBlocks * kBlock;
  for (int i = 0; i < PackedLinear::kParts; ++i)
    if (a.b[i]) ok = ok && aligned_16(a.b[i]) && a.b_stride[i] % 8 == 0 && a.b_rank[i] % 8 == 0;
  return ok && int64_t{a.ranks} * a.segments <= kStreamExchange;
}

template <int kBits>
StreamMemory memory_for(const std::vector<PackedLinearArgs>& linears, unsigned grid) {
  using S = StreamShape<kBits>;
  int cols = 0, ranks = 0, parts = 0, sums = kStreamWarps * (128 + 2) * 4;  // attention's, at least
  for (const PackedLinearArgs& a : linears) {
    const int chunks = (a.cols + kStreamColumns - 1) / kStreamColumns;
    const int tiles = static_cast<int>(ceil_div(a.tiles, grid));
    cols = std::max(cols, chunks * kStreamColumns), ranks = std::max(ranks, a.ranks);
    parts = std::max(parts, a.ranks * a.segments), sums = std::max(sums, tiles * chunks * kLinearRows * 4);
  }
  StreamMemory m{};
  m.x_pitch = S::kXPitch;
  m.map = S::kTable;
  m.block_sums = m.map + 256 * 4;
  m.u_parts = m.block_sums + stream_align(cols / kBlock * 4);
  m.u = m.u_parts + stream_align(parts * 4);
  m.partial = m.u + stream_align(ranks * 4);
  m.slots = m.partial + stream_align(sums);
  m.stages = m.slots + stream_align(kStreamSlots * static_cast<int>(sizeof(StreamSlot)));
  m.x = m.stages + kStreamWarps * kStreamStages * S::kStage;
  m.total = m.x;
  if (S::kGaps) m.x = 128;
  else m.total += cols / kBlock * S::kXPitch;
  return m;
}

// False if there is too little shared memory for it.
bool launch(const StreamProgram& program, const std::vector<PackedLinearArgs>& linears, int bits, int multiprocessors,
            int64_t shared_bytes, cudaStream_t stream) {
  bool done = false;
  dispatch_bits(bits, [&](auto k) {
    const auto kernel = stream_kernel<k.value>;
    const unsigned grid = static_cast<unsigned>(multiprocessors);
    const StreamMemory at = memory_for<k.value>(linears, grid);
    if (at.total + kTableAddress > shared_bytes) return;
    // What is static lies in front of what is dynamic, and so of the table.
    cudaFuncAttributes fixed{};
    CUDA_CHECK(cudaFuncGetAttributes(&fixed, kernel));
    const int bytes = at.total + kTableAddress - static_cast<int>(fixed.sharedSizeBytes);
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    launch_early(kernel, grid, kStreamThreads, bytes, stream, program, at);
    done = true;
  });
  return done;
}

void fill_shared(StreamShared& all, const PackedLinearArgs& first, const StreamAttention& attend, int bits,
                 StreamMeeting* meeting) {
  all.map = first.part[0].map;
  all.meeting = meeting, all.u = reinterpret_cast<uint2*>(meeting + 16);
  all.attended = all.u + kStreamExchange;
  for (int i = 1; i < 4; ++i) all.result[i] = all.attended + i * kStreamExchange;
  all.result[0] = all.result[3] + kStreamExchange;
  all.record_o = all.result[0] + kStreamExchangeQkv;
  all.record_sum = all.record_o + attend.heads * attend.splits * attend.head_dim;
  scale_levels(all.level, all.unit, bits);
}

// Each linear reads what the one before it gave: results pass between blocks without their tensors.
bool chained(const PackedLayer& c) {
  return c.gate_up.x.data == c.o.y.data && c.down.x.data == c.gate_up.y.data && c.qkv.parts == 3 && !c.down.norm &&
         c.o.finish == Finish::add && c.gate_up.finish == Finish::swiglu && c.down.finish == Finish::add;
}

// What the kernel needs of a layer; false if it does not take it.
bool layer_arguments(const PackedLayer& c, int multiprocessors, PackedLinearArgs (&a)[4], StreamAttention& t) {
  const PackedLinear* const calls[4] = {&c.qkv, &c.o, &c.gate_up, &c.down};
  for (int i = 0; i < 4; ++i) {
    a[i] = {};
    if (!packed_linear_arguments(*calls[i], a[i]) || !stream_takes(a[i])) return false;
    if (calls[i]->w[0].format.bits != c.qkv.w[0].format.bits || calls[i]->w[0].map.data != c.qkv.w[0].map.data)
      return false;
  }
  const int d = c.qkv.head_dim, heads = static_cast<int>(c.qkv.w[0].rows / d);
  const auto rows_aligned = [](const Tensor& x) { return aligned_16(x.data) && x.stride % 8 == 0; };
  if (c.qkv.x.rows != 1 || c.qkv.finish != Finish::rope || (d != 64 && d != 128) || c.seqs.rows != 1 ||
      c.o.x.cols != c.qkv.w[0].rows || !chained(c) || !rows_aligned(c.qkv.keys) || !rows_aligned(c.qkv.values) ||
      !aligned_16(c.qkv.y.data) || c.qkv.keys.stride >= int64_t{1} << 31)
    return false;
  t.keys = a[0].keys, t.values = a[0].values, t.seq = c.seqs.as<int32_t>();
  t.kv_stride = static_cast<int>(a[0].kv_stride), t.heads = heads;
  t.group = static_cast<int>(c.qkv.w[0].rows / c.qkv.w[1].rows), t.head_dim = d;
  t.first_key = static_cast<int>(c.qkv.w[0].rows), t.first_value = static_cast<int>(c.qkv.w[0].rows + c.qkv.w[1].rows);
  t.splits = std::clamp(multiprocessors / heads, 1, kStreamSplits);
  t.scale = 1.0f / std::sqrt(static_cast<float>(d));
  return c.qkv.width() <= 2 * kStreamExchangeQkv && heads * t.splits * (d + 2) <= kStreamExchangeRecords;
}

}  // namespace

void CudaBackend::nfk_layers(const PackedLayer* layers, int count) {
  for (int begin = 0; begin < count; begin += kStreamLayers) {
    const int part = std::min(kStreamLayers, count - begin);
    const QuantizedMatrix& w = layers[begin].qkv.w[0];
    std::vector<PackedLinearArgs> linears;
    StreamProgram program{};
    bool takes = true;
    for (int i = 0; takes && i < part; ++i) {
      PackedLinearArgs a[4];
      StreamAttention& t = program.attend[i];
      const QuantizedMatrix& own = layers[begin + i].qkv.w[0];
      takes = layer_arguments(layers[begin + i], sm_count(), a, t) && own.format.bits == w.format.bits &&
              own.map.data == w.map.data &&
              (i == 0 || layers[begin + i].qkv.x.data == layers[begin + i - 1].down.y.data) &&
              t.heads == program.attend[0].heads && t.head_dim == program.attend[0].head_dim;
      for (int k = 0; k < 4; ++k) program.linear[4 * i + k] = stream_linear(a[k]), linears.push_back(a[k]);
    }
    if (takes) {
      const StreamAttention& t = program.attend[0];
      program.count = 4 * part;
      fill_shared(program.all, linears[0], t, w.format.bits, stream_meeting());
      takes = launch(program, linears, w.format.bits, sm_count(), shared_bytes(), stream());
    }
    if (!takes) packed_layers_by_ops(*this, layers + begin, part);
  }
}

}  // namespace irq
