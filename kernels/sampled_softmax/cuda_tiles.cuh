// What the kernels of cuda.cu are made of: the kinds of product, the sizes of tiles, normalisation, and matrix products out of
// shared memory, each block for itself.
#pragma once

#ifdef PIC_EMULATED_CUDA
#include "emulated_cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>
#define PIC_LAUNCH(kernel, grid, threads, bytes, stream, ...) kernel<<<grid, threads, bytes, stream>>>(__VA_ARGS__)
#define PIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cuda.h"

namespace pic::sampled_softmax {
namespace {

namespace wmma = nvcuda::wmma;
using std::int64_t;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kFactorStride = 20;          // of a tile whose rows repeat one factor 16 times
constexpr float kShiftSlack = 8.0f;        // how far the maximum may be above the shift
constexpr int64_t kBlocksWanted = 528;     // four for each SM of an H100; more blocks would cost memory for their n_SD
constexpr int64_t kFewestTilesASplit = 8;  // a stretch shorter than this costs more to add up than it saves
constexpr double kLn2 = 0.6931471805599453094;
constexpr double kLog2E = 1.4426950408889634074;

// ---- the four kinds of product --------------------------------------------------------------------------------------

struct Float32 {
  using Element = float;
  static constexpr bool kTensorCores = false;
  static constexpr float kHeadroom = 1.0f;
  __device__ static float round(float x) { return x; }
};

struct Tf32 {
  using Element = float;
  using Operand = wmma::precision::tf32;
  static constexpr bool kTensorCores = true;
  static constexpr int kDepth = 8;
  static constexpr float kHeadroom = 1.0f;
  __device__ static float round(float x) { return wmma::__float_to_tf32(x); }
};

struct Bfloat16 {
  using Element = __nv_bfloat16;
  using Operand = __nv_bfloat16;
  static constexpr bool kTensorCores = true;
  static constexpr int kDepth = 16;
  static constexpr float kHeadroom = 1.0f;
  __device__ static __nv_bfloat16 round(float x) { return __float2bfloat16_rn(x); }
};

struct Float16 {
  using Element = __half;
  using Operand = __half;
  static constexpr bool kTensorCores = true;
  static constexpr int kDepth = 16;
  // Probabilities of 1e-5 would be subnormal: they are raised by this, and the gradient is lowered again.
  static constexpr float kHeadroom = 16384.0f;
  __device__ static __half round(float x) { return __float2half_rn(x); }
};

// ---- sizes ----------------------------------------------------------------------------------------------------------

constexpr int kTileRows = 64;  // T

template <class Kind>
constexpr int kTileSamples = sizeof(typename Kind::Element) == 2 ? 128 : 64;  // S

// Blocks that should share an SM, to work while the other one waits. At D = 256 there are neither registers nor shared
// memory for two; at D = 128 an A100 has the memory for one, an H100 for two.
template <int D>
constexpr int kBlocksAnSm = D <= 128 ? 2 : 1;

// Rows of shared arrays are 16 bytes longer than their numbers, so that eight rows at one column meet all banks.
template <class Kind, int D>
struct Tile {
  using Element = typename Kind::Element;
  static constexpr int kSamples = kTileSamples<Kind>;
  static constexpr int kStride = D + 16 / static_cast<int>(sizeof(Element));  // of z_SD and u_TD
  static constexpr int kLogitStride = kTileRows + 4;
  // p lies over the logits it is made of: 160 KiB are all that an A100 has.
  static constexpr int kPStride = kLogitStride * 4 / static_cast<int>(sizeof(Element));
  static constexpr int kParts = kThreads / kSamples;      // threads that share a sample's logits
  static constexpr int kChunks = kTileRows / 4 / kParts;  // groups of four logits that each of them takes
  static constexpr int kZBytes = kSamples * kStride * static_cast<int>(sizeof(Element));
  static constexpr int kUBytes = kTileRows * kStride * static_cast<int>(sizeof(Element));
  static constexpr int kLogitBytes = kSamples * kLogitStride * 4;

