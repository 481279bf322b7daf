// The forward half: unit features and row factors, then each block a tile of samples and a stretch of rows, then the sum over
// stretches. cuda.cu has the formulas.
#pragma once

#include "cuda_tiles.cuh"

namespace pic::sampled_softmax {
namespace {

// ---- preparation: a warp a sample, a warp a row ---------------------------------------------------------------------

struct Samples {
  const float* features_BD;
  int64_t samples, padded;  // padded: to whole tiles, with zeros
  int features;
  // forward only
  float* own_logit_B;
  double* shortest;
  // rows only
  const double* lse_B;
  const double* weight_B;
  const bool* rows_need_grad_B;
  bool own_is_given;
  double temperature;
  float* high_B;
  float* scale_B;
};

template <class Kind>
__global__ void __launch_bounds__(kThreads) prepare_samples(Samples given, typename Kind::Element* z_BD) {
  if (given.shortest != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *given.shortest = INFINITY;
  const int lane = threadIdx.x % 32;
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (b >= given.padded) return;
  const bool real = b < given.samples;
  float high = INFINITY, scale = 0.0f;
  if (given.scale_B != nullptr) {
    const bool counts =
        real && given.weight_B[b] != 0.0 && (given.rows_need_grad_B == nullptr || given.rows_need_grad_B[b]);
    if (counts) {
      const HighLow lse = split(given.lse_B[b]);
      // Where no other row takes part, its own alone may send something: each p is 0 then.
      high = given.own_is_given && lse.high == -INFINITY ? INFINITY : lse.high;
      scale = static_cast<float>(given.weight_B[b] * exp2(-lse.low) / given.temperature);
    }
    if (lane == 0) {
      given.high_B[b] = high;
      given.scale_B[b] = scale;
    }
  }
  if (given.own_logit_B != nullptr && lane == 0) given.own_logit_B[b] = -INFINITY;
  // Samples that send rows nothing are zeros: whatever they hold, it stays out of the sums.
  const bool empty = !real || (given.scale_B != nullptr && scale == 0.0f);
  const float* feature_D = given.features_BD + b * given.features;
  RowScale length = {0.0f, 0.0f, 0.0f, 0.0f};
  if (!empty) length = measure(feature_D, given.features);
  for (int d = lane; d < given.features; d += 32) {
    z_BD[b * given.features + d] = Kind::round(empty ? 0.0f : unit(feature_D[d], length));
  }
}

__global__ void __launch_bounds__(kThreads)
    measure_rows(const float* rows_KD, const bool* row_mask_K, int64_t rows, int features,
                 RowScale* scale_K, double* shortest) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (k >= rows) return;
  const RowScale scale = measure_row(rows_KD, row_mask_K, k, rows, features);
  if (threadIdx.x % 32 != 0) return;
  scale_K[k] = scale;
  if (scale.inverse > 0.0f) {
    // Positive doubles are in the order of their bits, and a minimum has the same bits in whatever order it is taken.
    const double length = 1.0 / (static_cast<double>(scale.inverse) * static_cast<double>(scale.down));
    auto* bits = reinterpret_cast<unsigned long long*>(shortest);
    const auto mine = static_cast<unsigned long long>(__double_as_longlong(length));
    // Most rows are not the shortest so far: a look first saves the rest of them the queue at one address.
    if (mine < *static_cast<volatile unsigned long long*>(bits)) atomicMin(bits, mine);
  }
}

// ---- forward --------------------------------------------------------------------------------------------------------

struct Stretches {
  const float* rows_KD;
  const RowScale* scale_K;
  const int64_t* targets_B;
  int64_t samples, padded, rows, tiles_each;
  float alpha;  // log2(e) / temperature
  float* own_logit_B;
  // One of each for every stretch (the first index) and sample; negatives or null
  float* max_RB;
  float* shift_RB;
  double* sum_RB;
  float* negatives_RBD;
};

template <class Kind, int D>
struct ForwardShared : Tile<Kind, D> {
  using Base = Tile<Kind, D>;
  static constexpr int kU = Base::kZBytes, kLogit = kU + Base::kUBytes, kFactor = kLogit + Base::kLogitBytes;
  static constexpr int kAdded = kFactor + Base::kSamples * kFactorStride * 4;
  static constexpr int kBytes = kAdded + kTileRows * 4;
  static_assert(kBytes <= 160 * 1024 && kBytes % 128 == 0);
};

// kLeaveOwnOut: the sample's own row takes part in nothing but its own logit.
template <class Kind, int D, bool kLeaveOwnOut>
__global__ void __launch_bounds__(kThreads, kBlocksAnSm<D>)
    forward_stretch(Stretches given, const typename Kind::Element* z_BD) {
  using Element = typename Kind::Element;
  using Sizes = ForwardShared<Kind, D>;
  PIC_SHARED(shared);
  auto* z_SD = reinterpret_cast<Element*>(shared);
  auto* u_TD = reinterpret_cast<Element*>(shared + Sizes::kU);
  auto* logit_ST = reinterpret_cast<float*>(shared + Sizes::kLogit);
  auto* p_ST = reinterpret_cast<Element*>(shared + Sizes::kLogit);
  auto* factor_S = reinterpret_cast<float*>(shared + Sizes::kFactor);
  auto* added_T = reinterpret_cast<float*>(shared + Sizes::kAdded);

  const int64_t first_sample = static_cast<int64_t>(blockIdx.x) * Sizes::kSamples;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * given.tiles_each * kTileRows;
  const int64_t end_row = min(given.rows, first_row + given.tiles_each * kTileRows);

  // What this thread knows of its sample; its sum is over its own columns.
  const int s = threadIdx.x / Sizes::kParts, part = threadIdx.x % Sizes::kParts;
  const int64_t b = first_sample + s;
  const int64_t target = b < given.samples ? given.targets_B[b] : -1;
  float largest = -INFINITY, shift = -INFINITY;
  double sum = 0.0;
  bool factor_is_one = false;

  load_samples<Kind, D>(z_BD, first_sample, z_SD);
  Product<Kind, Sizes::kSamples, D, false, false> negatives;
  negatives.zero();

  for (int64_t row = first_row; row < end_row; row += kTileRows) {
    constexpr int kLine = D / 4;
#pragma unroll 4
    for (int i = threadIdx.x; i < kTileRows * kLine; i += kThreads) {
      const int t = i / kLine, d = i % kLine * 4;
      Four<Element> units;
      RowScale scale = {0.0f, 0.0f, 0.0f, 0.0f};
      Four<float> w = {};
      if (row + t < end_row) scale = given.scale_K[row + t];
      if (scale.inverse != 0.0f) w = *reinterpret_cast<const Four<float>*>(given.rows_KD + (row + t) * D + d);
#pragma unroll
      for (int e = 0; e < 4; ++e) units.x[e] = Kind::round(unit(w.x[e], scale));
      *reinterpret_cast<Four<Element>*>(u_TD + t * Sizes::kStride + d) = units;
    }
    if (threadIdx.x < kTileRows) {
      added_T[threadIdx.x] = row + threadIdx.x < end_row ? given.scale_K[row + threadIdx.x].added : -INFINITY;
    }
    __syncthreads();

    tile_cosines<Kind, D>(z_SD, u_TD, logit_ST);
    __syncthreads();

    Four<float> value[Sizes::kChunks];
    own_logits<Kind, D>(logit_ST + s * Sizes::kLogitStride, added_T, given.alpha, part, value);
    int own = target >= row && target < row + kTileRows ? static_cast<int>(target - row) : -1;
    if constexpr (kLeaveOwnOut) {
      // Before the maximum is taken: against an own logit far above all others their sum would underflow.
#pragma unroll
      for (int c = 0; c < Sizes::kChunks; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (Sizes::column(part, c) + e == own) {
            given.own_logit_B[b] = value[c].x[e];
            value[c].x[e] = -INFINITY;
          }
        }
      }
      own = -1;
    }
    float tile_largest = -INFINITY;
#pragma unroll
    for (int c = 0; c < Sizes::kChunks; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) tile_largest = fmaxf(tile_largest, value[c].x[e]);
    }
#pragma unroll
    for (int step = 1; step < Sizes::kParts; step *= 2) {
      tile_largest = fmaxf(tile_largest, __shfl_xor_sync(0xffffffffu, tile_largest, step));
    }
    largest = fmaxf(largest, tile_largest);
    const bool moves = tile_largest > shift + kShiftSlack;
    if (moves || !factor_is_one) {
      float factor = 1.0f;
      if (moves) {
        const float moved = ceilf(tile_largest);
        factor = power_of_two(shift - moved);
        sum *= power_of_two_double(shift - moved);
        shift = moved;
      }
      for (int i = part; i < 16; i += Sizes::kParts) factor_S[s * kFactorStride + i] = factor;
      factor_is_one = !moves;
    }

