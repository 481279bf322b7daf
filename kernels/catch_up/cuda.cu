// catch_up on a GPU: a warp takes a row, straight from where it lies, through its transition into its slot.
//
// A row in pinned host memory is read across the bus, 16 bytes a lane: 512 bytes, a row of 128 float32, are one request of the
// warp, and those for w and u are both on their way before either is used. Nothing is staged, so a row crosses the bus once and
// takes no memory on the device. Rows that are no multiple of 16 bytes, or do not begin at one, go number by number.
//
// The intrinsics round every product and the sum by itself, as numpy does; the compiler must not fuse them.
#include "cuda.h"

namespace pic {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp, kBlocksPerMultiprocessor = 8;
constexpr int64_t kPackBytes = 16;

template <typename T, int size>
struct alignas(sizeof(T) * size) Pack {
  T x[size];
};

__device__ double combine(double p, double a, double q, double b) { return __dadd_rn(__dmul_rn(p, a), __dmul_rn(q, b)); }

template <typename T, int size>
__global__ void __launch_bounds__(kThreads) place(CatchUp<T> of) {
  const int64_t warps = int64_t(gridDim.x) * kWarps;
  const int lane = threadIdx.x % kWarp;
  const int64_t packs = of.features / size;
  for (int64_t m = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; m < of.count; m += warps) {
    const int64_t from = of.indices_M[m] * of.features, to = of.slots_M[m] * of.features;
    const auto* w = reinterpret_cast<const Pack<T, size>*>(of.source_rows_PD + from);
    const auto* u = reinterpret_cast<const Pack<T, size>*>(of.source_momentum_PD + from);
    auto* row = reinterpret_cast<Pack<T, size>*>(of.rows_KD + to);
    auto* momentum_row = reinterpret_cast<Pack<T, size>*>(of.momentum_KD + to);
    const double* product = of.products_M22 + 4 * m;
    const double p00 = product[0], p01 = product[1], p10 = product[2], p11 = product[3];
    for (int64_t i = lane; i < packs; i += kWarp) {
      const Pack<T, size> weight = w[i], momentum = u[i];
      Pack<T, size> caught_weight, caught_momentum;
#pragma unroll
      for (int j = 0; j < size; ++j) {
        caught_weight.x[j] = static_cast<T>(combine(p00, weight.x[j], p01, momentum.x[j]));
        caught_momentum.x[j] = static_cast<T>(combine(p10, weight.x[j], p11, momentum.x[j]));
      }
      row[i] = caught_weight;
      momentum_row[i] = caught_momentum;
    }
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0; }

}  // namespace

template <typename T>
cudaError_t catch_up(const CatchUp<T>& of, int multiprocessors, cudaStream_t stream) {
  if (of.count == 0 || of.features == 0) return cudaSuccess;
  constexpr int size = kPackBytes / sizeof(T);
  const bool packed = of.features % size == 0 && aligned(of.rows_KD) && aligned(of.momentum_KD) &&
                      aligned(of.source_rows_PD) && aligned(of.source_momentum_PD);
  const int64_t wanted = (of.count + kWarps - 1) / kWarps, most = int64_t(multiprocessors) * kBlocksPerMultiprocessor;
  const unsigned blocks = static_cast<unsigned>(wanted < most ? wanted : most);
  if (packed) {
    place<T, size><<<blocks, kThreads, 0, stream>>>(of);
  } else {
    place<T, 1><<<blocks, kThreads, 0, stream>>>(of);
  }
  return cudaGetLastError();
}

template cudaError_t catch_up(const CatchUp<float>&, int, cudaStream_t);
template cudaError_t catch_up(const CatchUp<double>&, int, cudaStream_t);

}  // namespace pic