  // The first column of a thread's chunk. Eight neighbouring threads meet different banks.
  __device__ static int column(int part, int chunk) {
    constexpr int kNeighbours = 8 / kParts;
    return chunk / kNeighbours * 32 + part * (32 / kParts) + chunk % kNeighbours * 4;
  }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- small device functions -----------------------------------------------------------------------------------------

__device__ inline float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

__device__ inline float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// 2^n for n <= 0, exact; 0 where float32 would need a subnormal.
__device__ inline float power_of_two(float n) {
  return n < -126.0f ? 0.0f : __int_as_float((static_cast<int>(n) + 127) << 23);
}

__device__ inline double power_of_two_double(float n) {
  return n < -1022.0f ? 0.0 : __longlong_as_double(static_cast<long long>(static_cast<int>(n) + 1023) << 52);
}

// unit = w * down * inverse, and 1/|w| = down * inverse. Inverse 0 = direction 0: zeros, or left out by the mask.
// `added` goes onto the row's logits: 0, or -inf where the row takes no part.
struct alignas(16) RowScale {
  float down, inverse, added, unused;
};

// A warp measures a vector. Squares of numbers under 1e-23 underflow in float32 and those over 1e19 overflow, so it is
// first multiplied by a power of two that brings its largest number near 1, which is exact.
__device__ inline RowScale measure(const float* w_D, int features) {
  const int lane = threadIdx.x % 32;
  float largest = 0.0f;
  for (int d = lane; d < features; d += 32) largest = fmaxf(largest, fabsf(w_D[d]));
  int exponent = 0;
  frexpf(warp_max(largest), &exponent);
  // Clamped, because 2^149 is no float32: a largest number of 2^-23 still squares to something.
  const float down = __int_as_float((min(max(1 - exponent, -126), 126) + 127) << 23);
  float squares = 0.0f;
  for (int d = lane; d < features; d += 32) {
    const float scaled = w_D[d] * down;
    squares = fmaf(scaled, scaled, squares);
  }
  squares = warp_sum(squares);
  // A vector with an infinity in it has no direction, and that shall show.
  const float inverse = squares == 0.0f ? 0.0f : squares == INFINITY ? NAN : 1.0f / sqrtf(squares);
  return {down, inverse, 0.0f, 0.0f};
}

__device__ inline float unit(float w, const RowScale& scale) {
  return scale.inverse == 0.0f ? 0.0f : w * scale.down * scale.inverse;
}

__device__ inline RowScale measure_row(const float* rows_KD, const bool* row_mask_K, int64_t k, int64_t rows,
                                       int features) {
  if (k >= rows || (row_mask_K != nullptr && !row_mask_K[k])) return {0.0f, 0.0f, -INFINITY, 0.0f};
  return measure(rows_KD + k * features, features);
}

// lse = high + low, in powers of two: 2^(l - high) is computed in float32 for each logit, 2^-low is part of the weight.
struct HighLow {
  float high;
  double low;
};

__device__ inline HighLow split(double lse) {
  const double powers = __dmul_rn(lse, kLog2E);
  const float high = static_cast<float>(powers);
  return {high, isfinite(powers) ? powers - static_cast<double>(high) : 0.0};
}

template <class Element>
struct alignas(4 * sizeof(Element)) Four {
  Element x[4];
};

// ---- matrix products out of shared memory ---------------------------------------------------------------------------

// A block's M x N sums, += A B, kept in registers. A is a[m * lda + k] or, transposed, a[k * lda + m]; B is
// b[k * ldb + n] or, transposed, b[n * ldb + k]. Every sum takes its products in the order of k.
template <class Kind, int M, int N, bool kATransposed, bool kBTransposed>
struct TensorProduct {
  using Element = typename Kind::Element;
  static constexpr int kWarpsM = M / 32, kWarpsN = kWarps / kWarpsM;
  static constexpr int kM = 2, kN = N / 16 / kWarpsN;
  static constexpr int kDepth = Kind::kDepth;
  static_assert(kWarpsM * kWarpsN == kWarps && kN * kWarpsN * 16 == N && kN > 0);
  using ALayout = std::conditional_t<kATransposed, wmma::col_major, wmma::row_major>;
  using BLayout = std::conditional_t<kBTransposed, wmma::col_major, wmma::row_major>;
  using Sum = wmma::fragment<wmma::accumulator, 16, 16, kDepth, float>;

  Sum sum[kM][kN];

  __device__ static int first_m() { return static_cast<int>(threadIdx.x) / 32 % kWarpsM * 16 * kM; }
  __device__ static int first_n() { return static_cast<int>(threadIdx.x) / 32 / kWarpsM * 16 * kN; }

  __device__ void zero() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) wmma::fill_fragment(sum[i][j], 0.0f);
    }
  }

  template <int kSize>
  __device__ void add(const Element* a, int lda, const Element* b, int ldb) {
    a += first_m() * (kATransposed ? 1 : lda);
    b += first_n() * (kBTransposed ? ldb : 1);
#pragma unroll 2
    for (int k = 0; k < kSize; k += kDepth) {
      wmma::fragment<wmma::matrix_a, 16, 16, kDepth, typename Kind::Operand, ALayout> left[kM];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        wmma::load_matrix_sync(left[i], a + (kATransposed ? k * lda + i * 16 : i * 16 * lda + k), lda);
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        wmma::fragment<wmma::matrix_b, 16, 16, kDepth, typename Kind::Operand, BLayout> right;
        wmma::load_matrix_sync(right, b + (kBTransposed ? j * 16 * ldb + k : k * ldb + j * 16), ldb);
#pragma unroll
        for (int i = 0; i < kM; ++i) wmma::mma_sync(sum[i][j], left[i], right, sum[i][j]);
      }
    }
  }

  // Where a number lies in a fragment is not told, but it is the same in all of one type: so the factors become one.
  __device__ void scale(const float* factor_M) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
      Sum factor;
      wmma::load_matrix_sync(factor, factor_M + (first_m() + i * 16) * kFactorStride, kFactorStride,
                             wmma::mem_row_major);
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int e = 0; e < Sum::num_elements; ++e) sum[i][j].x[e] *= factor.x[e];
      }
    }
  }

  __device__ void store(float* c, int ldc) const {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        wmma::store_matrix_sync(c + static_cast<int64_t>(first_m() + i * 16) * ldc + first_n() + j * 16, sum[i][j], ldc,
                                wmma::mem_row_major);
      }
    }
  }
};

