// Attention of one new token per row over its slot's cached keys and values, for XLA:CPU.
//
// The visible positions of a row are cut into spans at multiples of kSpan. Each span of a row and
// key-value head gives a partial softmax, and these are joined in their order. So a row's bits do
// not depend on the rows beside it or the number of threads, and long texts use all of these.

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

constexpr int64_t kSpan = 256;  // keys and values of a span stay in the L2 cache
constexpr int64_t kLanes = 8;
constexpr int kTile = 4;  // queries whose sums fit the registers

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Bits = uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));

#define INLINE inline __attribute__((always_inline))

struct Shape {
  int64_t heads, kv_heads, length, width;  // N, K, S, H
  int64_t window;                          // 0: none
  float softcap;                           // 0: none

  int64_t group() const { return heads / kv_heads; }
};

// Some keys and values of one row and key-value head.
struct Span {
  const float* q;        // [G, H]
  const uint16_t *k, *v; // [keys, H], bfloat16
  int64_t keys;
};

// The softmax over one span, for each of its G queries.
struct Partial {
  float* top;    // [G] the largest score
  float* total;  // [G] the sum of exp(score - top)
  float* mixed;  // [G, H] the values with these weights
};

INLINE Floats from_bfloat16(const uint16_t* at) {
  Halves halves;
  std::memcpy(&halves, at, sizeof halves);
  const Bits bits = __builtin_convertvector(halves, Bits) << 16;
  return reinterpret_cast<Floats>(bits);
}

INLINE float one_from_bfloat16(const uint16_t* at) {
  const uint32_t bits = static_cast<uint32_t>(*at) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

INLINE Floats load(const float* at) {
  Floats floats;
  std::memcpy(&floats, at, sizeof floats);
  return floats;
}

INLINE void store(float* at, Floats floats) { std::memcpy(at, &floats, sizeof floats); }

INLINE float sum(Floats floats) {
  float halves[4];
  for (int i = 0; i < 4; i++) halves[i] = floats[i] + floats[i + 4];
  return (halves[0] + halves[2]) + (halves[1] + halves[3]);
}

// e^x to 2e-7 of itself, for |x| < 86; beyond, what it is there: 1e-38 instead of 0. The fraction's
// power of 2 by its Taylor series.
INLINE Floats exp(Floats x) {
  Floats t = x * 1.44269504f;
  t = t < -125.0f ? Floats{} - 125.0f : t;
  t = t > 125.0f ? Floats{} + 125.0f : t;
  const Floats shifted = t + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the lowest bits
  const Ints whole = reinterpret_cast<Ints>(shifted) - 0x4b400000;
  const Floats f = t - (shifted - 12582912.0f);
  Floats power = Floats{} + 1.52527338e-5f;
  for (float factor : {1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f,
                       2.40226507e-1f, 6.93147181e-1f, 1.0f})
    power = power * f + factor;
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(power) + (whole << 23));
}

template <int Q>
INLINE void score(const float* q, const uint16_t* k, int64_t keys, int64_t width, float* scores) {
  for (int64_t j = 0; j < keys; j++, k += width) {
    Floats dot[Q] = {};
    int64_t h = 0;
    for (; h + kLanes <= width; h += kLanes) {
      const Floats key = from_bfloat16(k + h);
      for (int i = 0; i < Q; i++) dot[i] += load(q + i * width + h) * key;
    }
    for (int i = 0; i < Q; i++) {
      float total = sum(dot[i]);
      for (int64_t rest = h; rest < width; rest++)
        total += q[i * width + rest] * one_from_bfloat16(k + rest);
      scores[i * kSpan + j] = total;
    }
  }
}

template <int Q>
INLINE void mix(const float* weights, const uint16_t* v, int64_t keys, int64_t width,
                float* mixed) {
  int64_t h = 0;
  for (; h + 2 * kLanes <= width; h += 2 * kLanes) {
    Floats total[Q][2] = {};
    for (int64_t j = 0; j < keys; j++) {
      const Floats low = from_bfloat16(v + j * width + h);
      const Floats high = from_bfloat16(v + j * width + h + kLanes);
      for (int i = 0; i < Q; i++) {
        total[i][0] += weights[i * kSpan + j] * low;
        total[i][1] += weights[i * kSpan + j] * high;
      }
    }
    for (int i = 0; i < Q; i++) {
      store(mixed + i * width + h, total[i][0]);
      store(mixed + i * width + h + kLanes, total[i][1]);
    }
  }
  for (; h < width; h++)
    for (int i = 0; i < Q; i++) {
      float total = 0;
      for (int64_t j = 0; j < keys; j++)
        total += weights[i * kSpan + j] * one_from_bfloat16(v + j * width + h);
      mixed[i * width + h] = total;
    }
}

// tanh(x / cap) * cap
INLINE Floats soft_cap(Floats x, float cap) {
  return (1.0f - 2.0f / (exp(x * (2.0f / cap)) + 1.0f)) * cap;
}

// Scores of one query to weights, in place; returns the largest and the sum.
INLINE void weigh(float* scores, int64_t keys, float softcap, float* top, float* total) {
  const int64_t padded = (keys + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + keys, scores + padded, 0.0f);
  if (softcap > 0)
    for (int64_t j = 0; j < padded; j += kLanes)
      store(scores + j, soft_cap(load(scores + j), softcap));
  const float largest = *std::max_element(scores, scores + keys);
  std::fill(scores + keys, scores + padded, -INFINITY);
  Floats sums = {};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Floats weights = exp(load(scores + j) - largest);
    store(scores + j, weights);
    sums += weights;
  }
  *top = largest;
  *total = sum(sums);
}

