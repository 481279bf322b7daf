// Binds cuda.cu to torch: picks the dtype, the device and the current stream, and refuses host memory a GPU cannot read.
#include "cuda.h"

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

namespace {

template <typename T>
void place(
    at::Tensor& rows,
    at::Tensor& momentum_rows,
    const at::Tensor& slots,
    const at::Tensor& source_rows,
    const at::Tensor& source_momentum,
    const at::Tensor& indices,
    const at::Tensor& products) {
  const c10::cuda::CUDAGuard guard(rows.device());
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, rows.get_device()));
  const pic::CatchUp<T> of{
      rows.mutable_data_ptr<T>(),
      momentum_rows.mutable_data_ptr<T>(),
      // With unified addressing pinned memory has one address for both sides.
      source_rows.const_data_ptr<T>(),
      source_momentum.const_data_ptr<T>(),
      slots.const_data_ptr<int64_t>(),
      indices.const_data_ptr<int64_t>(),
      products.const_data_ptr<double>(),
      slots.numel(),
      rows.size(1)};
  C10_CUDA_CHECK(pic::catch_up(of, multiprocessors, c10::cuda::getCurrentCUDAStream()));
}

// Checked by the caller in Python: contiguous; rows, slots, indices and products on one GPU; slots and indices in range.
void catch_up(
    at::Tensor rows,
    at::Tensor momentum_rows,
    const at::Tensor& slots,
    const at::Tensor& source_rows,
    const at::Tensor& source_momentum,
    const at::Tensor& indices,
    const at::Tensor& products) {
  for (const at::Tensor* source : {&source_rows, &source_momentum}) {
    TORCH_CHECK(
        source->is_cuda() || source->is_pinned(), "a source in host memory has to be pinned for the GPU to read it");
  }
  if (rows.scalar_type() == at::kDouble) {
    place<double>(rows, momentum_rows, slots, source_rows, source_momentum, indices, products);
  } else {
    place<float>(rows, momentum_rows, slots, source_rows, source_momentum, indices, products);
  }
}

}  // namespace

// The schemas are the functions' signatures.
TORCH_LIBRARY(pic_catch_up_cuda, m) {
  m.def("catch_up_", &catch_up);
}
