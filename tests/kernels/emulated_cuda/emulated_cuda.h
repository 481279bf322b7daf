// Enough of CUDA to compile kernels/*/cuda.cu with g++ and run it on a CPU, one thread at a time.
//
// Each thread of a block is a fiber. It runs until it meets a barrier (__syncthreads, __syncwarp, a shuffle, a wmma
// call: the last three bind a warp), then the next fiber runs; when all that the barrier binds are there, they go on.
// Blocks run one after the other. So what depends on who is first shows when the order is turned round
// (`emulated::backwards`).
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

#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace emulated {

inline bool backwards = false;
inline int largest_shared_bytes = 0;  // of any launch
inline int allowed_shared_bytes = 48 * 1024;

constexpr std::size_t kStackBytes = 256 * 1024, kPage = 4096;

enum class Stop { kBlock, kWarp, kEnd };

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  bool begun = false;
  Stop stop = Stop::kEnd;
  int line = 0;
  unsigned exchanges = 0;
  int vote = 0;
};

inline std::vector<Fiber> fibers;
inline unsigned char* stacks = nullptr;
inline int current = 0;
inline jmp_buf scheduler;
inline const std::function<void()>* body = nullptr;
inline std::uint64_t slots[32][2][32];  // what a lane hands over; two, so that a lane may be one exchange ahead
inline int any_vote = 0;
inline unsigned char* shared_start = nullptr;

[[noreturn]] inline void fail(const char* what, int one, int other) {
  std::fprintf(stderr, "emulated CUDA: %s (%d, %d), thread %u, block %u %u\n", what, one, other, threadIdx.x,
               blockIdx.x, blockIdx.y);
  std::fflush(stderr);
  std::abort();
}

inline void run_body() {
  (*body)();
  fibers[current].stop = Stop::kEnd;
  _longjmp(scheduler, 1);
}

__attribute__((noinline)) inline void stop_at(Stop stop, int line) {
  Fiber& fiber = fibers[current];
  fiber.stop = stop;
  fiber.line = line;
  if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
}

__attribute__((noinline)) inline void run(int thread) {
  current = thread;
  threadIdx = dim3(static_cast<unsigned>(thread));
  if (_setjmp(scheduler) != 0) return;
  Fiber& fiber = fibers[thread];
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

inline void expect_alike(int first, int count) {
  for (int i = first; i < first + count; ++i) {
    threadIdx = dim3(static_cast<unsigned>(i));
    if (fibers[i].stop != fibers[first].stop)
      fail("a thread ended or waits at another kind of barrier, lines", fibers[first].line, fibers[i].line);
    if (fibers[i].stop != Stop::kEnd && fibers[i].line != fibers[first].line)
      fail("threads wait at different lines", fibers[first].line, fibers[i].line);
  }
}

inline void run_block(int threads) {
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber = Fiber{};
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks + static_cast<std::size_t>(i) * kStackBytes;
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_body, 0);
  }
  do {
    for (int w = 0; w < threads / 32; ++w) {
      const int first = (backwards ? threads / 32 - 1 - w : w) * 32;
      do {
        for (int i = 0; i < 32; ++i) run(first + (backwards ? 31 - i : i));
        expect_alike(first, 32);
      } while (fibers[first].stop == Stop::kWarp);
    }
    expect_alike(0, threads);
    any_vote = 0;
    for (int i = 0; i < threads; ++i) any_vote |= fibers[i].vote;
  } while (fibers[0].stop != Stop::kEnd);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, Arguments... arguments) {
  if (threads % 32 != 0 || grid.x == 0 || grid.y == 0 || grid.y > 65535)
    fail("no such launch", threads, static_cast<int>(grid.x));
  if (shared_bytes > allowed_shared_bytes || shared_bytes % 128 != 0)
    fail("shared memory that was not asked for", shared_bytes, allowed_shared_bytes);
  if (shared_bytes > largest_shared_bytes) largest_shared_bytes = shared_bytes;
  if (stacks == nullptr) {
    stacks = static_cast<unsigned char*>(
        mmap(nullptr, 1024 * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
  const std::size_t pages = (shared_bytes + kPage - 1) / kPage * kPage;
  auto* area =
      static_cast<unsigned char*>(mmap(nullptr, pages + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(area + kPage, pages, PROT_READ | PROT_WRITE);
  shared_start = area + kPage + pages - shared_bytes;
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  const std::function<void()> call = [&] { kernel(arguments...); };
  body = &call;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = backwards ? dim3(grid.x - 1 - x, grid.y - 1 - y) : dim3(x, y);
      std::memset(area + kPage, 0xff, pages);
      run_block(threads);
    }
  }
  munmap(area, pages + 2 * kPage);
  allowed_shared_bytes = 48 * 1024;
}

// Every lane hands in a value and gets that of another one.
template <class T>
T exchange(T value, int from, int line) {
  static_assert(sizeof(T) <= 8);
  const int warp = current / 32, lane = current % 32;
  const unsigned turn = fibers[current].exchanges++ % 2;
  std::memcpy(&slots[warp][turn][lane], &value, sizeof(T));
  stop_at(Stop::kWarp, line);
  std::memcpy(&value, &slots[warp][turn][from], sizeof(T));
  return value;
}

inline int vote(int mine, int line) {
  fibers[current].vote = mine;
  stop_at(Stop::kBlock, line);
  fibers[current].vote = 0;
  return any_vote;
}

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
