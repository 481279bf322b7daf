// What both passes of cpu.cpp are made of: the problem, normalised rows, tiles of logits, features packed for them.
#pragma once

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

}  // namespace
}  // namespace pic
