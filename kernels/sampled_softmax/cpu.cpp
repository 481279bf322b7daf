// sampled_softmax on the CPU: each tile of rows stays in the cache from its normalisation to its last use.
//
//   logit_kb = log2(e) unit_row_k . unit_feature_b / temperature        everything in powers of two
//
//   forward        per tile of rows and block of samples: logits -> max, sum, own logit; negatives_b += 2^(l - max) unit_row_k
//   rows           per tile: the same logits again, to the bit -> p = 2^(l - lse) -> du_k = sum_b p_kb weight_b unit_feature_b,
//                  then through the Jacobian of w/|w|, then written out, or spent at once on a step of SGD
//
// Logits are transposed, samples along the vector: maxima and sums need no horizontal operation, features are packed once
// and rows not at all. Products are done here, not by BLAS, because a tile of logits is then used while it is in L1 and the
// threads meet once a call instead of once a tile.
//
// The work is cut by shapes alone (splits of rows in forward, whose sums are combined in order; tiles in rows), so bits do not
// depend on the number of threads. Sums of a split are float64 per sample, since 1 - p of a well-classified sample is a
// difference of nearly equal numbers.
//
// Left out: low-precision products. Costs: the normalisation of every row twice (2 % of the whole), a partial sum [B, D] a split.

#include "cpu_forward.h"
#include "cpu_rows.h"

namespace pic {
namespace {

Forward forward(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& targets_B, double temperature,
                const OptionalTensor& row_mask_K, bool with_negatives, bool leave_own_out) {
  const auto run = rows_KD.scalar_type() == at::kDouble ? forward_of<double> : forward_of<float>;
  return run(features_BD, rows_KD, targets_B, temperature, row_mask_K, with_negatives, leave_own_out);
}

template <typename T>
void gradient_into(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& targets_B, const Tensor& lse_B,
                   const Tensor& weight_B, double temperature, const OptionalTensor& row_mask_K,
                   const OptionalTensor& rows_need_grad_B, const OptionalTensor& own_B, Tensor& drows_KD) {
  std::vector<Tensor> held;
  held.reserve(8);
  const auto problem = problem_of<T>(features_BD, rows_KD, targets_B, row_mask_K, held);
  T* drows = drows_KD.mutable_data_ptr<T>();
  const auto write = [&](int64_t row, const T* gradient) {
    std::copy_n(gradient, problem.features, drows + row * problem.features);
  };
  rows_of<T>(problem, features_BD, lse_B, weight_B, temperature, rows_need_grad_B, own_B, write);
}

Tensor rows_gradient(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& targets_B, const Tensor& lse_B,
                     const Tensor& weight_B, double temperature, const OptionalTensor& row_mask_K,
                     const OptionalTensor& rows_need_grad_B, const OptionalTensor& own_B) {
  Tensor drows_KD = at::empty(rows_KD.sizes(), rows_KD.options());
  const auto run = rows_KD.scalar_type() == at::kDouble ? gradient_into<double> : gradient_into<float>;
  run(features_BD, rows_KD, targets_B, lse_B, weight_B, temperature, row_mask_K, rows_need_grad_B, own_B, drows_KD);
  return drows_KD;
}

template <typename T>
void update_in_place(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& momentum_KD,
                     const Tensor& targets_B, const Tensor& lse_B, const Tensor& weight_B, double temperature,
                     const OptionalTensor& row_mask_K, const OptionalTensor& rows_need_grad_B,
                     const OptionalTensor& own_B, double eta, double momentum, double weight_decay, bool nesterov) {
  std::vector<Tensor> held;
  held.reserve(8);
  const auto problem = problem_of<T>(features_BD, rows_KD, targets_B, row_mask_K, held);
  const SgdStep<T> step{T(eta), T(momentum), T(weight_decay), nesterov};
  T* rows = rows_KD.mutable_data_ptr<T>();
  T* momenta = momentum_KD.mutable_data_ptr<T>();
  // A tile's rows are read before its first row is written, and nobody else reads them.
  const auto spend = [&](int64_t row, const T* gradient) {
    T* w = rows + row * problem.features;
    T* u = momenta + row * problem.features;
    for (int64_t d = 0; d < problem.features; ++d) step(gradient[d], w[d], u[d]);
  };
  rows_of<T>(problem, features_BD, lse_B, weight_B, temperature, rows_need_grad_B, own_B, spend);
}

void rows_update_(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& momentum_KD, const Tensor& targets_B,
                  const Tensor& lse_B, const Tensor& weight_B, double temperature, const OptionalTensor& row_mask_K,
                  const OptionalTensor& rows_need_grad_B, const OptionalTensor& own_B, double eta, double momentum,
                  double weight_decay, bool nesterov) {
  const auto run = rows_KD.scalar_type() == at::kDouble ? update_in_place<double> : update_in_place<float>;
  run(features_BD, rows_KD, momentum_KD, targets_B, lse_B, weight_B, temperature, row_mask_K,
      rows_need_grad_B, own_B, eta, momentum, weight_decay, nesterov);
}

}  // namespace
}  // namespace pic

// The schemas are the functions' signatures.
TORCH_LIBRARY(pic_sampled_softmax_cpu, library) {
  library.def("forward", pic::forward);
  library.def("rows_gradient", pic::rows_gradient);
  library.def("rows_update_", pic::rows_update_);
}
