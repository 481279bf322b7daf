// The gradient of whole tiles of rows, handed to whoever writes it or spends it.
#pragma once

#include "cpu_tiles.h"

namespace pic {
namespace {

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

}  // namespace
}  // namespace pic
