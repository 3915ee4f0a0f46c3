// RMS norm over the last axis, for XLA:CPU: out = x / sqrt(mean(x^2) + epsilon) * scale.
//
// XLA sums in another order when there are fewer than 8 rows, and may join the last product with
// a sum behind it into one rounding. Here a row's bits depend on that row alone.

#include <cmath>
#include <cstdint>

#include "share.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kLanes = 16;      // partial sums; their number is part of the result
constexpr int64_t kRowsAtOnce = 16; // too little work for a thread below

void norm(const float* x, const float* scale, int64_t width, float epsilon, float* out) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; lane++) sums[lane] += x[i + lane] * x[i + lane];
  for (; i < width; i++) sums[i % kLanes] += x[i] * x[i];
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
  const float factor = 1.0f / std::sqrt(sums[0] / width + epsilon);
  for (i = 0; i < width; i++) out[i] = x[i] * factor * scale[i];
}

ffi::Error norms(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> scale,
                 float epsilon, ffi::ResultBuffer<ffi::F32> out) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  share(pool, (rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t part) {
    const int64_t stop = std::min(rows, (part + 1) * kRowsAtOnce);
    for (int64_t row = part * kRowsAtOnce; row < stop; row++)
      norm(x.typed_data() + row * width, scale.typed_data(), width, epsilon,
           out->typed_data() + row * width);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemma_norm, norms,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("epsilon")
                                  .Ret<ffi::Buffer<ffi::F32>>());
