// Attention of new tokens over their slots' cached keys and values, for XLA:CPU.
//
// What a token sees is cut into spans at multiples of kSpan. Each span of a token and key-value head
// gives a partial softmax, and these are joined in their order. So a token's bits do not depend on
// the tokens beside it, in its row or in others, nor on the number of threads. Tokens of a row share
// what is read of a span, and long texts use all threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "instructions.h"
#include "share.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kSpan = 256;  // keys and values of a span stay in the L2 cache
constexpr int64_t kLanes = 8;
constexpr int kTile = 4;  // queries whose sums fit the registers
constexpr int64_t kLine = kSpan + kLanes;  // of scores: a query's keys are filled up to whole lanes
constexpr int64_t kKeys = 16;  // widened at a time: they stay in the L1 cache
constexpr int64_t kTokens = 16;  // of a row that read a span one after the other
constexpr int64_t kMostPartials = 1 << 23;  // numbers; 32 MB

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Bits = uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));

struct Shape {
  int64_t heads, kv_heads, length, width;  // N, K, S, H
  int64_t window;                          // 0: none
  float softcap;                           // 0: none

  int64_t group() const { return heads / kv_heads; }
};

// The softmax of one query over one span.
struct Partial {
  float top;      // the largest score
  float total;    // the sum of exp(score - top); 0 if the query sees nothing of the span
  float* mixed;   // [H] the values with these weights
};

// One head of one token, and which keys of a span it sees.
struct Query {
  const float* q;  // [H]
  int64_t first, stop;
  Partial* to;
};

namespace anywhere {

inline Floats load(const uint16_t* at) {
  Halves halves;
  std::memcpy(&halves, at, sizeof halves);
  return reinterpret_cast<Floats>(__builtin_convertvector(halves, Bits) << 16);
}

#define TARGET
#include "attention_span.h"
#undef TARGET

}  // namespace anywhere

#if GEMMA_AVX2
namespace avx2 {

AVX2 inline __attribute__((always_inline)) Floats load(const uint16_t* at) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return reinterpret_cast<Floats>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

#define TARGET AVX2
#include "attention_span.h"
#undef TARGET

}  // namespace avx2
#endif

using Attend = void (*)(const Query*, int64_t, const uint16_t*, const uint16_t*, const Shape&);

Attend fastest_here() {
#if GEMMA_AVX2
  if (has_avx2()) return avx2::attend;
#endif
  return anywhere::attend;
}

// The positions that a token sees.
struct Seen {
  int64_t first, stop;  // none if they are equal

  Seen(int64_t position, const Shape& shape)
      : first(shape.window ? std::max<int64_t>(0, position - shape.window + 1) : 0),
        stop(position + 1) {
    if (position < 0 || position >= shape.length) first = stop = 0;
  }
};

// Some tokens of one row that stand beside each other, and the spans that any of them sees.
struct Block {
  int64_t slot, token, count;  // token: the first one's place among those of all rows
  int64_t first, stop;         // spans
  int64_t partial;             // of the first query and span

  int64_t spans() const { return stop - first; }
};

// The blocks of all rows, without tokens that are padding.
std::vector<Block> blocks_of(const Shape& shape, int64_t rows, int64_t tokens, int64_t slots,
                             const int32_t* slot, const int32_t* position) {
  std::vector<Block> blocks;
  for (int64_t row = 0; row < rows; row++) {
    if (slot[row] < 0 || slot[row] >= slots) continue;
    for (int64_t at = 0; at < tokens; at += kTokens) {
      const int64_t token = row * tokens + at;
      Block block{slot[row], token, std::min(kTokens, tokens - at), shape.length, 0, 0};
      for (int64_t i = 0; i < block.count; i++) {
        const Seen seen(position[token + i], shape);
        if (seen.first == seen.stop) continue;
        block.first = std::min(block.first, seen.first / kSpan);
        block.stop = std::max(block.stop, (seen.stop - 1) / kSpan + 1);
      }
      if (block.first < block.stop) blocks.push_back(block);
    }
  }
  return blocks;
}

// One call: its operands, and memory for the partial softmaxes of some blocks.
struct Call {
  const Shape shape;
  const float* q;  // [B, T, N, H]
  const uint16_t *keys, *values;  // [slots, K, S, H]
  const int32_t* positions;  // [B, T]
  float* out;  // [B, T, N, H]
  std::vector<Partial> partials;
  std::unique_ptr<float[]> mixed;