    // While every row so far is masked the shift is -inf, and -inf - -inf would be NaN.
    const float base = shift == -INFINITY ? 0.0f : shift;
    float tile_sum = 0.0f;
    Four<Element> rounded[Sizes::kChunks];
#pragma unroll
    for (int c = 0; c < Sizes::kChunks; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float logit = value[c].x[e];
        float p = exp2f(logit - base);
        // Its own row is put in last, in double: beside it the others could be too small for float32 to see.
        if (Sizes::column(part, c) + e == own) {
          given.own_logit_B[b] = logit;
          p = 0.0f;
        }
        tile_sum += p;
        rounded[c].x[e] = Kind::round(p);
      }
    }
    sum += static_cast<double>(tile_sum);
    __syncwarp();  // the sample's logits are all read: p may now lie over them
#pragma unroll
    for (int c = 0; c < Sizes::kChunks; ++c) {
      *reinterpret_cast<Four<Element>*>(p_ST + s * Sizes::kPStride + Sizes::column(part, c)) = rounded[c];
    }
    const bool any_moves = __syncthreads_or(moves) != 0;

    if (given.negatives_RBD != nullptr) {
      if (any_moves) negatives.scale(factor_S);
      negatives.template add<kTileRows>(p_ST, Sizes::kPStride, u_TD, Sizes::kStride);
      __syncthreads();
    }
  }

  const int64_t place = static_cast<int64_t>(blockIdx.y) * given.padded + first_sample;
  if (given.negatives_RBD != nullptr) negatives.store(given.negatives_RBD + place * D, D);
  for (int step = 1; step < Sizes::kParts; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (part == 0) {
    given.max_RB[place + s] = largest;
    given.shift_RB[place + s] = shift;
    given.sum_RB[place + s] = sum;
  }
}

