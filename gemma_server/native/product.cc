// The matrix product of int8 weights in blocks with float rows, for XLA:CPU.
//
// out[r][o] = sum over blocks b of scale[o][b] * sum over k in b of value[o][k] * x[r][k]
//
// A row of x is turned into 16-bit integers with one scale, so that the inner sums are exact in
// integers: 15 bits are fine enough for the outliers of Gemma's activations, and the machine
// multiplies pairs of them twice as fast as floats. The outer sum runs over the blocks in their
// order. So each number that comes out has the same bits whatever the rows beside it and the
// number of threads.
//
// Weights lie as gemma_server/model/quantized.py packs them: 16 output rows are a group, and
// within a block their values take turns in pairs along k: [group][block][k/2][16][2]. One load
// then brings pairs for 8 output rows, and the pair of x that goes with them is broadcast.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "instructions.h"
#include "share.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kGroup = 16;   // output rows that lie side by side
constexpr int64_t kBlock = 32;   // weights of one output row that share a scale
constexpr int64_t kPanel = 64;   // rows of x that pass over a group while it is in the L1 cache
constexpr int64_t kTile = 4;     // rows of x whose sums fit the registers
constexpr float kLargest = 32767.0f;

// The rows of x as integers, [block][row][kBlock], and the factor that turns each row back. A last
// block that is not full ends with zeros.
struct Rows {
  int64_t count, blocks;
  std::vector<int16_t> values;
  std::vector<float> scales;

  Rows(int64_t count, int64_t width)
      : count(count),
        blocks((width + kBlock - 1) / kBlock),
        values(count * blocks * kBlock),
        scales(count) {}

  int16_t* at(int64_t block, int64_t row) {
    return values.data() + (block * count + row) * kBlock;
  }
  const int16_t* at(int64_t block, int64_t row) const {
    return values.data() + (block * count + row) * kBlock;
  }
};

struct Weights {
  const int8_t* values;
  const uint16_t* scales;  // IEEE 754 binary16, [group][block][kGroup]
  int64_t out, blocks;

  int64_t groups() const { return (out + kGroup - 1) / kGroup; }
  const int8_t* block(int64_t group, int64_t block) const {
    return values + (group * blocks + block) * kBlock * kGroup;
  }
  const uint16_t* scale(int64_t group, int64_t block) const {
    return scales + (group * blocks + block) * kGroup;
  }
};

// A row with a NaN or an infinity gets the scale NaN, and so does all that comes of it.
inline __attribute__((always_inline)) void quantise_row(const float* x, int64_t width, int64_t row,
                                                        Rows& rows) {
  // The bits of positive floats order as the floats do, those of infinity and NaN above them all.
  int32_t largest_bits = 0;
  for (int64_t k = 0; k < width; k++) {
    int32_t bits;
    std::memcpy(&bits, x + k, sizeof bits);
    largest_bits = std::max(largest_bits, bits & 0x7fffffff);
  }
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const bool finite = largest_bits < 0x7f800000;
  rows.scales[row] = finite ? largest / kLargest : NAN;
  // Below the threshold the division would overflow, and the row is as good as 0.
  const float inverse = finite && largest > 1e-30f ? kLargest / largest : 0;
  for (int64_t b = 0; b < rows.blocks; b++) {
    int16_t* to = rows.at(b, row);
    const float* from = x + b * kBlock;
    const int64_t filled = std::min(kBlock, width - b * kBlock);
    for (int64_t k = 0; k < filled; k++) {
      // Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the lowest bits.
      const float shifted = from[k] * inverse + 12582912.0f;
      int32_t bits;
      std::memcpy(&bits, &shifted, sizeof bits);
      to[k] = static_cast<int16_t>(bits - 0x4b400000);
    }
  }
}

using QuantiseRow = void (*)(const float* x, int64_t width, int64_t row, Rows& rows);

void quantise_row_anywhere(const float* x, int64_t width, int64_t row, Rows& rows) {
  quantise_row(x, width, row, rows);
}

// sums[r][o] += scale[o] * (values of one block) . x[r], for `count` rows and one group.
using AddBlock = void (*)(const int8_t* values, const uint16_t* scale, const int16_t* x,
                          int64_t count, float* sums);

