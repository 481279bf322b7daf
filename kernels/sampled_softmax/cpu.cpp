// sampled_softmax on the CPU: each tile of rows stays in the cache from its normalisation to its last use.
//
//   logit_kb = log2(e) unit_row_k . unit_feature_b / temperature        everything in powers of two
//
//   forward        per tile of rows and block of samples: logits -> max, sum, own logit; negatives_b += 2^(l - max) unit_row_k
//   rows           per tile: the same logits again, to the bit -> p = 2^(l - lse) -> du_k = sum_b p_kb weight_b unit_feature_b,
//                  then through the Jacobian of w/|w|, then written out, or spent at once on a step of SGD
//
// Logits are transposed, samples along the vector: maxima and sums need no horizontal operation, features are packed once
// and rows not at all. Products are done here, not by BLAS, because a tile of logits is then used while it is in L1 and the
// threads meet once a call instead of once a tile.
//
// The work is cut by shapes alone (splits of rows in forward, whose sums are combined in order; tiles in rows), so bits do not
// depend on the number of threads. Sums of a split are float64 per sample, since 1 - p of a well-classified sample is a
// difference of nearly equal numbers.
//
// Left out: low-precision products. Costs: the normalisation of every row twice (2 % of the whole), a partial sum [B, D] a split.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../row_update/step.h"
#include "vectors.h"

namespace pic {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A tile of logits (rows x samples) and what it is made from should fit a core's L2; half or double make no difference. Both are
// multiples of the blocks of every width.
constexpr int64_t kTileRows = 192, kBlockSamples = 128;
// Rows of a split of forward: at least so many, at most so many, a sixteenth of all in between.
constexpr int64_t kFewestSplitRows = 1024, kMostSplitRows = 16384, kSplits = 16;

template <typename T>
struct Problem {
  const T* rows;
  int64_t rows_stride, samples, count, features;  // B, K, D
  const bool* mask;                               // null: every row takes part
  const int64_t* targets;

  int64_t stride() const { return row_stride<T>(features); }
  int64_t feature_panels() const { return padded<T>(features) / kPanel<T>; }
  int64_t sample_panels() const { return padded<T>(samples) / kPanel<T>; }
};

// w/|w| into unit, on a cache line, with zeros for padding; returns |w|. Right for any finite w: a row is first divided by a power of
// two near its largest number, which is exact. A row of zeros gets direction 0 and length inf, so that its gradient becomes 0.
template <typename T>
T normalise(const T* w, int64_t features, T* unit) {
  const int64_t end = padded<T>(features);
  std::copy_n(w, features, unit);
  std::fill_n(unit + features, end - features, T(0));  // the row that was here before may have left NaN
  Vector<T> largests[2] = {}, sums[2] = {};
  for (int64_t d = 0; d < end; d += kPanel<T>) {
    largests[0] = larger(magnitude<T>(at(unit + d)), largests[0]);
    largests[1] = larger(magnitude<T>(at(unit + d + kLanes<T>)), largests[1]);
  }
  const T largest = reduce<T>(larger(largests[0], largests[1]), [](T a, T b) { return std::max(a, b); });
  const auto add = [](T a, T b) { return a + b; };
  if (largest == 0) {  // zeros, or NaN, which never is the larger one and has to show here
    for (int64_t d = 0; d < end; d += kLanes<T>) sums[0] += at(unit + d);
    const T sum = reduce<T>(sums[0], add);
    return sum == 0 ? T(kInfinity) : sum;
  }
  const T power = power_of_two_near(largest), inverse_power = 1 / power;
  const bool representable = inverse_power <= std::numeric_limits<T>::max();
  for (int64_t d = 0; d < end; d += kPanel<T>) {
    Vector<T>&x = at(unit + d), &y = at(unit + d + kLanes<T>);
    x = representable ? x * inverse_power : x / power;
    y = representable ? y * inverse_power : y / power;
    sums[0] += x * x;
    sums[1] += y * y;
  }
  const double length = std::sqrt(double(reduce<T>(sums[0] + sums[1], add)));
  const T inverse = T(1 / length);
  for (int64_t d = 0; d < end; d += kLanes<T>) at(unit + d) *= inverse;
  return T(length * power);
}

// One tile: unit rows, their lengths, what is added to their logits, and a block of logits [rows, samples].
template <typename T>
struct Tile {
  explicit Tile(const Problem<T>& problem)
      : problem(problem),
        unit(kTileRows * problem.stride()),
        logits(kTileRows * logits_stride()),
        length(kTileRows),
        added(kTileRows) {}

