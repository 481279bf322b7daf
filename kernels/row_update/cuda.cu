// row_update on a GPU: a grid that strides over the numbers of all rows, 16 bytes of each array at a time.
//
// Every number is read once and written once; nothing is shared between threads, so there is nothing to tune but enough loads
// in flight: 16 bytes of three arrays a thread, and eight blocks of 256 threads a multiprocessor. Arrays that do not begin at
// a multiple of 16 bytes (a slice of rows of odd length) go number by number.
#include "cuda.h"

namespace pic {
namespace {

constexpr int kThreads = 256, kBlocksPerMultiprocessor = 8;
constexpr int64_t kPackBytes = 16;

template <typename T, int size>
struct alignas(sizeof(T) * size) Pack {
  T x[size];
};

template <typename T, int size>
__global__ void __launch_bounds__(kThreads)
    update(SgdStep<T> step, int64_t count, const T* __restrict__ gradient, T* __restrict__ w, T* __restrict__ u) {
  const int64_t threads = int64_t(gridDim.x) * kThreads, first = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t packs = count / size;
  for (int64_t i = first; i < packs; i += threads) {
    const auto g = reinterpret_cast<const Pack<T, size>*>(gradient)[i];
    auto w_pack = reinterpret_cast<Pack<T, size>*>(w)[i];
    auto u_pack = reinterpret_cast<Pack<T, size>*>(u)[i];
#pragma unroll
    for (int j = 0; j < size; ++j) step(g.x[j], w_pack.x[j], u_pack.x[j]);
    reinterpret_cast<Pack<T, size>*>(w)[i] = w_pack;
    reinterpret_cast<Pack<T, size>*>(u)[i] = u_pack;
  }
  for (int64_t i = packs * size + first; i < count; i += threads) step(gradient[i], w[i], u[i]);
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0; }

}  // namespace

template <typename T>
cudaError_t row_update(
    const SgdStep<T>& step, int64_t count, const T* gradient, T* w, T* u, int multiprocessors, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  constexpr int size = kPackBytes / sizeof(T);
  const bool packed = aligned(gradient) && aligned(w) && aligned(u);
  const int64_t wanted = (count / (packed ? size : 1) + kThreads) / kThreads;  // at least one, for what no pack holds
  const int64_t most = int64_t(multiprocessors) * kBlocksPerMultiprocessor;
  const unsigned blocks = static_cast<unsigned>(wanted < most ? wanted : most);
  if (packed) {
    update<T, size><<<blocks, kThreads, 0, stream>>>(step, count, gradient, w, u);
  } else {
    update<T, 1><<<blocks, kThreads, 0, stream>>>(step, count, gradient, w, u);
  }
  return cudaGetLastError();
}

template cudaError_t row_update(
    const SgdStep<float>&, int64_t, const float*, float*, float*, int, cudaStream_t);
template cudaError_t row_update(
    const SgdStep<double>&, int64_t, const double*, double*, double*, int, cudaStream_t);

}  // namespace pic