float from_half(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float size = exponent ? std::ldexp(1024.0f + fraction, exponent - 25)
                              : std::ldexp(static_cast<float>(fraction), -24);
  return half >> 15 ? -size : size;
}

void add_block_anywhere(const int8_t* values, const uint16_t* scale, const int16_t* x,
                        int64_t count, float* sums) {
  float scales[kGroup];
  for (int64_t o = 0; o < kGroup; o++) scales[o] = from_half(scale[o]);
  for (int64_t r = 0; r < count; r++, x += kBlock, sums += kGroup) {
    int32_t dot[kGroup] = {};
    for (int64_t k = 0; k < kBlock; k += 2)
      for (int64_t o = 0; o < kGroup; o++) {
        const int8_t* pair = values + k * kGroup + 2 * o;
        dot[o] += pair[0] * x[k] + pair[1] * x[k + 1];
      }
    for (int64_t o = 0; o < kGroup; o++)
      sums[o] = std::fma(static_cast<float>(dot[o]), scales[o], sums[o]);
  }
}

#if GEMMA_AVX2
AVX2 void quantise_row_avx2(const float* x, int64_t width, int64_t row, Rows& rows) {
  quantise_row(x, width, row, rows);
}

// A step along k: 8 output rows in each half, as 16-bit integers. Widening takes longer than
// multiplying, so with many rows it is done once for all of them.
AVX2 inline __m256i widened(const int8_t* values) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}
AVX2 inline __m256i widened(const int16_t* values) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(values));
}

template <int R, typename Value>
AVX2 inline void add_tile(const Value* values, __m256 low, __m256 high, const int16_t* x,
                          float* sums) {
  __m256i dot[R][2];
  for (int r = 0; r < R; r++) dot[r][0] = dot[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
  for (int k = 0; k < kBlock; k += 2) {
    const __m256i first = widened(values + k * kGroup);
    const __m256i second = widened(values + k * kGroup + kGroup);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      int32_t pair;
      std::memcpy(&pair, x + r * kBlock + k, sizeof pair);
      const __m256i both = _mm256_set1_epi32(pair);
      dot[r][0] = _mm256_add_epi32(dot[r][0], _mm256_madd_epi16(first, both));
      dot[r][1] = _mm256_add_epi32(dot[r][1], _mm256_madd_epi16(second, both));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    float* to = sums + r * kGroup;
    const __m256 a = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][0]), low, _mm256_loadu_ps(to));
    const __m256 b = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][1]), high, _mm256_loadu_ps(to + 8));
    _mm256_storeu_ps(to, a);
    _mm256_storeu_ps(to + 8, b);
  }
}

template <typename Value>
AVX2 inline void add_rest(int64_t count, const Value* values, __m256 low, __m256 high,
                          const int16_t* x, float* sums) {
  switch (count) {
    case 4: return add_tile<4>(values, low, high, x, sums);
    case 3: return add_tile<3>(values, low, high, x, sums);
    case 2: return add_tile<2>(values, low, high, x, sums);
    case 1: return add_tile<1>(values, low, high, x, sums);
  }
}

AVX2 void add_block_avx2(const int8_t* values, const uint16_t* scale, const int16_t* x,
                         int64_t count, float* sums) {
  const __m128i* halves = reinterpret_cast<const __m128i*>(scale);
  const __m256 low = _mm256_cvtph_ps(_mm_loadu_si128(halves));
  const __m256 high = _mm256_cvtph_ps(_mm_loadu_si128(halves + 1));
  if (count <= kTile) return add_rest(count, values, low, high, x, sums);
  alignas(32) int16_t wide[kBlock * kGroup];
  for (int64_t i = 0; i < kBlock * kGroup; i += 16)
    _mm256_store_si256(reinterpret_cast<__m256i*>(wide + i), widened(values + i));
  for (; count > kTile; count -= kTile, x += kTile * kBlock, sums += kTile * kGroup)
    add_tile<kTile>(wide, low, high, x, sums);
  add_rest(count, wide, low, high, x, sums);
}
#endif

struct Instructions {
  QuantiseRow quantise_row;
  AddBlock add_block;
};

