// Binds cuda.cu to torch: picks the dtype, the device and the current stream.
#include "cuda.h"

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

namespace {

template <typename T>
void update(at::Tensor& rows, at::Tensor& momentum_rows, const at::Tensor& gradients, const pic::SgdStep<T>& step) {
  const c10::cuda::CUDAGuard guard(rows.device());
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, rows.get_device()));
  C10_CUDA_CHECK(pic::row_update<T>(
      step,
      rows.numel(),
      gradients.const_data_ptr<T>(),
      rows.mutable_data_ptr<T>(),
      momentum_rows.mutable_data_ptr<T>(),
      multiprocessors,
      c10::cuda::getCurrentCUDAStream()));
}

// Checked by the caller in Python: contiguous [K, D] of one dtype, float32 or float64, on one GPU.
void row_update(
    at::Tensor rows,
    at::Tensor momentum_rows,
    const at::Tensor& gradients,
    double eta,
    double momentum,
    double weight_decay,
    bool nesterov) {
  if (rows.scalar_type() == at::kDouble) {
    update<double>(rows, momentum_rows, gradients, {eta, momentum, weight_decay, nesterov});
  } else {
    update<float>(rows, momentum_rows, gradients, {float(eta), float(momentum), float(weight_decay), nesterov});
  }
}

}  // namespace

// The schemas are the functions' signatures.
TORCH_LIBRARY(pic_row_update_cuda, m) {
  m.def("row_update_", &row_update);
}
