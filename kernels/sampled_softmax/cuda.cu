// The op on a GPU: B x K logits live in shared memory, one tile at a time, and are never written out.
//
// Forward. A block owns S samples and a stretch of rows, and walks that stretch in tiles of T rows (u, z = unit rows
// and features rounded to the products' type, everything in powers of two; targets are left out of both sums):
//
//     l_ST = z_SD u_TD^T log2(e) / temperature,    p = 2^(l - shift),    sum += p,    n_SD += p u_TD
//
// A second kernel adds up the stretches, always in the same order, and puts in the target's own term, unless that is to
// be left out (then the maximum is taken without it, by kernels of their own): no float atomics,
// and the number of stretches follows from the shapes alone, so the bits do not depend on the GPU's size.
//
// `shift` is a whole number that follows the running maximum only when that is 8 above it. So rescaling n is rare,
// and exact, for all factors are powers of two; and p stays at or under 2^8, which float16 holds.
//
// Rows. A block owns T rows, normalises them once, and walks all samples in tiles of S. It computes the same logits
// again, to the bit (same function, same order over D: 1 - p of a well-classified sample depends on it), then
//
//     p_ST = weight_s (2^(l - lse) - [own]) / temperature,    du_TD += p^T z,    dw = (du - u (u . du)) / |w|
//
// (with own_B: weight_s own_s / temperature where k is the target)
// and either writes dw or steps the rows with it, which it alone reads. There are neither K x D copies nor atomics.
//
// Left out: D other than 64, 128, 256; loading the next tile while this one is worked on (blocks that share an SM hide
// some of that wait); Hopper's own matrix instructions, which have a higher peak than wmma reaches there; splitting the
// rows kernel over samples: with K under about 8000 a large GPU is not full.
// Memory: B x D for unit features, four numbers a row, and in forward one n_SD for each block.
//
// Not run on a GPU yet: values were checked by emulation (tests/kernels/emulated_cuda), times not at all. The sizes of
// tiles, the blocks wanted and the blocks an SM are reasoned, not measured.
#include "cuda_forward.cuh"
#include "cuda_rows.cuh"
#include "cuda_tiles.cuh"

namespace pic::sampled_softmax {
namespace {

// ---- launching ------------------------------------------------------------------------------------------------------

// Calls f(Kind{}) for the products that are wanted.
template <class F>
auto with_kind(Products products, F f) {
  switch (products) {
    case Products::kTf32:
      return f(Tf32{});
    case Products::kBfloat16:
      return f(Bfloat16{});
    case Products::kFloat16:
      return f(Float16{});
    default:
      return f(Float32{});
  }
}

template <class F>
cudaError_t with_features(int features, F f) {
  switch (features) {
    case 64:
      return f(std::integral_constant<int, 64>{});
    case 128:
      return f(std::integral_constant<int, 128>{});
    case 256:
      return f(std::integral_constant<int, 256>{});
    default:
      return cudaErrorInvalidValue;
  }
}

struct Plan {
  int64_t tile_samples, padded, tiles_each, stretches, element_bytes;
};

Plan plan(const Problem& problem) {
  const auto [tile_samples, element_bytes] = with_kind(problem.products, [](auto kind) {
    using Kind = decltype(kind);
    return std::pair<int64_t, int64_t>(kTileSamples<Kind>, sizeof(typename Kind::Element));
  });
  const int64_t sample_tiles = ceil_div(problem.samples, tile_samples), row_tiles = ceil_div(problem.rows, kTileRows);
  const int64_t wanted = sample_tiles == 0 ? 1 : ceil_div(kBlocksWanted, sample_tiles);
  int64_t tiles_each = ceil_div(row_tiles, wanted);
  if (tiles_each < kFewestTilesASplit) tiles_each = kFewestTilesASplit;
  return {tile_samples, sample_tiles * tile_samples, tiles_each, ceil_div(row_tiles, tiles_each), element_bytes};
}

// Hands out pieces of the workspace, each aligned; given null it only counts.
struct Pieces {
  unsigned char* start;
  int64_t used = 0;