Instructions fastest_here() {
#if GEMMA_AVX2
  if (has_avx2()) return {quantise_row_avx2, add_block_avx2};
#endif
  return {quantise_row_anywhere, add_block_anywhere};
}

// Which outputs of each row are wanted: all, or those that have a bit in the row's mask.
struct Wanted {
  const uint32_t* bits;  // [rows][words]
  int64_t words;
  const int32_t* masked;  // [rows]; 0: all are

  // A bit for each of a group's outputs.
  uint32_t of(int64_t row, int64_t group) const {
    constexpr int64_t kGroups = 32 / kGroup;
    if (!masked || !masked[row]) return (1u << kGroup) - 1;
    return bits[row * words + group / kGroups] >> kGroup * (group % kGroups) & ((1u << kGroup) - 1);
  }
};

// Weights of outputs that no row wants are not read. What a row does not want is -infinity.
void multiply_group(AddBlock add_block, const Weights& weights, const Rows& rows,
                    const Wanted& wanted, int64_t group, float* out) {
  alignas(64) float sums[kPanel * kGroup];
  const int64_t first = group * kGroup, filled = std::min(kGroup, weights.out - first);
  uint32_t any = 0;
  for (int64_t row = 0; row < rows.count; row++) any |= wanted.of(row, group);
  for (int64_t row = 0; row < rows.count; row += kPanel) {
    const int64_t count = std::min(kPanel, rows.count - row);
    std::fill_n(sums, count * kGroup, 0.0f);
    for (int64_t b = 0; any && b < weights.blocks; b++)
      add_block(weights.block(group, b), weights.scale(group, b), rows.at(b, row), count, sums);
    for (int64_t r = 0; r < count; r++) {
      const uint32_t bits = wanted.of(row + r, group);
      float* to = out + (row + r) * weights.out + first;
      for (int64_t o = 0; o < filled; o++)
        to[o] = bits >> o & 1 ? sums[r * kGroup + o] * rows.scales[row + r] : -INFINITY;
    }
  }
}

ffi::Error multiply(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S8> values,
                    ffi::Buffer<ffi::F16> scales, const Wanted& wanted,
                    ffi::ResultBuffer<ffi::F32> out) {
  static const Instructions here = fastest_here();
  const int64_t count = x.dimensions()[0], width = x.dimensions()[1];
  Rows rows(count, width);
  for (int64_t r = 0; r < count; r++) here.quantise_row(x.typed_data() + r * width, width, r, rows);
  const Weights weights{values.typed_data(),
                        reinterpret_cast<const uint16_t*>(scales.untyped_data()),
                        out->dimensions()[1], rows.blocks};
  if (static_cast<int64_t>(values.element_count()) !=
      weights.groups() * weights.blocks * kGroup * kBlock)
    return ffi::Error::InvalidArgument("the weights are not packed for this product");
  const int64_t groups = weights.groups();
  const int64_t parts = std::min<int64_t>(groups, (wanted.masked ? 32 : 4) * pool.num_threads());
  share(pool, parts, [&](int64_t part) {
    for (int64_t g = groups * part / parts; g < groups * (part + 1) / parts; g++)
      multiply_group(here.add_block, weights, rows, wanted, g, out->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S8> values,
                   ffi::Buffer<ffi::F16> scales, ffi::ResultBuffer<ffi::F32> out) {
  return multiply(pool, x, values, scales, Wanted{}, out);
}

ffi::Error masked_product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                          ffi::Buffer<ffi::S8> values, ffi::Buffer<ffi::F16> scales,
                          ffi::Buffer<ffi::S32> masks, ffi::Buffer<ffi::S32> masked,
                          ffi::ResultBuffer<ffi::F32> out) {
  const auto shape = masks.dimensions();
  if (shape[0] != x.dimensions()[0] || shape[1] * 32 < out->dimensions()[1])
    return ffi::Error::InvalidArgument("the masks are not those of this product");
  const Wanted wanted{reinterpret_cast<const uint32_t*>(masks.typed_data()), shape[1],
                      masked.typed_data()};
  return multiply(pool, x, values, scales, wanted, out);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemma_product, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemma_masked_product, masked_product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
