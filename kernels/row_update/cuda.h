// The kernels of cuda.cu, for a binding that sees torch but no device code. All are asynchronous on `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "step.h"

namespace pic {

// w, u [count] are updated by gradient [count]; T is float or double.
template <typename T>
cudaError_t row_update(
    const SgdStep<T>& step, int64_t count, const T* gradient, T* w, T* u, int multiprocessors, cudaStream_t stream);

}  // namespace pic
