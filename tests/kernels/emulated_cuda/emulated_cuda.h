// Enough of CUDA to compile kernels/*/cuda.cu with g++ and run it on a CPU, one thread at a time.
//
// Each thread of a block is a fiber (emulated_threads.h). It runs until it meets a barrier (__syncthreads, __syncwarp, a
// shuffle, a wmma call: the last three bind a warp), then the next fiber runs; when all that the barrier binds are
// there, they go on. Blocks run one after the other. So what depends on who is first shows when the order is turned
// round (`emulated::backwards`).
//
// What is checked, by abort with a message: threads of one barrier that wait at different lines, or have ended; wmma
// pointers and strides that CUDA does not allow; shared memory that was not asked for. It is as large as asked, starts
// as NaN in every type, and lies between pages that nobody may touch.
//
// bfloat16, float16 and tf32 round as the hardware does. Sums of wmma do not: they are float32 in the order of k, where
// tensor cores keep a few more bits and then cut them off. exp2f and its like are the C library's.
//
// Left out: warps that truly run side by side, memory ordering, streams, global memory's bounds (the tests have
// canaries), and everything that cuda.cu does not use.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulated_threads.h"

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace emulated {

inline std::uint32_t bits(float x) {
  std::uint32_t n;
  std::memcpy(&n, &x, 4);
  return n;
}

inline float from_bits(std::uint32_t n) {
  float x;
  std::memcpy(&x, &n, 4);
  return x;
}

}  // namespace emulated

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  if (bytes > 163 * 1024) return cudaErrorInvalidValue;
  emulated::allowed_shared_bytes = bytes;
  return cudaSuccess;
}

#define PIC_LAUNCH(kernel, grid, threads, bytes, stream, ...) \
  ((void)(stream), emulated::launch(kernel, dim3(grid), threads, bytes, __VA_ARGS__))
#define PIC_SHARED(name) unsigned char* const name = emulated::shared_start
#define __syncthreads() emulated::stop_at(emulated::Stop::kBlock, __LINE__)
#define __syncthreads_or(mine) emulated::vote(mine, __LINE__)
#define __syncwarp() emulated::stop_at(emulated::Stop::kWarp, __LINE__)
#define __shfl_xor_sync(mask, value, step) emulated::exchange(value, emulated::current % 32 ^ (step), __LINE__)

using std::isfinite;

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

inline float __int_as_float(int n) { return emulated::from_bits(static_cast<std::uint32_t>(n)); }
inline double __longlong_as_double(long long n) {
  double x;
  std::memcpy(&x, &n, 8);
  return x;
}
inline long long __double_as_longlong(double x) {
  long long n;
  std::memcpy(&n, &x, 8);
  return n;
}
__attribute__((noinline)) inline double __dmul_rn(double a, double b) { return a * b; }

inline unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
  const unsigned long long before = *address;
  if (value < before) *address = value;
  return before;
}

struct __half {
  std::uint16_t bits;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
};

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (std::isnan(x)) return {0x7fff};
  const std::uint32_t n = emulated::bits(x);
  return {static_cast<std::uint16_t>((n + 0x7fff + (n >> 16 & 1)) >> 16)};
}
inline float __bfloat162float(__nv_bfloat16 x) { return emulated::from_bits(static_cast<std::uint32_t>(x.bits) << 16); }

inline __half __float2half_rn(float x) {
  const auto sign = static_cast<std::uint16_t>(emulated::bits(x) >> 16 & 0x8000);
  if (std::isnan(x)) return {0x7fff};
  x = std::fabs(x);
  if (x == 0.0f) return {sign};
  if (x >= 65520.0f) return {static_cast<std::uint16_t>(sign | 0x7c00)};
  // Below 2^-14 the steps are 2^-24 throughout; above, ten bits follow the leading one. nearbyint rounds ties to even.
  int exponent = 0;
  std::frexp(x, &exponent);
  const int step = exponent - 11 < -24 ? -24 : exponent - 11;
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(x, -step)));
  return {static_cast<std::uint16_t>(sign | (step == -24 ? steps : (step + 24) * 1024 + steps))};
}
inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float size = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                     : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return (x.bits & 0x8000) != 0 ? -size : size;
}

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}  // namespace precision

// cvt.rna: the nearest number of ten fraction bits, and of two equally near ones that away from zero.
inline float __float_to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  return emulated::from_bits((emulated::bits(x) + 0x1000) & ~0x1fffu);
}

inline float to_float(__half x) { return __half2float(x); }
inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
// A number that was not rounded to tf32 before loses its last bits here, as it does in the tensor cores.
inline float to_float(float x) { return emulated::from_bits(emulated::bits(x) & ~0x1fffu); }