  static constexpr int64_t logits_stride() { return row_stride<T>(kBlockSamples); }

  void load(int64_t first) {
    start = first;
    rows = std::min(kTileRows, problem.count - start);
    for (int64_t k = 0; k < rows; ++k) {
      T* out = unit.get() + k * problem.stride();
      const bool takes_part = !problem.mask || problem.mask[start + k];
      if (takes_part) {
        length[k] = normalise(problem.rows + (start + k) * problem.rows_stride, problem.features, out);
        added[k] = T(0);
      } else {
        std::fill_n(out, problem.features, T(0));
        length[k] = T(kInfinity);
        added[k] = T(-kInfinity);
      }
    }
  }

  // The logits of one panel of samples, features packed as [features, panel]; returns their place.
  T* panel(const T* packed, int64_t column) {
    T* out = logits.get() + column;
    multiply<T>(rows, 1, problem.features, unit.get(), problem.stride(), 1, packed, 0, kPanel<T>, out, logits_stride(),
                false);
    if (problem.mask) {
      for (int64_t k = 0; k < rows; ++k) {
        at(out + k * logits_stride()) += added[k];
        at(out + k * logits_stride() + kLanes<T>) += added[k];
      }
    }
    return out;
  }

  // The sample's own logit in a panel, or null where its row is not in this tile.
  T* own(int64_t sample, T* panel, int64_t lane) const {
    const int64_t k = problem.targets[sample] - start;
    return k >= 0 && k < rows ? panel + k * logits_stride() + lane : nullptr;
  }

