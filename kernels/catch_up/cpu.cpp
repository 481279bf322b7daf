// catch_up on a CPU: gather, transition and scatter of one row after another, rows shared out among the threads.
//
// The rows of a batch lie far apart in a pool of gigabytes, and each is too short for the processor's own prefetching to get
// going: so while one is computed, what the row four further on reads and writes is asked for. That took about a third off on
// the machine it was tried on; whether two, four or eight rows ahead was lost in the noise.
//
// numpy computes P00 w + P01 u with two roundings of products, so must this: no product is fused with the sum.
// compile: -ffp-contract=off
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>

namespace {

constexpr int64_t kAhead = 4;
constexpr int64_t kGrainNumbers = 1 << 12;  // less than 4,096 numbers (32 rows of 128) is not worth waking a thread for
constexpr int64_t kLineBytes = 64;

template <int write, typename T>
void prefetch(const T* row, int64_t features) {
  for (int64_t d = 0; d < features; d += kLineBytes / int64_t(sizeof(T))) __builtin_prefetch(row + d, write);
}

template <typename T>
void transition(
    const double* product,
    int64_t features,
    const T* __restrict__ w,
    const T* __restrict__ u,
    T* __restrict__ row,
    T* __restrict__ momentum_row) {
  const double p00 = product[0], p01 = product[1], p10 = product[2], p11 = product[3];
  for (int64_t d = 0; d < features; ++d) {
    const double weight = w[d], momentum = u[d];
    row[d] = static_cast<T>(p00 * weight + p01 * momentum);
    momentum_row[d] = static_cast<T>(p10 * weight + p11 * momentum);
  }
}

template <typename T>
void place(
    at::Tensor& rows,
    at::Tensor& momentum_rows,
    const at::Tensor& slots,
    const at::Tensor& source_rows,
    const at::Tensor& source_momentum,
    const at::Tensor& indices,
    const at::Tensor& products) {
  const int64_t features = rows.size(1);
  T* const rows_KD = rows.mutable_data_ptr<T>();
  T* const momentum_KD = momentum_rows.mutable_data_ptr<T>();
  const T* const source_rows_PD = source_rows.const_data_ptr<T>();
  const T* const source_momentum_PD = source_momentum.const_data_ptr<T>();
  const int64_t* const slots_M = slots.const_data_ptr<int64_t>();
  const int64_t* const indices_M = indices.const_data_ptr<int64_t>();
  const double* const products_M22 = products.const_data_ptr<double>();
  const int64_t grain = std::max<int64_t>(1, kGrainNumbers / std::max<int64_t>(1, features));
  at::parallel_for(0, slots.numel(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      if (m + kAhead < end) {
        prefetch<0>(source_rows_PD + indices_M[m + kAhead] * features, features);
        prefetch<0>(source_momentum_PD + indices_M[m + kAhead] * features, features);
        prefetch<1>(rows_KD + slots_M[m + kAhead] * features, features);
        prefetch<1>(momentum_KD + slots_M[m + kAhead] * features, features);
      }
      const int64_t from = indices_M[m] * features, to = slots_M[m] * features;
      transition(
          products_M22 + 4 * m,
          features,
          source_rows_PD + from,
          source_momentum_PD + from,
          rows_KD + to,
          momentum_KD + to);
    }
  });
}

// Checked by the caller in Python: contiguous, on the CPU, slots and indices in range.
void catch_up(
    at::Tensor rows,
    at::Tensor momentum_rows,
    const at::Tensor& slots,
    const at::Tensor& source_rows,
    const at::Tensor& source_momentum,
    const at::Tensor& indices,
    const at::Tensor& products) {
  if (rows.scalar_type() == at::kDouble) {
    place<double>(rows, momentum_rows, slots, source_rows, source_momentum, indices, products);
  } else {
    place<float>(rows, momentum_rows, slots, source_rows, source_momentum, indices, products);
  }
}

}  // namespace

// The schemas are the functions' signatures.
TORCH_LIBRARY(pic_catch_up_cpu, m) {
  m.def("catch_up_", &catch_up);
}
