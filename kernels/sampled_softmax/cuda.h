// What cuda.cu offers to cuda.cpp: three launchers on raw pointers, so that neither compiler reads the other's headers.
//
// All pointers are to device memory, all tensors are contiguous, rows_KD is aligned to 16 bytes. Logits, max, lse are
// in natural units out here. A launcher queues its kernels on the stream and returns. It
// allocates nothing: its workspace (of the size that the function before it names, aligned to 256 bytes) may hold
// anything before and after.
#pragma once

#ifdef PIC_EMULATED_CUDA
#include "emulated_cuda.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <cstdint>

#include "../row_update/step.h"

namespace pic::sampled_softmax {

// What the unit features, unit rows and probabilities are rounded to for the matrix products; sums are float32 always.
enum class Products { kFloat32, kTf32, kBfloat16, kFloat16 };

struct Problem {
  const float* features_BD;
  const float* rows_KD;
  const std::int64_t* targets_B;  // -1: none
  const bool* row_mask_K;         // or null: all rows take part
  std::int64_t samples, rows;     // B, K
  int features;                   // D: 64, 128 or 256
  double temperature;
  Products products;
};

struct Statistics {
  double* max_B;
  double* sumexp_B;
  double* positive_B;
  float* negatives_BD;  // or null: not wanted
  double* shortest;     // one number
};

// sum_b weight_b (lse_b - positive_b), or with own_B whatever gives the own logit that derivative in the place of p_own - 1
struct Objective {
  const double* lse_B;
  const double* weight_B;
  const bool* rows_need_grad_B;  // or null: all do
  const double* own_B;           // or null
};

bool supports(int features);

std::int64_t forward_workspace_bytes(const Problem& problem, bool with_negatives);
// leave_own_out: the largest logit and the sum are over all rows but the sample's own.
cudaError_t forward(const Problem& problem, bool leave_own_out, const Statistics& statistics, void* workspace,
                    cudaStream_t stream);

std::int64_t rows_workspace_bytes(const Problem& problem);
cudaError_t rows_gradient(const Problem& problem, const Objective& objective, float* drows_KD, void* workspace,
                          cudaStream_t stream);
// Steps rows_KD, the same memory as problem.rows_KD, and its momentum in place.
cudaError_t rows_update(const Problem& problem, const Objective& objective, float* rows_KD, float* momentum_KD,
                        const SgdStep<float>& step, void* workspace, cudaStream_t stream);

}  // namespace pic::sampled_softmax