  template <class T>
  T* take(int64_t numbers, int64_t bytes_each = sizeof(T)) {
    auto* piece = reinterpret_cast<T*>(start + used);
    used += ceil_div(numbers * bytes_each, 256) * 256;
    return piece;
  }
};

struct ForwardWorkspace {
  void* z_BD;
  RowScale* scale_K;
  float *own_logit_B, *max_RB, *shift_RB, *negatives_RBD;
  double* sum_RB;
  int64_t bytes;

  ForwardWorkspace(const Problem& problem, const Plan& plan, bool with_negatives, void* start) {
    Pieces pieces{static_cast<unsigned char*>(start)};
    const int64_t parts = plan.stretches * plan.padded;
    z_BD = pieces.take<unsigned char>(plan.padded * problem.features, plan.element_bytes);
    scale_K = pieces.take<RowScale>(problem.rows);
    own_logit_B = pieces.take<float>(plan.padded);
    max_RB = pieces.take<float>(parts);
    shift_RB = pieces.take<float>(parts);
    sum_RB = pieces.take<double>(parts);
    negatives_RBD = with_negatives ? pieces.take<float>(parts * problem.features) : nullptr;
    bytes = pieces.used;
  }
};

struct RowsWorkspace {
  void* z_BD;
  float *high_B, *scale_B;
  int64_t bytes;