  const Problem<T>& problem;
  Buffer<T> unit, logits, length, added;
  int64_t start = 0, rows = 0;
};

// Unit features: by rows [B, stride], and packed by panels of samples [B / panel, D, panel] times log2(e) / temperature.
template <typename T>
struct Features {
  Features(const Tensor& features_BD, const Problem<T>& problem, double temperature)
      : unit(problem.samples * problem.stride()),
        packed(problem.sample_panels() * kPanel<T> * problem.features),
        panel_size(kPanel<T> * problem.features) {
    const T* source = features_BD.const_data_ptr<T>();
    const T alpha = T(kLog2E / temperature);
    for (int64_t b = 0; b < problem.samples; ++b) {
      T* row = unit.get() + b * problem.stride();
      normalise(source + b * problem.features, problem.features, row);
      T* column = packed.get() + b / kPanel<T> * panel_size + b % kPanel<T>;
      for (int64_t d = 0; d < problem.features; ++d) column[d * kPanel<T>] = row[d] * alpha;
    }
  }
  Buffer<T> unit, packed;
  int64_t panel_size;
};

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

// The checked arguments; tensors that have to be copied for it are kept alive in `held`.
template <typename T>
Problem<T> problem_of(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& targets_B,
                      const OptionalTensor& row_mask_K, std::vector<Tensor>& held) {
  held.push_back(rows_KD.stride(1) == 1 ? rows_KD : rows_KD.contiguous());
  const Tensor& rows = held.back();
  Problem<T> problem{rows.const_data_ptr<T>(), rows.stride(0), features_BD.size(0), rows.size(0), rows.size(1), nullptr,
                     nullptr};
  if (row_mask_K) problem.mask = held.emplace_back(row_mask_K->contiguous()).const_data_ptr<bool>();
  problem.targets = held.emplace_back(targets_B.contiguous()).const_data_ptr<int64_t>();
  return problem;
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

// The gradient of whole tiles of rows, handed on as sink(first row, tile, du [rows, stride]). own_B: null, or what stands in the place
// of p_own - 1; the sum of exponentials may then be over no row at all, lse -inf.
template <typename T, typename Sink>
void rows_of(const Problem<T>& problem, const Tensor& features_BD, const Tensor& lse_B, const Tensor& weight_B,
             double temperature, const OptionalTensor& rows_need_grad_B, const OptionalTensor& own_B, const Sink& sink) {
  if (problem.count == 0) return;
  const Features<T> features(features_BD.contiguous(), problem, temperature);
  const int64_t stride = problem.stride();
  // lse = high + low with `high` in the rows' dtype: 2^(l - high) is computed per logit, 2^-low goes into the weight.
  // An empty place must not count whatever its lse is: 2^(l - inf) = 0.
  const Tensor lse = lse_B.to(at::kDouble).contiguous(), weight = weight_B.to(at::kDouble).contiguous();
  const Tensor need = rows_need_grad_B ? rows_need_grad_B->contiguous() : Tensor();
  const Tensor given = own_B ? own_B->to(at::kDouble).contiguous() : Tensor();
  Buffer<T> high(problem.sample_panels() * kPanel<T>), weighted(problem.samples * stride);
  Buffer<double> exact(problem.samples);
  Buffer<T> own_term(given.defined() ? problem.samples : 0);  // times kScale, as the probabilities
  std::fill_n(high.get(), problem.sample_panels() * kPanel<T>, T(kInfinity));
  for (int64_t b = 0; b < problem.samples; ++b) {
    const double weight_b = weight.const_data_ptr<double>()[b];
    if (weight_b == 0 || (need.defined() && !need.const_data_ptr<bool>()[b])) continue;
    exact[b] = lse.const_data_ptr<double>()[b] * kLog2E;
    // Its own row alone may send something: each p is 0 then.
    if (given.defined() && exact[b] == -kInfinity) exact[b] = kInfinity;
    high[b] = T(exact[b]);
    const double low = given.defined() && exact[b] == kInfinity ? 0 : exact[b] - double(high[b]);
    if (given.defined()) own_term[b] = T(given.const_data_ptr<double>()[b] * std::exp2(low) * kScale);
    const T scale = T(weight_b * std::exp2(-low) / temperature / kScale);
    for (int64_t d = 0; d < problem.features; ++d) weighted[b * stride + d] = features.unit[b * stride + d] * scale;
  }

  constexpr int64_t logits_stride = Tile<T>::logits_stride();
  const int64_t tiles = (problem.count + kTileRows - 1) / kTileRows;
  at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    Tile<T> tile(problem);
    Buffer<T> gradient(kTileRows * stride);
    for (int64_t index = begin; index < end; ++index) {
      tile.load(index * kTileRows);
      if (problem.samples == 0) std::fill_n(gradient.get(), kTileRows * stride, T(0));
      for (int64_t block = 0; block < problem.samples; block += kBlockSamples) {
        const int64_t samples = std::min(kBlockSamples, problem.samples - block);
        for (int64_t column = 0; column < samples; column += kPanel<T>) {
          const int64_t sample = block + column;
          T* logits = tile.panel(features.packed.get() + sample / kPanel<T> * features.panel_size, column);
          T own[kPanel<T>];
          T* place[kPanel<T>];
          const int64_t in_panel = std::min(kPanel<T>, problem.samples - sample);
          for (int64_t lane = 0; lane < in_panel; ++lane) {
            const int64_t b = sample + lane;
            if (given.defined()) {
              place[lane] = tile.own(b, logits, lane);
              own[lane] = own_term[b];
              continue;
            }
            place[lane] = high[b] == T(kInfinity) ? nullptr : tile.own(b, logits, lane);
            // p - 1 in one go: for a well-classified sample it is far smaller than what p is rounded by. Differences that the
            // log-sum-exp, itself rounded and converted, cannot tell from 0 are 0.
            if (place[lane]) {
              const double difference = *place[lane] - exact[b];
              const bool told = !(std::abs(difference) <= 4 * std::numeric_limits<double>::epsilon() * std::abs(exact[b]));
              own[lane] = told ? T(std::expm1(difference * kLn2) * std::exp2(exact[b] - double(high[b])) * kScale) : T(0);
            }
          }
          const Vector<T> high0 = at(high.get() + sample), high1 = at(high.get() + sample + kLanes<T>);
          for (int64_t k = 0; k < tile.rows; ++k) {
            T* l = logits + k * logits_stride;
            at(l) = exp2_scaled<T>(at(l) - high0);
            at(l + kLanes<T>) = exp2_scaled<T>(at(l + kLanes<T>) - high1);
          }
          for (int64_t lane = 0; lane < in_panel; ++lane) {
            if (place[lane]) *place[lane] = own[lane];
          }
        }
        multiply<T>(tile.rows, problem.feature_panels(), samples, tile.logits.get(), logits_stride, 1,
                    weighted.get() + block * stride, kPanel<T>, stride, gradient.get(), stride, block > 0);
      }
      for (int64_t k = 0; k < tile.rows; ++k) {
        const T* unit = tile.unit.get() + k * stride;
        T* du = gradient.get() + k * stride;
        const int64_t end = padded<T>(problem.features);
        Vector<T> sums = {};
        for (int64_t d = 0; d < end; d += kLanes<T>) sums += at(du + d) * at(unit + d);
        const T radial = reduce<T>(sums, [](T x, T y) { return x + y; }), length = tile.length[k];
        for (int64_t d = 0; d < end; d += kLanes<T>) at(du + d) = (at(du + d) - at(unit + d) * radial) / length;
        sink(tile.start + k, du);
      }
    }
  });
}