template <int Q>
INLINE void attend_tile(const Span& span, const Shape& shape, int64_t first, Partial to) {
  float scores[Q * kSpan];
  const int64_t width = shape.width;
  score<Q>(span.q + first * width, span.k, span.keys, width, scores);
  for (int i = 0; i < Q; i++)
    weigh(scores + i * kSpan, span.keys, shape.softcap, to.top + first + i, to.total + first + i);
  mix<Q>(scores, span.v, span.keys, width, to.mixed + first * width);
}

INLINE void attend_span(const Span& span, const Shape& shape, Partial to) {
  int64_t first = 0;
  for (; first + kTile <= shape.group(); first += kTile)
    attend_tile<kTile>(span, shape, first, to);
  for (; first < shape.group(); first++) attend_tile<1>(span, shape, first, to);
}

using Attend = void (*)(const Span&, const Shape&, Partial);

void attend_anywhere(const Span& span, const Shape& shape, Partial to) {
  attend_span(span, shape, to);
}

#if GEMMA_AVX2
AVX2 void attend_avx2(const Span& span, const Shape& shape, Partial to) {
  attend_span(span, shape, to);
}
#endif

Attend fastest_here() {
#if GEMMA_AVX2
  if (has_avx2()) return attend_avx2;
#endif
  return attend_anywhere;
}

// One span of the work: which row and head it belongs to, and which positions it covers.
struct Part {
  int64_t row, head, start, stop;
};

// The parts of every row and head, in order; none for a row that is padding.
std::vector<Part> cut(const Shape& shape, int64_t rows, int64_t slots, const int32_t* slot,
                      const int32_t* position) {
  std::vector<Part> parts;
  for (int64_t row = 0; row < rows; row++) {
    const int64_t last = position[row];
    if (last < 0 || last >= shape.length || slot[row] < 0 || slot[row] >= slots) continue;
    const int64_t oldest = shape.window ? std::max<int64_t>(0, last - shape.window + 1) : 0;
    for (int64_t head = 0; head < shape.kv_heads; head++)
      for (int64_t start = oldest; start <= last;) {
        const int64_t stop = std::min(last + 1, (start / kSpan + 1) * kSpan);
        parts.push_back({row, head, start, stop});
        start = stop;
      }
  }
  return parts;
}

// Joins the partial softmaxes of one row and head: parts [count] -> out [G, H].
void join(const Partial* parts, int64_t count, const Shape& shape, float* out) {
  for (int64_t i = 0; i < shape.group(); i++, out += shape.width) {
    float top = -INFINITY, total = 0;
    for (int64_t p = 0; p < count; p++) top = std::max(top, parts[p].top[i]);
    for (int64_t p = 0; p < count; p++) {
      const float factor = std::exp(parts[p].top[i] - top);
      const float* mixed = parts[p].mixed + i * shape.width;
      total += factor * parts[p].total[i];
      for (int64_t h = 0; h < shape.width; h++) out[h] += factor * mixed[h];
    }
    for (int64_t h = 0; h < shape.width; h++) out[h] /= total;
  }
}

ffi::Error attention(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::U16> k,
                     ffi::Buffer<ffi::U16> v, ffi::Buffer<ffi::S32> slots,
                     ffi::Buffer<ffi::S32> positions, int64_t window, float softcap,
                     ffi::ResultBuffer<ffi::F32> out) {
  static const Attend attend = fastest_here();
  const auto cached = k.dimensions();
  const int64_t rows = q.dimensions()[0];
  const Shape shape{q.dimensions()[1], cached[1], cached[2], cached[3], window, softcap};
  const int32_t* slot = slots.typed_data();
  const uint16_t *keys = k.typed_data(), *values = v.typed_data();
  const int64_t group = shape.group(), mixed = group * shape.width;

  const std::vector<Part> parts = cut(shape, rows, cached[0], slot, positions.typed_data());
  std::vector<float> numbers(parts.size() * (2 * group + mixed));
  std::vector<Partial> partials;
  for (size_t i = 0; i < parts.size(); i++) {
    float* at = numbers.data() + i * (2 * group + mixed);
    partials.push_back({at, at + group, at + 2 * group});
  }
  share(pool, parts.size(), [&](int64_t i) {
    const Part& part = parts[i];
    const int64_t line = slot[part.row] * shape.kv_heads + part.head;
    const int64_t start = (line * shape.length + part.start) * shape.width;
    const float* queries = q.typed_data() + (part.row * shape.kv_heads + part.head) * mixed;
    attend({queries, keys + start, values + start, part.stop - part.start}, shape, partials[i]);
  });

  std::fill_n(out->typed_data(), rows * shape.kv_heads * mixed, 0.0f);
  for (size_t i = 0, next; i < parts.size(); i = next) {
    next = i + 1;
    while (next < parts.size() && parts[next].row == parts[i].row &&
           parts[next].head == parts[i].head)
      next++;
    float* to = out->typed_data() + (parts[i].row * shape.kv_heads + parts[i].head) * mixed;
    join(&partials[i], next - i, shape, to);
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemma_attention, attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U16>>()
                                  .Arg<ffi::Buffer<ffi::U16>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Attr<int64_t>("window")
                                  .Attr<float>("softcap")
                                  .Ret<ffi::Buffer<ffi::F32>>());