  // The queries of a block and head, and what they see of a span.
  int64_t look(const Block& block, int64_t head, int64_t span, Query* queries) {
    const int64_t group = shape.group(), start = span * kSpan;
    Partial* to = partial(block, head, span);
    int64_t count = 0;
    for (int64_t i = 0; i < block.count; i++) {
      const Seen seen(positions[block.token + i], shape);
      const int64_t first = std::max<int64_t>(seen.first - start, 0);
      const int64_t stop = std::min(seen.stop - start, kSpan);
      for (int64_t g = 0; g < group; g++, to++) {
        to->total = 0;
        if (first >= stop) continue;
        const int64_t query = (block.token + i) * shape.heads + head * group + g;
        queries[count++] = {q + query * shape.width, first, stop, to};
      }
    }
    return count;
  }

  Partial* partial(const Block& block, int64_t head, int64_t span) {
    const int64_t before = head * block.spans() + span - block.first;
    return &partials[block.partial + before * block.count * shape.group()];
  }

  void attend(Attend attend, const Block& block, int64_t head, int64_t span) {
    std::vector<Query> queries(block.count * shape.group());
    const int64_t count = look(block, head, span, queries.data());
    const int64_t line = block.slot * shape.kv_heads + head;
    const int64_t start = (line * shape.length + span * kSpan) * shape.width;
    attend(queries.data(), count, keys + start, values + start, shape);
  }

  // Joins the partial softmaxes of a block and head.
  void join(const Block& block, int64_t head) {
    const int64_t group = shape.group(), queries = block.count * group;
    const Partial* parts = partial(block, head, block.first);
    for (int64_t i = 0; i < queries; i++, parts++) {
      const int64_t query = (block.token + i / group) * shape.heads + head * group + i % group;
      join_query(parts, queries, block.spans(), out + query * shape.width);
    }
  }

  void join_query(const Partial* parts, int64_t stride, int64_t spans, float* to) {
    float top = -INFINITY, total = 0;
    for (int64_t s = 0; s < spans; s++)
      if (parts[s * stride].total != 0) top = std::max(top, parts[s * stride].top);
    for (int64_t s = 0; s < spans; s++) {
      const Partial& part = parts[s * stride];
      if (part.total == 0) continue;
      const float factor = std::exp(part.top - top);
      total += factor * part.total;
      for (int64_t h = 0; h < shape.width; h++) to[h] += factor * part.mixed[h];
    }
    if (total != 0)
      for (int64_t h = 0; h < shape.width; h++) to[h] /= total;
  }
};

// Gives the first blocks, as many as have room for their partial softmaxes, a place for them.
int64_t place(Call& call, Block* blocks, int64_t count) {
  const Shape& shape = call.shape;
  const int64_t most = std::max<int64_t>(1, kMostPartials / shape.width);
  int64_t placed = 0, taken = 0;
  for (; placed < count; placed++) {
    Block& block = blocks[placed];
    const int64_t wanted = block.count * shape.heads * block.spans();
    if (placed > 0 && taken + wanted > most) break;
    block.partial = taken;
    taken += wanted;
  }
  if (taken > static_cast<int64_t>(call.partials.size())) {
    call.partials.resize(taken);
    call.mixed.reset(new float[taken * shape.width]);
    for (int64_t i = 0; i < taken; i++) call.partials[i].mixed = &call.mixed[i * shape.width];
  }
  return placed;
}

ffi::Error attention(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::U16> k,
                     ffi::Buffer<ffi::U16> v, ffi::Buffer<ffi::S32> slots,
                     ffi::Buffer<ffi::S32> positions, int64_t window, float softcap,
                     ffi::ResultBuffer<ffi::F32> out) {
  static const Attend attend = fastest_here();
  const auto asked = q.dimensions(), cached = k.dimensions();
  const Shape shape{asked[2], cached[1], cached[2], cached[3], window, softcap};
  Call call{shape, q.typed_data(), k.typed_data(), v.typed_data(), positions.typed_data(),
            out->typed_data()};
  std::fill_n(call.out, q.element_count(), 0.0f);

  std::vector<Block> blocks = blocks_of(shape, asked[0], asked[1], cached[0], slots.typed_data(),
                                        call.positions);
  for (size_t done = 0; done < blocks.size();) {
    Block* some = &blocks[done];
    const int64_t count = place(call, some, blocks.size() - done);
    struct Part { const Block* block; int64_t head, span; };
    std::vector<Part> parts;
    for (const Block* block = some; block < some + count; block++)
      for (int64_t head = 0; head < shape.kv_heads; head++)
        for (int64_t span = block->first; span < block->stop; span++)
          parts.push_back({block, head, span});
    share(pool, parts.size(), [&](int64_t i) {
      call.attend(attend, *parts[i].block, parts[i].head, parts[i].span);
    });
    share(pool, count * shape.kv_heads, [&](int64_t i) {
      call.join(some[i / shape.kv_heads], i % shape.kv_heads);
    });
    done += count;
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