// The same in exact float32. 16 x 16 threads: each has every sixteenth m, and every sixteenth n or groups of four.
template <int M, int N, bool kATransposed, bool kBTransposed>
struct FloatProduct {
  static constexpr int kM = M / 16, kN = N / 16;

  float sum[kM][kN];

  __device__ static int m(int i) { return i * 16 + static_cast<int>(threadIdx.x) / 16; }
  __device__ static int n(int j) {
    const int x = static_cast<int>(threadIdx.x) % 16;
    return kBTransposed ? j * 16 + x : j / 4 * 64 + x * 4 + j % 4;
  }

  __device__ void zero() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) sum[i][j] = 0.0f;
    }
  }

  template <int kSize>
  __device__ void add(const float* a, int lda, const float* b, int ldb) {
#pragma unroll 1
    for (int k = 0; k < kSize; k += 4) {
      Four<float> left[kM];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        if constexpr (kATransposed) {
#pragma unroll
          for (int e = 0; e < 4; ++e) left[i].x[e] = a[(k + e) * lda + m(i)];
        } else {
          left[i] = *reinterpret_cast<const Four<float>*>(a + m(i) * lda + k);
        }
      }
#pragma unroll
      for (int j = 0; j < kN; j += kBTransposed ? 1 : 4) {
        if constexpr (kBTransposed) {
          const auto right = *reinterpret_cast<const Four<float>*>(b + n(j) * ldb + k);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
#pragma unroll
            for (int i = 0; i < kM; ++i) sum[i][j] = fmaf(left[i].x[e], right.x[e], sum[i][j]);
          }
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const auto right = *reinterpret_cast<const Four<float>*>(b + (k + e) * ldb + n(j));
#pragma unroll
            for (int i = 0; i < kM; ++i) {
#pragma unroll
              for (int g = 0; g < 4; ++g) sum[i][j + g] = fmaf(left[i].x[e], right.x[g], sum[i][j + g]);
            }
          }
        }
      }
    }
  }

  __device__ void scale(const float* factor_M) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) sum[i][j] *= factor_M[m(i) * kFactorStride];
    }
  }

  __device__ void store(float* c, int ldc) const {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) c[static_cast<int64_t>(m(i)) * ldc + n(j)] = sum[i][j];
    }
  }
};

template <class Kind, int M, int N, bool kATransposed, bool kBTransposed>
using Product = std::conditional_t<
    Kind::kTensorCores,
    TensorProduct<std::conditional_t<Kind::kTensorCores, Kind, Tf32>, M, N, kATransposed, kBTransposed>,
    FloatProduct<M, N, kATransposed, kBTransposed>>;

// Cosines of a tile. Both halves of the op call this and nothing else, so that their logits agree to the bit.
template <class Kind, int D>
__device__ inline void tile_cosines(const typename Kind::Element* z_SD, const typename Kind::Element* u_TD,
                                    float* cosine_ST) {
  using Sizes = Tile<Kind, D>;
  Product<Kind, Sizes::kSamples, kTileRows, false, true> product;
  product.zero();
  product.template add<D>(z_SD, Sizes::kStride, u_TD, Sizes::kStride);
  product.store(cosine_ST, Sizes::kLogitStride);
}

// The logits that a thread takes, out of a tile of cosines. fmaf by name: both halves must round alike.
template <class Kind, int D>
__device__ inline void own_logits(const float* cosine_T, const float* added_T, float alpha, int part,
                                  Four<float> (&logit)[Tile<Kind, D>::kChunks]) {
  using Sizes = Tile<Kind, D>;
#pragma unroll
  for (int c = 0; c < Sizes::kChunks; ++c) {
    const int column = Sizes::column(part, c);
    const auto cosine = *reinterpret_cast<const Four<float>*>(cosine_T + column);
    const auto added = *reinterpret_cast<const Four<float>*>(added_T + column);
#pragma unroll
    for (int e = 0; e < 4; ++e) logit[c].x[e] = fmaf(cosine.x[e], alpha, added.x[e]);
  }
}

template <class Kind, int D>
__device__ inline void load_samples(const typename Kind::Element* z_BD, int64_t first, typename Kind::Element* z_SD) {
  using Sizes = Tile<Kind, D>;
  constexpr int kEach = 16 / static_cast<int>(sizeof(typename Kind::Element)), kLine = D / kEach;
  struct alignas(16) Line {
    typename Kind::Element x[kEach];
  };
#pragma unroll 4
  for (int i = threadIdx.x; i < Sizes::kSamples * kLine; i += kThreads) {
    const int s = i / kLine, d = i % kLine * kEach;
    *reinterpret_cast<Line*>(z_SD + s * Sizes::kStride + d) =
        *reinterpret_cast<const Line*>(z_BD + (first + s) * D + d);
  }
}

}  // namespace
}  // namespace pic::sampled_softmax
