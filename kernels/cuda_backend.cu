// What:   CudaBackend without its ops: choosing the GPU, memory, transfers, the stream, and the words of CUDA's errors.
// Math:   none.
// Shapes: upload and download take (rows, cols) with any row stride on the device, contiguous on the host.
// Cost:   bytes / (7 GB/s from pageable memory, 53 GB/s from pinned: H100, measured). A step moves a few kilobytes.
// Tricky: the compute stream is non-blocking, so it does not wait for the default stream: everything, copies included,
//         goes through stream_. An upload returns when the host memory may be used again.
#include <algorithm>

#include "kernels/common.cuh"
#include "kernels/matmul_plans.cuh"

#define IRQ_TEXT_OF(...) #__VA_ARGS__
#define IRQ_TEXT(...) IRQ_TEXT_OF(__VA_ARGS__)

namespace irq {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;
constexpr int kOldestMajor = 8;  // Ampere: bf16 tensor cores and cp.async
// nvcc's list of the architectures of this build, as "800,900".
constexpr const char* kBuiltFor = IRQ_TEXT(__CUDA_ARCH_LIST__);

std::string cuda_version(int version) { return strf("%d.%d", version / 1000, version % 1000 / 10); }

std::string find_reason() {
  int count = 0, driver = 0, runtime = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();  // a failed query must not be reported by the next launch
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  if (status == cudaErrorInsufficientDriver)
    return driver == 0 ? "no NVIDIA driver on this machine"
                       : strf("the NVIDIA driver is too old: it supports CUDA %s, this build needs %s",
                              cuda_version(driver).c_str(), cuda_version(runtime).c_str());
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return visible ? strf("no GPU visible (CUDA_VISIBLE_DEVICES is '%s')", visible) : "no GPU on this machine";
  }
  if (status != cudaSuccess) return strf("CUDA does not start: %s", cudaGetErrorString(status));
  cudaDeviceProp p{};
  if (cudaGetDeviceProperties(&p, 0) != cudaSuccess) return "CUDA does not describe the GPU";
  if (p.major < kOldestMajor)
    return strf("%s is sm_%d%d, and the kernels need sm_80 (A100, RTX 30) or newer", p.name, p.major, p.minor);
  return "";
}

}  // namespace

void cuda_check(cudaError_t status, const char* what, const char* file, int line) {
  if (status == cudaSuccess) return;
  const std::string where = strf("%s at %s:%d", what, file, line);
  if (status == cudaErrorMemoryAllocation)
    throw Error("the GPU is out of memory")
        .line("at", where)
        .line("try",
              "a smaller --micro-batch, --recompute block, --residency packed, or end other programs on this GPU");
  if (status == cudaErrorNoKernelImageForDevice)
    throw Error("this build has no kernels for this GPU")
        .line("at", where)
        .line("built", strf("for architectures %s", kBuiltFor))
        .line("try", "make clean, then make ARCHS=-gencode=arch=compute_XY,code=sm_XY for this GPU's sm_XY");
  throw Error(strf("CUDA error: %s (%s)", cudaGetErrorString(status), cudaGetErrorName(status)))
      .line("at", where)
      .line("note", "kernels run behind the program: CUDA_LAUNCH_BLOCKING=1 shows the one that failed");
}

std::string cuda_unavailable_reason() {
  static const std::string reason = find_reason();
  return reason;
}

std::unique_ptr<Backend> make_cuda_backend(Precision precision) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty())
    throw Error("no usable GPU").line("reason", reason).line("try", "--device cpu");
  return std::make_unique<CudaBackend>(precision);
}

CudaBackend::CudaBackend(Precision precision) : Backend(precision) {
  CUDA_CHECK(cudaSetDevice(0));
  CUDA_CHECK(cudaGetDeviceProperties(&properties_, 0));
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  CUDA_CHECK(cudaEventCreate(&begin_));
  CUDA_CHECK(cudaEventCreate(&end_));
  CUDA_CHECK(cudaMalloc(&workspace_, kWorkspaceBytes));
  CUDA_CHECK(cudaMalloc(&meetings_, (kMeetings + kStreamWords) * sizeof(int)));
  CUDA_CHECK(cudaMemsetAsync(meetings_, 0, (kMeetings + kStreamWords) * sizeof(int), stream_));
  cublas_check(cublasLtCreate(&blas_), "cublasLtCreate");
  plans_ = std::make_unique<MatmulPlans>();
}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(stream_);
  plans_.reset();
  if (blas_) cublasLtDestroy(blas_);
  cudaFree(workspace_);
  cudaFree(meetings_);
  if (begin_) cudaEventDestroy(begin_);
  if (end_) cudaEventDestroy(end_);
  if (stream_) cudaStreamDestroy(stream_);
}

