// Vectors of the CPU, written once for every width: GCC's and clang's vector types, no intrinsics.
//
//   Vector<T>        16 to 64 bytes of T, by what the compiler may use (AVX-512, AVX2, else SSE2 or NEON)
//   exp2_scaled(x)   2^(x + kScaleBits) for a vector, 1 unit in the last place, exact at 0
//   multiply(...)    C = A B or C += A B on tiles that fit the cache
//
// multiply keeps a block of kBlock rows by one panel (two vectors) of C in registers and runs through the whole depth. Its
// panel of B should stay in L1 while the rows of A pass by. Every number of C is one chain of fused multiply-adds over the
// depth, in order: the same bits whatever the block that it falls into.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

namespace pic {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kBlock = 12;  // 24 of 32 registers hold C
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kBlock = 6;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kBlock = 8;  // 16 of 32
#else
constexpr int kVectorBytes = 16, kBlock = 4;  // 8 of 16
#endif

constexpr int64_t kLineBytes = 64;

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Integers __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vector = typename VectorOf<T>::Type;

template <typename T>
constexpr int64_t kLanes = kVectorBytes / int64_t(sizeof(T));
template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;

template <typename T>
inline Vector<T>& at(T* p) {
  return *reinterpret_cast<Vector<T>*>(p);
}
template <typename T>
inline const Vector<T>& at(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}
template <typename T>
inline Vector<T> splat(T x) {
  return x - Vector<T>{};  // not 0 + x: that would turn -0 into 0 and so cost an addition
}
template <typename V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

template <typename T>
inline Vector<T> magnitude(Vector<T> x) {
  return larger(x, -x);
}
template <typename T, typename Operation>
inline T reduce(Vector<T> x, const Operation& operation) {
  T result = x[0];
  for (int64_t lane = 1; lane < kLanes<T>; ++lane) result = operation(result, x[lane]);
  return result;
}

// 2^floor(log2(x)) for x > 0: the number without its mantissa.
template <typename T>
inline T power_of_two_near(T x) {
  if (x < std::numeric_limits<T>::min()) {
    int exponent;
    std::frexp(x, &exponent);
    return std::ldexp(T(0.5), exponent);
  }
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr Bits mantissa = (Bits(1) << std::numeric_limits<T>::digits) / 2 - 1;
  return std::bit_cast<T>(std::bit_cast<Bits>(x) & ~mantissa);
}

// `count` numbers rounded up to whole panels.
template <typename T>
constexpr int64_t padded(int64_t count) {
  return (count + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

// The distance between rows of `count` numbers, padded to an odd number of cache lines: with a power of two, the rows of one
// column would share a few sets of the L1 cache and push one another out.
template <typename T>
constexpr int64_t row_stride(int64_t count) {
  constexpr int64_t line = kLineBytes / int64_t(sizeof(T));
  const int64_t lines = (padded<T>(count) + line - 1) / line;
  return (lines | 1) * line;
}

// Zeroed memory on a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const auto bytes = size_t((count * int64_t(sizeof(T)) + kLineBytes) / kLineBytes * kLineBytes);
    data_.reset(static_cast<T*>(std::aligned_alloc(kLineBytes, bytes)));
    if (!data_) throw std::bad_alloc();
    std::fill_n(data_.get(), bytes / sizeof(T), T(0));
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> data_;
};

// Probabilities are kept times 2^kScaleBits, so that those under float32's 1e-38 still count where weights make them larger, and
// none is subnormal, which some CPUs are slow at. 2^kScaleBits times the number of rows has to be representable.
constexpr int kScaleBits = 60;
constexpr double kScale = double(int64_t(1) << kScaleBits);

// 2^f - 1 = f (c0 + c1 f + ...) for |f| <= 1/2, interpolated at Chebyshev nodes: 5e-9 and 1e-19 off.
inline constexpr float kExp2Float[] = {0.69314718802622878f,   0.24022650760568127f,   0.055503571142190779f,
                                       0.0096180825572778515f, 0.0013390863364671234f, 0.00015453162945120690f};
inline constexpr double kExp2Double[] = {
    0.69314718055994530925,    0.24022650695910071233,    0.055504108664821627039,   0.0096181291076284794928,
    0.0013333558146406470697,  0.00015403530393370733411, 0.000015252733841556772589, 1.321548680870556279e-6,
    1.0178057087733941105e-7,  7.0548973041554992774e-9,  4.455817908336064493e-10,  2.5729324177362304214e-11};

template <typename T>
struct Exp2 {
  static constexpr bool kFloat = sizeof(T) == 4;
  static constexpr int kMantissaBits = kFloat ? 23 : 52;
  // Adding it leaves the nearest integer, plus the scale, in the low bits.
  static constexpr T kRound = T(1.5) * T(int64_t(1) << kMantissaBits) + kScaleBits;
  static constexpr T kLowest = (kFloat ? -125 : -1021) - kScaleBits;  // from here on down: 0
  static constexpr T kHighest = (kFloat ? 127 : 1023) - kScaleBits;
  static constexpr int kTerms = kFloat ? 6 : 12;
  static constexpr T coefficient(int i) { return kFloat ? T(kExp2Float[kFloat ? i : 0]) : T(kExp2Double[i]); }
};

template <typename T>
inline Vector<T> exp2_scaled(Vector<T> x) {
  using E = Exp2<T>;
  using Integers = typename VectorOf<T>::Integers;
  const Vector<T> rounded = x + E::kRound;
  const Vector<T> f = x - (rounded - E::kRound);
  Vector<T> sum = splat<T>(E::coefficient(E::kTerms - 1));
#pragma GCC unroll 16
  for (int i = E::kTerms - 2; i >= 0; --i) sum = sum * f + E::coefficient(i);
  const Vector<T> power = sum * f + T(1);
  // The integer goes straight into the exponent's bits.
  Vector<T> y = (Vector<T>)((Integers)power + ((Integers)rounded << E::kMantissaBits));
  y = x < E::kLowest ? splat<T>(0) : y;
  return x <= E::kHighest ? y : x * std::numeric_limits<T>::max();  // inf, and NaN stays NaN
}

// M rows of A by one panel of B. A's numbers are a[i * a_row + k * a_depth], B's two vectors are at b + k * b_depth.
template <int M, typename T>
inline void multiply_block(int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b, int64_t b_depth, T* c,
                           int64_t c_row, bool add) {
  Vector<T> sum[M][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector<T> b0 = at(b), b1 = at(b + kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const T x = a[i * a_row];
      sum[i][0] += x * b0;
      sum[i][1] += x * b1;
    }
    a += a_depth;
    b += b_depth;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      T* out = c + i * c_row + j * kLanes<T>;
      at(out) = add ? at(out) + sum[i][j] : sum[i][j];
    }
  }
}

template <int M, typename T, typename... Rest>
inline void multiply_last(int64_t rows, int64_t depth, const T* a, Rest... rest) {
  if (rows == M) {
    multiply_block<M, T>(depth, a, rest...);
  } else if constexpr (M > 1) {
    multiply_last<M - 1, T>(rows, depth, a, rest...);
  }
}

// C [rows, panels] = A [rows, depth] B [depth, panels], or += with `add`. Panel p of B starts at b + p * b_panel.
template <typename T>
void multiply(int64_t rows, int64_t panels, int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b,
              int64_t b_panel, int64_t b_depth, T* c, int64_t c_row, bool add) {
  for (int64_t panel = 0; panel < panels; ++panel, b += b_panel, c += kPanel<T>) {
    int64_t i = 0;
    for (; i + kBlock <= rows; i += kBlock) {
      multiply_block<kBlock, T>(depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row, add);
    }
    if (i < rows) {
      multiply_last<kBlock - 1, T>(rows - i, depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row, add);
    }
  }
}

}  // namespace pic