template <class Operand>
using Stored = std::conditional_t<std::is_same_v<Operand, precision::tf32>, float, Operand>;

// Lane l owns row l / 2 of the sums and eight columns of it, and holds whatever of A and B these are made of.
template <class Use, int M, int N, int K, class Operand, class Layout = void>
struct fragment;
template <int K>
struct fragment<accumulator, 16, 16, K, float, void> {
  static constexpr int num_elements = 8;
  float x[num_elements];
};
template <int K, class Operand, class Layout>
struct fragment<matrix_a, 16, 16, K, Operand, Layout> {
  static constexpr int num_elements = K;
  float x[num_elements];
};
template <int K, class Operand, class Layout>
struct fragment<matrix_b, 16, 16, K, Operand, Layout> {
  static constexpr int num_elements = 8 * K;
  float x[num_elements];
};

namespace emulated_lane {
inline int row() { return emulated::current % 32 / 2; }
inline int column() { return emulated::current % 2 * 8; }
template <class T>
void check(const T* memory, int stride) {
  if (reinterpret_cast<std::uintptr_t>(memory) % 32 != 0)
    emulated::fail("wmma: pointer not aligned to 32 bytes",
                   static_cast<int>(reinterpret_cast<std::uintptr_t>(memory) % 32), 0);
  if (stride * static_cast<int>(sizeof(T)) % 16 != 0) emulated::fail("wmma: stride no multiple of 16 bytes", stride, 0);
}
}  // namespace emulated_lane

template <int K>
void fill_fragment(fragment<accumulator, 16, 16, K, float>& sum, float value) {
  for (float& x : sum.x) x = value;
}

template <int K, class Operand, class Layout>
void load_matrix_sync(fragment<matrix_a, 16, 16, K, Operand, Layout>& a, const Stored<Operand>* memory, int stride) {
  emulated_lane::check(memory, stride);
  emulated::stop_at(emulated::Stop::kWarp, __LINE__);
  for (int k = 0; k < K; ++k) {
    a.x[k] = to_float(std::is_same_v<Layout, row_major> ? memory[emulated_lane::row() * stride + k]
                                                        : memory[k * stride + emulated_lane::row()]);
  }
}

template <int K, class Operand, class Layout>
void load_matrix_sync(fragment<matrix_b, 16, 16, K, Operand, Layout>& b, const Stored<Operand>* memory, int stride) {
  emulated_lane::check(memory, stride);
  emulated::stop_at(emulated::Stop::kWarp, __LINE__);
  for (int k = 0; k < K; ++k) {
    for (int n = 0; n < 8; ++n) {
      const int column = emulated_lane::column() + n;
      b.x[k * 8 + n] =
          to_float(std::is_same_v<Layout, row_major> ? memory[k * stride + column] : memory[column * stride + k]);
    }
  }
}

template <int K>
void load_matrix_sync(fragment<accumulator, 16, 16, K, float>& sum, const float* memory, int stride, layout_t layout) {
  emulated_lane::check(memory, stride);
  emulated::stop_at(emulated::Stop::kWarp, __LINE__);
  for (int n = 0; n < 8; ++n) {
    const int row = emulated_lane::row(), column = emulated_lane::column() + n;
    sum.x[n] = memory[layout == mem_row_major ? row * stride + column : column * stride + row];
  }
}

template <int K>
void store_matrix_sync(float* memory, const fragment<accumulator, 16, 16, K, float>& sum, int stride, layout_t layout) {
  emulated_lane::check(memory, stride);
  emulated::stop_at(emulated::Stop::kWarp, __LINE__);
  for (int n = 0; n < 8; ++n) {
    const int row = emulated_lane::row(), column = emulated_lane::column() + n;
    memory[layout == mem_row_major ? row * stride + column : column * stride + row] = sum.x[n];
  }
}

template <int K, class Operand, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, K, float>& out, const fragment<matrix_a, 16, 16, K, Operand, LayoutA>& a,
              const fragment<matrix_b, 16, 16, K, Operand, LayoutB>& b,
              const fragment<accumulator, 16, 16, K, float>& in) {
  emulated::stop_at(emulated::Stop::kWarp, __LINE__);
  for (int n = 0; n < 8; ++n) {
    float sum = in.x[n];
    for (int k = 0; k < K; ++k) sum = std::fma(a.x[k], b.x[k * 8 + n], sum);
    out.x[n] = sum;
  }
}

}  // namespace nvcuda::wmma