std::string CudaBackend::describe() const {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  return strf("%s, sm_%d%d, %s, driver for CUDA %s", properties_.name, properties_.major, properties_.minor,
              human_bytes(static_cast<double>(properties_.totalGlobalMem)).c_str(), cuda_version(driver).c_str());
}

void* CudaBackend::allocate(int64_t bytes) {
  IRQ_CHECK(bytes >= 0, "allocation of %ld bytes", bytes);
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error("not enough GPU memory")
        .line("asked", human_bytes(static_cast<double>(bytes)))
        .line("free", strf("%s of %s", human_bytes(static_cast<double>(free_bytes())).c_str(),
                           human_bytes(static_cast<double>(properties_.totalGlobalMem)).c_str()))
        .line("try",
              "a smaller --micro-batch, --recompute block, --residency packed, or end other programs on this GPU");
  }
  CUDA_CHECK(status);
  return memory;
}

// Destructors call it, often while the error that a kernel left is on its way up: that one is to be seen, not a second one.
void CudaBackend::release(void* memory) { cudaFree(memory); }

int64_t CudaBackend::free_bytes() const {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

void CudaBackend::upload(Tensor dst, const void* host) {
  IRQ_CHECK(!capturing_, "%s", "a recording cannot hold a transfer from or to the host");
  if (dst.numel() == 0) return;
  const size_t width = static_cast<size_t>(dst.cols * size_of(dst.dtype));
  if (dst.contiguous())
    CUDA_CHECK(cudaMemcpyAsync(dst.data, host, static_cast<size_t>(dst.bytes()), cudaMemcpyHostToDevice, stream_));
  else
    CUDA_CHECK(cudaMemcpy2DAsync(dst.data, static_cast<size_t>(dst.stride * size_of(dst.dtype)), host, width, width,
                                 static_cast<size_t>(dst.rows), cudaMemcpyHostToDevice, stream_));
  CUDA_CHECK(cudaStreamSynchronize(stream_));  // CUDA promises no more than "might have been read" for host memory
}

void CudaBackend::download(void* host, Tensor src) {
  IRQ_CHECK(!capturing_, "%s", "a recording cannot hold a transfer from or to the host");
  if (src.numel() == 0) return;
  const size_t width = static_cast<size_t>(src.cols * size_of(src.dtype));
  if (src.contiguous())
    CUDA_CHECK(cudaMemcpyAsync(host, src.data, static_cast<size_t>(src.bytes()), cudaMemcpyDeviceToHost, stream_));
  else
    CUDA_CHECK(cudaMemcpy2DAsync(host, width, src.data, static_cast<size_t>(src.stride * size_of(src.dtype)), width,
                                 static_cast<size_t>(src.rows), cudaMemcpyDeviceToHost, stream_));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
}

void CudaBackend::synchronize() { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

double CudaBackend::time_ms(const std::function<void()>& work) {
  float ms = 0;
  CUDA_CHECK(cudaEventRecord(begin_, stream_));
  work();
  CUDA_CHECK(cudaEventRecord(end_, stream_));
  CUDA_CHECK(cudaEventSynchronize(end_));
  CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
  return static_cast<double>(ms);
}

namespace {
class CudaGraph final : public Recorded {
 public:
  CudaGraph(cudaGraph_t graph, cudaStream_t stream) : graph_(graph), stream_(stream) {
    const cudaError_t status = cudaGraphInstantiate(&runnable_, graph_, 0);
    if (status != cudaSuccess) cudaGraphDestroy(graph_);
    CUDA_CHECK(status);
  }
  ~CudaGraph() override {
    cudaStreamSynchronize(stream_);
    cudaGraphExecDestroy(runnable_);
    cudaGraphDestroy(graph_);
  }
  void launch() override { CUDA_CHECK(cudaGraphLaunch(runnable_, stream_)); }

 private:
  cudaGraph_t graph_;
  cudaGraphExec_t runnable_ = nullptr;
  cudaStream_t stream_;
};
}  // namespace

std::unique_ptr<Recorded> CudaBackend::capture(const std::function<void()>& work) {
  cudaGraph_t graph = nullptr;
  CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  capturing_ = true;
  try {
    work();
  } catch (...) {
    capturing_ = false;
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  capturing_ = false;
  CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
  return std::make_unique<CudaGraph>(graph, stream_);
}

void CudaBackend::copy_bytes(void* dst, const void* src, int64_t bytes) {
  CUDA_CHECK(cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_));
}

void* CudaBackend::workspace(int64_t bytes) {
  IRQ_CHECK(bytes <= kWorkspaceBytes, "a kernel needs %ld bytes of scratch, there are %ld", bytes, kWorkspaceBytes);
  return workspace_;
}

}  // namespace irq
