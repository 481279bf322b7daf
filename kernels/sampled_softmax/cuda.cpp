// torch.ops.pic_sampled_softmax_cuda: makes outputs and workspaces, and queues cuda.cu's kernels on the current stream of the
// rows' device. Shapes, dtypes and devices are checked by the caller in Python; what these kernels alone ask of rows, here.
#include "cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace {

using at::Tensor;
using pic::sampled_softmax::Objective;
using pic::sampled_softmax::Problem;
using pic::sampled_softmax::Products;
using OptionalTensor = std::optional<Tensor>;

Products products_of(std::string_view name) {
  if (name == "float32") return Products::kFloat32;
  if (name == "tf32") return Products::kTf32;
  if (name == "bfloat16") return Products::kBfloat16;
  TORCH_CHECK_VALUE(name == "float16", "products is ", name, "; it may be float32, tf32, bfloat16 or float16");
  return Products::kFloat16;
}

Tensor as(const Tensor& tensor, at::ScalarType dtype) { return tensor.to(dtype).contiguous(); }

// The problem, and the tensors that its pointers need alive until the kernels are queued: torch keeps freed memory to
// the stream's order, so they may go after that.
struct Checked {
  Tensor features_BD, rows_KD, targets_B, row_mask_K;
  Problem problem;

  Checked(const Tensor& features, const Tensor& rows, const Tensor& targets, double temperature,
          const OptionalTensor& row_mask, std::string_view products)
      : rows_KD(rows) {
    TORCH_CHECK_VALUE(rows.is_cuda() && rows.dim() == 2 && rows.scalar_type() == at::kFloat && rows.is_contiguous(),
                      "rows_KD has to be a contiguous float32 matrix on a CUDA device");
    TORCH_CHECK_VALUE(pic::sampled_softmax::supports(static_cast<int>(rows.size(1))), "rows_KD has ", rows.size(1),
                      " features: the CUDA kernels are made for 64, 128 and 256");
    TORCH_CHECK_VALUE(reinterpret_cast<std::uintptr_t>(rows.const_data_ptr()) % 16 == 0,
                      "rows_KD starts at an address that 16 does not divide: clone it");
    features_BD = features.contiguous();
    targets_B = targets.contiguous();
    if (row_mask) row_mask_K = row_mask->contiguous();
    problem = {features_BD.const_data_ptr<float>(),
               rows_KD.const_data_ptr<float>(),
               targets_B.const_data_ptr<std::int64_t>(),
               row_mask ? row_mask_K.const_data_ptr<bool>() : nullptr,
               features.size(0),
               rows.size(0),
               static_cast<int>(rows.size(1)),
               temperature,
               products_of(products)};
  }
};

struct HeldObjective {
  Tensor lse_B, weight_B, rows_need_grad_B, own_B;
  Objective objective;

  HeldObjective(const Tensor& lse, const Tensor& weight, const OptionalTensor& need, const OptionalTensor& own) {
    lse_B = as(lse, at::kDouble);
    weight_B = as(weight, at::kDouble);
    if (need) rows_need_grad_B = need->contiguous();
    if (own) own_B = as(*own, at::kDouble);
    objective = {lse_B.const_data_ptr<double>(), weight_B.const_data_ptr<double>(),
                 need ? rows_need_grad_B.const_data_ptr<bool>() : nullptr,
                 own ? own_B.const_data_ptr<double>() : nullptr};
  }
};

Tensor workspace(std::int64_t bytes, const Tensor& rows_KD) {
  return at::empty({bytes}, rows_KD.options().dtype(at::kByte));
}

