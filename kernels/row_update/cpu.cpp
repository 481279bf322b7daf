// row_update on a CPU: one pass over the numbers of all rows, cut into chunks for the threads.
//
// Rows play no part: a number's step needs that number alone, and chunks of numbers share the work evenly for any K and D. The
// loop is plain and the compiler vectorises it (three streams read, two of them written); memory sets the pace from about a
// megabyte on. Bits depend neither on the cut nor on the vectors, because step.h says where multiply-adds are fused.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "step.h"

namespace {

// Fewer numbers are not worth waking a thread for; a whole number of cache lines of either dtype.
constexpr int64_t kGrain = 1 << 14;

template <bool nesterov, typename T>
void update_chunk(pic::SgdStep<T> step, int64_t count, const T* __restrict__ gradient, T* __restrict__ w, T* __restrict__ u) {
  step.nesterov = nesterov;  // known while compiling: no branch in the loop
  for (int64_t i = 0; i < count; ++i) step(gradient[i], w[i], u[i]);
}

template <typename T>
void update(at::Tensor& rows, at::Tensor& momentum_rows, const at::Tensor& gradients, const pic::SgdStep<T>& step) {
  T* w = rows.mutable_data_ptr<T>();
  T* u = momentum_rows.mutable_data_ptr<T>();
  const T* gradient = gradients.const_data_ptr<T>();
  at::parallel_for(0, rows.numel(), kGrain, [&](int64_t begin, int64_t end) {
    if (step.nesterov) {
      update_chunk<true>(step, end - begin, gradient + begin, w + begin, u + begin);
    } else {
      update_chunk<false>(step, end - begin, gradient + begin, w + begin, u + begin);
    }
  });
}

// Checked by the caller in Python: contiguous [K, D] of one dtype, float32 or float64, on the CPU.
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
TORCH_LIBRARY(pic_row_update_cpu, m) {
  m.def("row_update_", &row_update);
}
