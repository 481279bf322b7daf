// The forward pass over splits of rows: of each sample the maximum, the sum of exponentials, the own logit and the negatives.
#pragma once

#include "cpu_tiles.h"

namespace pic {
namespace {

// What forward knows of each sample after some rows: max and own logit in powers of two, sums of kScale 2^(l - max) over all rows
// but the own. The max is over all rows, or over all but the own where that is left out.
template <typename T>
struct Sums {
  explicit Sums(const Problem<T>& problem, bool with_negatives)
      : max(problem.sample_panels() * kPanel<T>),
        total(problem.samples),
        positive(problem.samples),
        negatives(with_negatives ? problem.samples * problem.stride() : 0) {
    std::fill_n(max.get(), problem.sample_panels() * kPanel<T>, T(-kInfinity));
  }
  Buffer<T> max;
  Buffer<double> total, positive;
  Buffer<T> negatives;
  double shortest = kInfinity;
};

template <typename T>
void scale_row(T* row, int64_t count, T factor) {
  for (int64_t d = 0; d < count; ++d) row[d] *= factor;
}

// The logits of a panel become kScale 2^(l - max), the panel's maxima and sums are brought up to date.
template <typename T>
void forward_panel(Tile<T>& tile, const Features<T>& features, Sums<T>& sums, int64_t sample, int64_t column,
                   bool with_negatives, bool leave_own_out) {
  constexpr int64_t stride = Tile<T>::logits_stride();
  const Problem<T>& problem = tile.problem;
  T* logits = tile.panel(features.packed.get() + sample / kPanel<T> * features.panel_size, column);
  const int64_t samples = std::min(kPanel<T>, problem.samples - sample);
  T* own[kPanel<T>];
  for (int64_t lane = 0; lane < samples; ++lane) {
    own[lane] = tile.own(sample + lane, logits, lane);
    if (own[lane]) sums.positive[sample + lane] = *own[lane];
    // Before the maximum is taken: against an own logit far above all others their sum would underflow.
    if (own[lane] && leave_own_out) *own[lane] = T(-kInfinity);
  }
  alignas(kVectorBytes) T before[kPanel<T>], total[kPanel<T>];
  for (int half = 0; half < 2; ++half) {
    T* l = logits + half * kLanes<T>;
    T* kept = sums.max.get() + sample + half * kLanes<T>;
    at(before + half * kLanes<T>) = at(kept);
    Vector<T> max = at(kept), other_max = max;
    int64_t k = 0;
    for (; k + 2 <= tile.rows; k += 2) {
      max = larger(at(l + k * stride), max);
      other_max = larger(at(l + (k + 1) * stride), other_max);
    }
    if (k < tile.rows) max = larger(at(l + k * stride), max);
    max = larger(max, other_max);
    at(kept) = max;
    // From here on the tile is negatives: beside a well-classified sample's own term, about 1, the sum would round them away.
    const int64_t last_lane = std::min((half + 1) * kLanes<T>, samples);
    for (int64_t lane = half * kLanes<T>; lane < last_lane; ++lane) {
      if (own[lane]) *own[lane] = T(-kInfinity);
    }
    // While every row so far is masked the maximum is -inf, and -inf - -inf would be NaN.
    const Vector<T> shift = max == T(-kInfinity) ? splat<T>(0) : max;
    // Sixteen rows a partial sum, or so: adding one by one would round the sum of a tile far more.
    Vector<T> sum = {};
    for (k = 0; k < tile.rows;) {
      Vector<T> part = {};
      for (const int64_t end = std::min(k + 16, tile.rows); k < end; ++k) {
        Vector<T>& x = at(l + k * stride);
        x = exp2_scaled<T>(x - shift);
        part += x;
      }
      sum += part;
    }
    at(total + half * kLanes<T>) = sum;
  }
  for (int64_t lane = 0; lane < samples; ++lane) {
    const int64_t b = sample + lane;
    if (sums.max[b] != before[lane]) {
      const double factor = std::exp2(double(before[lane]) - double(sums.max[b]));
      sums.total[b] *= factor;
      if (with_negatives) scale_row(sums.negatives.get() + b * problem.stride(), problem.features, T(factor));
    }
    sums.total[b] += total[lane];
  }
}

template <typename T>
void forward_split(const Problem<T>& problem, const Features<T>& features, int64_t first, int64_t last,
                   bool with_negatives, bool leave_own_out, Tile<T>& tile, Sums<T>& sums) {
  for (int64_t start = first; start < last; start += kTileRows) {
    tile.load(start);
    tile.rows = std::min(tile.rows, last - start);
    for (int64_t k = 0; k < tile.rows; ++k) sums.shortest = std::min(sums.shortest, double(tile.length[k]));
    for (int64_t block = 0; block < problem.samples; block += kBlockSamples) {
      const int64_t samples = std::min(kBlockSamples, problem.samples - block);
      for (int64_t column = 0; column < samples; column += kPanel<T>) {
        forward_panel(tile, features, sums, block + column, column, with_negatives, leave_own_out);
      }
      if (with_negatives) {
        multiply<T>(samples, problem.feature_panels(), tile.rows, tile.logits.get(), 1, Tile<T>::logits_stride(),
                    tile.unit.get(), kPanel<T>, problem.stride(), sums.negatives.get() + block * problem.stride(),
                    problem.stride(), true);
      }
    }
  }
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
Forward forward_of(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& targets_B, double temperature,
                   const OptionalTensor& row_mask_K, bool with_negatives, bool leave_own_out) {
  std::vector<Tensor> held;
  held.reserve(8);
  const auto problem = problem_of<T>(features_BD, rows_KD, targets_B, row_mask_K, held);
  const Features<T> features(features_BD.contiguous(), problem, temperature);
  const int64_t split_rows =
      std::clamp((problem.count / kSplits + kTileRows - 1) / kTileRows * kTileRows, kFewestSplitRows, kMostSplitRows);
  const int64_t splits = (problem.count + split_rows - 1) / split_rows;
  std::vector<std::unique_ptr<Sums<T>>> sums(splits);
  at::parallel_for(0, splits, 1, [&](int64_t begin, int64_t end) {
    Tile<T> tile(problem);
    for (int64_t split = begin; split < end; ++split) {
      sums[split] = std::make_unique<Sums<T>>(problem, with_negatives);
      forward_split(problem, features, split * split_rows, std::min((split + 1) * split_rows, problem.count),
                    with_negatives, leave_own_out, tile, *sums[split]);
    }
  });

  const auto doubles = features_BD.options().dtype(at::kDouble);
  Tensor max_B = at::full({problem.samples}, -kInfinity, doubles), sumexp_B = at::zeros({problem.samples}, doubles);
  Tensor positive_B = at::zeros({problem.samples}, doubles), shortest = at::full({}, kInfinity, doubles);
  Tensor negatives_BD = at::zeros({with_negatives ? problem.samples : 0, problem.features}, doubles);
  for (int64_t b = 0; b < problem.samples; ++b) {
    double max = -kInfinity, total = 0, positive = 0;
    for (const auto& part : sums) max = part->max[b] > max || std::isnan(part->max[b]) ? part->max[b] : max;
    for (const auto& part : sums) {
      positive += part->positive[b];
      const double factor = part->max[b] == -kInfinity ? 0 : std::exp2(part->max[b] - max) / kScale;
      // A sum that is NaN has to show, also where nothing was larger than -inf.
      total += part->total[b] == 0 ? 0 : factor * part->total[b] + (factor == 0 ? 0 * part->total[b] : 0);
      if (with_negatives && factor != 0) {
        double* out = negatives_BD.mutable_data_ptr<double>() + b * problem.features;
        const T* in = part->negatives.get() + b * problem.stride();
        for (int64_t d = 0; d < problem.features; ++d) out[d] += factor * in[d];
      }
    }
    const int64_t target = problem.targets[b];
    if (!leave_own_out && target >= 0 && target < problem.count && positive != -kInfinity) {
      total += std::exp2(positive - max);
    }
    max_B.mutable_data_ptr<double>()[b] = max * kLn2;
    sumexp_B.mutable_data_ptr<double>()[b] = total;
    positive_B.mutable_data_ptr<double>()[b] = positive * kLn2;
  }
  for (const auto& part : sums) *shortest.mutable_data_ptr<double>() = std::min(shortest.item<double>(), part->shortest);
  return {max_B, sumexp_B, positive_B, negatives_BD, shortest};
}

}  // namespace
}  // namespace pic