Forward forward(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& targets_B, double temperature,
                const OptionalTensor& row_mask_K, bool with_negatives, bool leave_own_out) {
  const auto run = rows_KD.scalar_type() == at::kDouble ? forward_of<double> : forward_of<float>;
  return run(features_BD, rows_KD, targets_B, temperature, row_mask_K, with_negatives, leave_own_out);
}

template <typename T>
void gradient_into(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& targets_B, const Tensor& lse_B,
                   const Tensor& weight_B, double temperature, const OptionalTensor& row_mask_K,
                   const OptionalTensor& rows_need_grad_B, const OptionalTensor& own_B, Tensor& drows_KD) {
  std::vector<Tensor> held;
  held.reserve(8);
  const auto problem = problem_of<T>(features_BD, rows_KD, targets_B, row_mask_K, held);
  T* drows = drows_KD.mutable_data_ptr<T>();
  const auto write = [&](int64_t row, const T* gradient) {
    std::copy_n(gradient, problem.features, drows + row * problem.features);
  };
  rows_of<T>(problem, features_BD, lse_B, weight_B, temperature, rows_need_grad_B, own_B, write);
}

Tensor rows_gradient(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& targets_B, const Tensor& lse_B,
                     const Tensor& weight_B, double temperature, const OptionalTensor& row_mask_K,
                     const OptionalTensor& rows_need_grad_B, const OptionalTensor& own_B) {
  Tensor drows_KD = at::empty(rows_KD.sizes(), rows_KD.options());
  const auto run = rows_KD.scalar_type() == at::kDouble ? gradient_into<double> : gradient_into<float>;
  run(features_BD, rows_KD, targets_B, lse_B, weight_B, temperature, row_mask_K, rows_need_grad_B, own_B, drows_KD);
  return drows_KD;
}

template <typename T>
void update_in_place(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& momentum_KD,
                     const Tensor& targets_B, const Tensor& lse_B, const Tensor& weight_B, double temperature,
                     const OptionalTensor& row_mask_K, const OptionalTensor& rows_need_grad_B,
                     const OptionalTensor& own_B, double eta, double momentum, double weight_decay, bool nesterov) {
  std::vector<Tensor> held;
  held.reserve(8);
  const auto problem = problem_of<T>(features_BD, rows_KD, targets_B, row_mask_K, held);
  const SgdStep<T> step{T(eta), T(momentum), T(weight_decay), nesterov};
  T* rows = rows_KD.mutable_data_ptr<T>();
  T* momenta = momentum_KD.mutable_data_ptr<T>();
  // A tile's rows are read before its first row is written, and nobody else reads them.
  const auto spend = [&](int64_t row, const T* gradient) {
    T* w = rows + row * problem.features;
    T* u = momenta + row * problem.features;
    for (int64_t d = 0; d < problem.features; ++d) step(gradient[d], w[d], u[d]);
  };
  rows_of<T>(problem, features_BD, lse_B, weight_B, temperature, rows_need_grad_B, own_B, spend);
}

void rows_update_(const Tensor& features_BD, const Tensor& rows_KD, const Tensor& momentum_KD, const Tensor& targets_B,
                  const Tensor& lse_B, const Tensor& weight_B, double temperature, const OptionalTensor& row_mask_K,
                  const OptionalTensor& rows_need_grad_B, const OptionalTensor& own_B, double eta, double momentum,
                  double weight_decay, bool nesterov) {
  const auto run = rows_KD.scalar_type() == at::kDouble ? update_in_place<double> : update_in_place<float>;
  run(features_BD, rows_KD, momentum_KD, targets_B, lse_B, weight_B, temperature, row_mask_K,
      rows_need_grad_B, own_B, eta, momentum, weight_decay, nesterov);
}

}  // namespace
}  // namespace pic

// The schemas are the functions' signatures.
TORCH_LIBRARY(pic_sampled_softmax_cpu, library) {
  library.def("forward", pic::forward);
  library.def("rows_gradient", pic::rows_gradient);
  library.def("rows_update_", pic::rows_update_);
}
