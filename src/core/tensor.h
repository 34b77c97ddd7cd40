// Tensor: a view of a row-major matrix in somebody else's memory. It owns nothing and is copied freely.
#pragma once
#include <cstdint>

#include "src/core/check.h"
#include "src/core/dtype.h"

namespace irq {

enum class Device : int32_t { CPU, CUDA };

struct Tensor {
  void* data = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t stride = 0;  // elements from one row to the next, >= cols
  DType dtype = DType::F32;
  Device device = Device::CPU;
  const char* name = "";

  explicit operator bool() const { return data != nullptr; }
  int64_t numel() const { return rows * cols; }
  int64_t bytes() const { return numel() * size_of(dtype); }
  bool contiguous() const { return stride == cols || rows <= 1; }

  // Host access, typed; T must match dtype. Row r starts at row<T>(r).
  template <class T>
  T* as() const {
    IRQ_CHECK(dtype == dtype_of<T>(), "%s is %s", name, name_of(dtype));
    return static_cast<T*>(data);
  }
  template <class T>
  T* row(int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }

  Tensor slice_rows(int64_t begin, int64_t count) const;
  Tensor slice_cols(int64_t begin, int64_t count) const;
  // The same memory with `extra` of the spare columns behind each row made visible (cols + extra <= stride).
  Tensor extend_cols(int64_t extra) const;
  // A contiguous tensor seen in another shape.
  Tensor reshape(int64_t new_rows, int64_t new_cols) const;
  Tensor flat() const { return reshape(1, numel()); }
};

// A view of caller-owned contiguous memory.
Tensor make_view(void* data, DType dtype, int64_t rows, int64_t cols, const char* name, Device device = Device::CPU);

}  // namespace irq