// A warp adds up 32 of a sample's features over the stretches; the first of them also does the sample's three numbers.
__global__ void __launch_bounds__(kThreads)
    combine_stretches(Stretches given, int64_t stretches, int features, bool leave_own_out, Statistics out) {
  const int lane = threadIdx.x % 32, chunks = features / 32;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t b = warp / chunks;
  const int chunk = static_cast<int>(warp % chunks);
  if (b >= given.samples) return;
  float largest = -INFINITY, shift = -INFINITY;
  for (int64_t r = lane; r < stretches; r += 32) {
    largest = fmaxf(largest, given.max_RB[r * given.padded + b]);
    shift = fmaxf(shift, given.shift_RB[r * given.padded + b]);
  }
  largest = warp_max(largest);
  shift = warp_max(shift);
  // A stretch without a logit has sum 0, or NaN if its logits were NaN: that must not be dropped.
  const auto lowered_by = [&](int64_t r) {
    const float own = given.shift_RB[r * given.padded + b];
    return own == -INFINITY ? 0.0f : own - shift;
  };
  const double to_max = largest == -INFINITY ? 1.0 : exp2(static_cast<double>(shift) - static_cast<double>(largest));
  if (chunk == 0) {
    double sum = 0.0;
    for (int64_t r = lane; r < stretches; r += 32) {
      sum += given.sum_RB[r * given.padded + b] * power_of_two_double(lowered_by(r));
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) {
      sum *= to_max;
      const float own = given.own_logit_B[b];
      if (own != -INFINITY && !leave_own_out) sum += exp2(static_cast<double>(own) - static_cast<double>(largest));
      const int64_t target = given.targets_B[b];
      const bool outside = target < -1 || target >= given.rows;
      out.max_B[b] = static_cast<double>(largest) * kLn2;
      out.sumexp_B[b] = sum;
      out.positive_B[b] = target == -1 ? 0.0 : outside ? NAN : static_cast<double>(own) * kLn2;
    }
  }
  if (out.negatives_BD == nullptr) return;
  const int d = chunk * 32 + lane;
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t r = 0; r < stretches; ++r) {
    const float part = given.negatives_RBD[(r * given.padded + b) * features + d];
    sum = fmaf(part, power_of_two(lowered_by(r)), sum);
  }
  out.negatives_BD[b * features + d] = sum * static_cast<float>(to_max);
}

}  // namespace
}  // namespace pic::sampled_softmax
