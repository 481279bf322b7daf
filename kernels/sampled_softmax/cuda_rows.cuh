// The rows: each block a tile of them, all samples, and the gradient written or spent. cuda.cu has the formulas.
#pragma once

#include "cuda_forward.cuh"

namespace pic::sampled_softmax {
namespace {

// ---- rows -----------------------------------------------------------------------------------------------------------

struct RowTiles {
  float* rows_KD;  // written by an update only
  const bool* row_mask_K;
  const int64_t* targets_B;
  const double* lse_B;
  const double* own_B;  // or null
  const float* high_B;
  const float* scale_B;
  int64_t samples, padded, rows;
  float alpha;
  float* drows_KD;  // or null: step
  float* momentum_KD;
  SgdStep<float> step;
};

template <class Kind, int D>
struct RowsShared : Tile<Kind, D> {
  using Base = Tile<Kind, D>;
  static constexpr int kU = Base::kZBytes, kLogit = kU + Base::kUBytes, kScale = kLogit + Base::kLogitBytes;
  static constexpr int kAdded = kScale + kTileRows * static_cast<int>(sizeof(RowScale));
  static constexpr int kLargest = kAdded + kTileRows * 4;
  static constexpr int kBytes = kLargest + 128;
  static constexpr int kGradientStride = D + 4;
  static_assert(kBytes <= 160 * 1024 && kBytes % 128 == 0);
  static_assert(kTileRows * kGradientStride * 4 <= Base::kZBytes);
};

template <class Kind, int D>
__global__ void __launch_bounds__(kThreads, kBlocksAnSm<D>)
    rows_tile(RowTiles given, const typename Kind::Element* z_BD) {
  using Element = typename Kind::Element;
  using Sizes = RowsShared<Kind, D>;
  PIC_SHARED(shared);
  auto* z_SD = reinterpret_cast<Element*>(shared);
  auto* u_TD = reinterpret_cast<Element*>(shared + Sizes::kU);
  auto* logit_ST = reinterpret_cast<float*>(shared + Sizes::kLogit);
  auto* p_ST = reinterpret_cast<Element*>(shared + Sizes::kLogit);
  auto* scale_T = reinterpret_cast<RowScale*>(shared + Sizes::kScale);
  auto* added_T = reinterpret_cast<float*>(shared + Sizes::kAdded);
  auto* largest_W = reinterpret_cast<float*>(shared + Sizes::kLargest);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;

  for (int t = warp; t < kTileRows; t += kWarps) {
    const int64_t k = first_row + t;
    const RowScale scale = measure_row(given.rows_KD, given.row_mask_K, k, given.rows, D);
    for (int d = lane; d < D; d += 32) {
      const float w = scale.inverse == 0.0f ? 0.0f : given.rows_KD[k * D + d];
      u_TD[t * Sizes::kStride + d] = Kind::round(unit(w, scale));
    }
    if (lane == 0) {
      scale_T[t] = scale;
      added_T[t] = scale.added;
    }
  }
  // Weights are divided by a power of two above the largest, so that the products' type need not hold weights of 1e-9.
  float largest = 0.0f;
  for (int64_t b = threadIdx.x; b < given.padded; b += kThreads) largest = fmaxf(largest, fabsf(given.scale_B[b]));
  largest = warp_max(largest);
  if (lane == 0) largest_W[warp] = largest;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, largest_W[w]);
  int exponent = 0;
  frexpf(largest, &exponent);
  exponent = min(max(exponent, -110), 110);
  const float lower = ldexpf(Kind::kHeadroom, -exponent), raise = ldexpf(1.0f / Kind::kHeadroom, exponent);

  const int s = threadIdx.x / Sizes::kParts, part = threadIdx.x % Sizes::kParts;
  Product<Kind, kTileRows, D, true, false> gradient;
  gradient.zero();

  for (int64_t first_sample = 0; first_sample < given.padded; first_sample += Sizes::kSamples) {
    load_samples<Kind, D>(z_BD, first_sample, z_SD);
    const int64_t b = first_sample + s;
    const float weight = given.scale_B[b] * lower, high = given.high_B[b];
    const int64_t target = b < given.samples ? given.targets_B[b] : -1;
    const int own = target >= first_row && target < first_row + kTileRows ? static_cast<int>(target - first_row) : -1;
    __syncthreads();

    tile_cosines<Kind, D>(z_SD, u_TD, logit_ST);
    __syncthreads();

    Four<float> value[Sizes::kChunks];
    own_logits<Kind, D>(logit_ST + s * Sizes::kLogitStride, added_T, given.alpha, part, value);
    Four<Element> rounded[Sizes::kChunks];
#pragma unroll
    for (int c = 0; c < Sizes::kChunks; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float logit = value[c].x[e];
        float p = exp2f(logit - high);
        // The weight is looked at because the lse of a sample without one may be NaN.
        if (Sizes::column(part, c) + e == own && weight != 0.0f) {
          // p - 1, from the same product by ln 2 that forward made of this logit (a fused one would round otherwise):
          // exactly 0 where nothing but its own row takes part. 2^low undoes what the weight has for the others.
          const double natural = __dmul_rn(static_cast<double>(logit), kLn2) - given.lse_B[b];
          const double less_one = given.own_B != nullptr ? given.own_B[b] : expm1(natural);
          p = static_cast<float>(less_one * exp2(split(given.lse_B[b]).low));
        }
        rounded[c].x[e] = Kind::round(p * weight);
      }
    }
    __syncwarp();  // the sample's logits are all read: p may now lie over them
#pragma unroll
    for (int c = 0; c < Sizes::kChunks; ++c) {
      *reinterpret_cast<Four<Element>*>(p_ST + s * Sizes::kPStride + Sizes::column(part, c)) = rounded[c];
    }
    __syncthreads();

    gradient.template add<Sizes::kSamples>(p_ST, Sizes::kPStride, z_SD, Sizes::kStride);
    __syncthreads();
  }

  auto* du_TD = reinterpret_cast<float*>(shared);
  gradient.store(du_TD, Sizes::kGradientStride);
  __syncthreads();
  for (int t = warp; t < kTileRows; t += kWarps) {
    const int64_t k = first_row + t;
    if (k >= given.rows) break;
    const RowScale scale = scale_T[t];
    float w[D / 32], du[D / 32];
    float radial = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      const int d = lane + i * 32;
      du[i] = du_TD[t * Sizes::kGradientStride + d] * raise;
      w[i] = 0.0f;
      if (scale.inverse != 0.0f || given.drows_KD == nullptr) w[i] = given.rows_KD[k * D + d];
      radial = fmaf(du[i], unit(w[i], scale), radial);
    }
    radial = warp_sum(radial);
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      const int64_t place = k * D + lane + i * 32;
      const float across = fmaf(-radial, unit(w[i], scale), du[i]);
      // One after the other: their product, 1/|w|, can be too large where the gradient is not.
      const float dw = scale.inverse == 0.0f ? 0.0f : across * scale.inverse * scale.down;
      if (given.drows_KD != nullptr) {
        given.drows_KD[place] = dw;
      } else {
        float u = given.momentum_KD[place];
        given.step(dw, w[i], u);
        given.rows_KD[place] = w[i];
        given.momentum_KD[place] = u;
      }
    }
  }
}

}  // namespace
}  // namespace pic::sampled_softmax