  RowsWorkspace(const Problem& problem, const Plan& plan, void* start) {
    Pieces pieces{static_cast<unsigned char*>(start)};
    z_BD = pieces.take<unsigned char>(plan.padded * problem.features, plan.element_bytes);
    high_B = pieces.take<float>(plan.padded);
    scale_B = pieces.take<float>(plan.padded);
    bytes = pieces.used;
  }
};

unsigned blocks_of_warps(int64_t warps) { return static_cast<unsigned>(ceil_div(warps, kWarps)); }

template <class Kind>
cudaError_t launch_prepare(const Samples& samples, void* z_BD, cudaStream_t stream) {
  auto* kernel = &prepare_samples<Kind>;
  // One block at least, for `shortest` has to be set even without samples.
  const unsigned blocks = samples.padded == 0 ? 1 : blocks_of_warps(samples.padded);
  PIC_LAUNCH(kernel, blocks, kThreads, 0, stream, samples, static_cast<typename Kind::Element*>(z_BD));
  return cudaGetLastError();
}

template <class Kernel, class Given, class Element>
cudaError_t launch_tiles(Kernel* kernel, dim3 grid, int bytes, cudaStream_t stream, const Given& given,
                         const Element* z_BD) {
  const cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  PIC_LAUNCH(kernel, grid, kThreads, bytes, stream, given, z_BD);
  return cudaGetLastError();
}

float alpha(const Problem& problem) { return static_cast<float>(kLog2E / problem.temperature); }

cudaError_t launch_rows(const Problem& problem, const Objective& objective, RowTiles given, void* start,
                        cudaStream_t stream) {
  if (!supports(problem.features)) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  const Plan sizes = plan(problem);
  const RowsWorkspace workspace(problem, sizes, start);
  Samples samples = {};
  samples.features_BD = problem.features_BD;
  samples.samples = problem.samples;
  samples.padded = sizes.padded;
  samples.features = problem.features;
  samples.lse_B = objective.lse_B;
  samples.weight_B = objective.weight_B;
  samples.rows_need_grad_B = objective.rows_need_grad_B;
  samples.own_is_given = objective.own_B != nullptr;
  samples.temperature = problem.temperature;
  samples.high_B = workspace.high_B;
  samples.scale_B = workspace.scale_B;
  given.row_mask_K = problem.row_mask_K;
  given.targets_B = problem.targets_B;
  given.lse_B = objective.lse_B;
  given.own_B = objective.own_B;
  given.high_B = workspace.high_B;
  given.scale_B = workspace.scale_B;
  given.samples = problem.samples;
  given.padded = sizes.padded;
  given.rows = problem.rows;
  given.alpha = alpha(problem);
  return with_kind(problem.products, [&](auto kind) {
    using Kind = decltype(kind);
    const cudaError_t error = launch_prepare<Kind>(samples, workspace.z_BD, stream);
    if (error != cudaSuccess) return error;
    return with_features(problem.features, [&](auto features) {
      constexpr int D = decltype(features)::value;
      const dim3 grid(static_cast<unsigned>(ceil_div(problem.rows, kTileRows)));
      return launch_tiles(&rows_tile<Kind, D>, grid, RowsShared<Kind, D>::kBytes, stream, given,
                          static_cast<const typename Kind::Element*>(workspace.z_BD));
    });
  });
}

}  // namespace

bool supports(int features) { return features == 64 || features == 128 || features == 256; }

std::int64_t forward_workspace_bytes(const Problem& problem, bool with_negatives) {
  return ForwardWorkspace(problem, plan(problem), with_negatives, nullptr).bytes;
}

std::int64_t rows_workspace_bytes(const Problem& problem) {
  return RowsWorkspace(problem, plan(problem), nullptr).bytes;
}

cudaError_t forward(const Problem& problem, bool leave_own_out, const Statistics& statistics, void* start,
                    cudaStream_t stream) {
  if (!supports(problem.features)) return cudaErrorInvalidValue;
  const Plan sizes = plan(problem);
  const ForwardWorkspace workspace(problem, sizes, statistics.negatives_BD != nullptr, start);
  Samples samples = {};
  samples.features_BD = problem.features_BD;
  samples.samples = problem.samples;
  samples.padded = sizes.padded;
  samples.features = problem.features;
  samples.own_logit_B = workspace.own_logit_B;
  samples.shortest = statistics.shortest;
  Stretches given = {};
  given.rows_KD = problem.rows_KD;
  given.scale_K = workspace.scale_K;
  given.targets_B = problem.targets_B;
  given.samples = problem.samples;
  given.padded = sizes.padded;
  given.rows = problem.rows;
  given.tiles_each = sizes.tiles_each;
  given.alpha = alpha(problem);
  given.own_logit_B = workspace.own_logit_B;
  given.max_RB = workspace.max_RB;
  given.shift_RB = workspace.shift_RB;
  given.sum_RB = workspace.sum_RB;
  given.negatives_RBD = workspace.negatives_RBD;
  const cudaError_t error = with_kind(problem.products, [&](auto kind) {
    using Kind = decltype(kind);
    cudaError_t failed = launch_prepare<Kind>(samples, workspace.z_BD, stream);
    if (failed != cudaSuccess || problem.rows == 0) return failed;
    PIC_LAUNCH(measure_rows, blocks_of_warps(problem.rows), kThreads, 0, stream, problem.rows_KD, problem.row_mask_K,
               problem.rows, problem.features, workspace.scale_K, statistics.shortest);
    failed = cudaGetLastError();
    if (failed != cudaSuccess || problem.samples == 0) return failed;
    return with_features(problem.features, [&](auto features) {
      constexpr int D = decltype(features)::value;
      const dim3 grid(static_cast<unsigned>(sizes.padded / sizes.tile_samples), static_cast<unsigned>(sizes.stretches));
      return launch_tiles(leave_own_out ? &forward_stretch<Kind, D, true> : &forward_stretch<Kind, D, false>, grid,
                          ForwardShared<Kind, D>::kBytes, stream, given,
                          static_cast<const typename Kind::Element*>(workspace.z_BD));
    });
  });
  if (error != cudaSuccess || problem.samples == 0) return error;
  PIC_LAUNCH(combine_stretches, blocks_of_warps(problem.samples * (problem.features / 32)), kThreads, 0, stream, given,
             sizes.stretches, problem.features, leave_own_out, statistics);
  return cudaGetLastError();
}

cudaError_t rows_gradient(const Problem& problem, const Objective& objective, float* drows_KD, void* workspace,
                          cudaStream_t stream) {
  RowTiles given = {};
  given.rows_KD = const_cast<float*>(problem.rows_KD);
  given.drows_KD = drows_KD;
  return launch_rows(problem, objective, given, workspace, stream);
}

cudaError_t rows_update(const Problem& problem, const Objective& objective, float* rows_KD, float* momentum_KD,
                        const SgdStep<float>& step, void* workspace, cudaStream_t stream) {
  RowTiles given = {};
  given.rows_KD = rows_KD;
  given.momentum_KD = momentum_KD;
  given.step = step;
  return launch_rows(problem, objective, given, workspace, stream);
}

}  // namespace pic::sampled_softmax
