// One number's step of torch.optim.SGD (no dampening): what row_update does to every number of every row, and what the
// softmax's backward does where the gradient of a row is complete. Shared by C++ and CUDA.
//
// Multiply-adds are fused by name and not left to the compiler, so that every caller, vectorised or not, CPU or GPU, gets the
// same bits. A CPU without such an instruction (before 2013) pays for it.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define PIC_HOST_DEVICE __host__ __device__
#else
#define PIC_HOST_DEVICE
#endif

namespace pic {

template <typename T>
struct SgdStep {
  T eta, momentum, weight_decay;
  bool nesterov;

  PIC_HOST_DEVICE void operator()(T gradient, T& w, T& u) const {
    gradient = std::fma(weight_decay, w, gradient);
    u = std::fma(momentum, u, gradient);
    w = std::fma(-eta, nesterov ? std::fma(momentum, u, gradient) : u, w);
  }
};

}  // namespace pic
