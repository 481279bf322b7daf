// The kernel of cuda.cu, for a binding that sees torch but no device code. Asynchronous on `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace pic {

// T is float or double. The two sources are anything the device can read: its own memory, or pinned host memory.
template <typename T>
struct CatchUp {
  T *rows_KD, *momentum_KD;
  const T *source_rows_PD, *source_momentum_PD;
  const int64_t *slots_M, *indices_M;
  const double* products_M22;
  int64_t count, features;
};

template <typename T>
cudaError_t catch_up(const CatchUp<T>& of, int multiprocessors, cudaStream_t stream);

}  // namespace pic