void check(cudaError_t error, const char* what) {
  TORCH_CHECK(error == cudaSuccess, "sampled_softmax's ", what, ": ", cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& features_BD, const Tensor& rows_KD,
                                                           const Tensor& targets_B, double temperature,
                                                           const OptionalTensor& row_mask_K, bool with_negatives,
                                                           bool leave_own_out, std::string_view products) {
  const c10::cuda::OptionalCUDAGuard guard(rows_KD.is_cuda() ? std::optional(rows_KD.device()) : std::nullopt);
  const Checked checked(features_BD, rows_KD, targets_B, temperature, row_mask_K, products);
  const Problem& problem = checked.problem;
  const auto doubles = rows_KD.options().dtype(at::kDouble);
  const Tensor max_B = at::empty({problem.samples}, doubles), sumexp_B = at::empty({problem.samples}, doubles);
  const Tensor positive_B = at::empty({problem.samples}, doubles), shortest = at::empty({}, doubles);
  const Tensor negatives_BD = at::empty({with_negatives ? problem.samples : 0, problem.features}, rows_KD.options());
  // Empty tensors have no address, and none means: not wanted.
  const bool wanted = negatives_BD.numel() > 0;
  const Tensor space = workspace(pic::sampled_softmax::forward_workspace_bytes(problem, wanted), rows_KD);
  check(
      pic::sampled_softmax::forward(
          problem, leave_own_out,
          {max_B.mutable_data_ptr<double>(), sumexp_B.mutable_data_ptr<double>(), positive_B.mutable_data_ptr<double>(),
           wanted ? negatives_BD.mutable_data_ptr<float>() : nullptr, shortest.mutable_data_ptr<double>()},
          space.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()),
      "forward");
  return {max_B, sumexp_B, positive_B, negatives_BD, shortest};
}

Tensor rows_gradient(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& targets_B, const Tensor& lse_B,
                     const Tensor& weight_B, double temperature, const OptionalTensor& row_mask_K,
                     const OptionalTensor& rows_need_grad_B, const OptionalTensor& own_B, std::string_view products) {
  const c10::cuda::OptionalCUDAGuard guard(rows_KD.is_cuda() ? std::optional(rows_KD.device()) : std::nullopt);
  const Checked checked(features_BD, rows_KD, targets_B, temperature, row_mask_K, products);
  const HeldObjective sum(lse_B, weight_B, rows_need_grad_B, own_B);
  const Tensor drows_KD = at::empty(rows_KD.sizes(), rows_KD.options());
  const Tensor space = workspace(pic::sampled_softmax::rows_workspace_bytes(checked.problem), rows_KD);
  check(pic::sampled_softmax::rows_gradient(checked.problem, sum.objective, drows_KD.mutable_data_ptr<float>(),
                                            space.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()),
        "rows_gradient");
  return drows_KD;
}

void rows_update_(const Tensor& features_BD, Tensor rows_KD, Tensor momentum_KD, const Tensor& targets_B,
                  const Tensor& lse_B, const Tensor& weight_B, double temperature, const OptionalTensor& row_mask_K,
                  const OptionalTensor& rows_need_grad_B, const OptionalTensor& own_B, double eta, double momentum,
                  double weight_decay, bool nesterov, std::string_view products) {
  const c10::cuda::OptionalCUDAGuard guard(rows_KD.is_cuda() ? std::optional(rows_KD.device()) : std::nullopt);
  const Checked checked(features_BD, rows_KD, targets_B, temperature, row_mask_K, products);
  const HeldObjective sum(lse_B, weight_B, rows_need_grad_B, own_B);
  const Tensor space = workspace(pic::sampled_softmax::rows_workspace_bytes(checked.problem), rows_KD);
  const pic::SgdStep<float> step{static_cast<float>(eta), static_cast<float>(momentum),
                                 static_cast<float>(weight_decay), nesterov};
  check(pic::sampled_softmax::rows_update(checked.problem, sum.objective, rows_KD.mutable_data_ptr<float>(),
                                          momentum_KD.mutable_data_ptr<float>(), step, space.mutable_data_ptr(),
                                          c10::cuda::getCurrentCUDAStream()),
        "rows_update_");
}

// The schemas are the functions' signatures.
TORCH_LIBRARY(pic_sampled_softmax_cuda, m) {
  m.def("forward", &forward);
  m.def("rows_gradient", &rows_gradient);
  m.def("rows_update_", &rows_update_);
}

}  // namespace
