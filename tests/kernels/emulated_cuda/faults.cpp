// Kernels with one fault each, which the emulation has to notice: its test runs them by name.
#include <string>

#include "emulated_cuda.h"

static void kernel(const std::string* fault, int* sum) {
  PIC_SHARED(shared);
  auto* numbers = reinterpret_cast<float*>(shared);
  numbers[threadIdx.x] = 1.0f;
  if (*fault == "overrun" && threadIdx.x == 63) numbers[64] = 1.0f;
  if (*fault == "ends" && threadIdx.x == 40) return;
  if (*fault == "lines" && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  if (*fault == "alignment") {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> tile;
    nvcuda::wmma::load_matrix_sync(tile, numbers + 1, 4, nvcuda::wmma::mem_row_major);
  }
  const int lane_sum = __shfl_xor_sync(0xffffffffu, static_cast<int>(threadIdx.x), 1);
  if (__syncthreads_or(threadIdx.x == 5) != 0) *sum += lane_sum;
}

int main(int, char** arguments) {
  const std::string fault = arguments[1];
  int sum = 0;
  const int bytes = fault == "allowance" ? 64 * 1024 : 256;
  PIC_LAUNCH(kernel, 1, 64, bytes, nullptr, &fault, &sum);
  return sum == 63 * 64 / 2 ? 0 : 1;
}
