// cuda.cu of sampled_softmax as a plain library for ctypes: the launchers with C names, and SgdStep alone.
#include "../../../kernels/sampled_softmax/cuda.cu"

using namespace pic::sampled_softmax;

extern "C" {

struct CProblem {
  const float* features_BD;
  const float* rows_KD;
  const std::int64_t* targets_B;
  const bool* row_mask_K;
  std::int64_t samples, rows, features, products;
  double temperature;
};

static Problem problem_of(const CProblem& c) {
  return {c.features_BD, c.rows_KD,
          c.targets_B,   c.row_mask_K,
          c.samples,     c.rows,
          static_cast<int>(c.features), c.temperature,
          static_cast<Products>(c.products)};
}

void run_backwards(int backwards) { emulated::backwards = backwards != 0; }
int largest_shared_bytes() { return emulated::largest_shared_bytes; }

std::int64_t forward_bytes(const CProblem* c, int with_negatives) {
  return forward_workspace_bytes(problem_of(*c), with_negatives != 0);
}
std::int64_t rows_bytes(const CProblem* c) { return rows_workspace_bytes(problem_of(*c)); }

int run_forward(const CProblem* c, int leave_own_out, double* max_B, double* sumexp_B, double* positive_B,
                float* negatives_BD, double* shortest, void* workspace) {
  return forward(problem_of(*c), leave_own_out != 0, {max_B, sumexp_B, positive_B, negatives_BD, shortest}, workspace, nullptr);
}

int run_rows_gradient(const CProblem* c, const double* lse_B, const double* weight_B, const bool* need_B,
                      const double* own_B, float* drows_KD, void* workspace) {
  return rows_gradient(problem_of(*c), {lse_B, weight_B, need_B, own_B}, drows_KD, workspace, nullptr);
}

int run_rows_update(const CProblem* c, const double* lse_B, const double* weight_B, const bool* need_B,
                    const double* own_B, float* rows_KD, float* momentum_KD, const float* step, int nesterov, void* workspace) {
  return rows_update(problem_of(*c), {lse_B, weight_B, need_B, own_B}, rows_KD, momentum_KD,
                     {step[0], step[1], step[2], nesterov != 0}, workspace, nullptr);
}

void run_step(std::int64_t numbers, const float* gradient, float* w, float* u, const float* step, int nesterov) {
  const pic::SgdStep<float> sgd{step[0], step[1], step[2], nesterov != 0};
  for (std::int64_t i = 0; i < numbers; ++i) sgd(gradient[i], w[i], u[i]);
}

void round_numbers(std::int64_t numbers, std::int64_t products, const float* x, float* out) {
  for (std::int64_t i = 0; i < numbers; ++i) {
    switch (static_cast<Products>(products)) {
      case Products::kTf32:
        out[i] = nvcuda::wmma::__float_to_tf32(x[i]);
        break;
      case Products::kBfloat16:
        out[i] = __bfloat162float(__float2bfloat16_rn(x[i]));
        break;
      case Products::kFloat16:
        out[i] = __half2float(__float2half_rn(x[i]));
        break;
      default:
        out[i] = x[i];
    }
  }
}

}  // extern "C"
