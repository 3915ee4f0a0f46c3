// The softmax of some queries over one span of keys and values. attention.cc includes this once for
// each set of instructions, in a namespace that has `load(const uint16_t*)` for bfloat16; TARGET is
// the attribute of functions that have these instructions.

#define INLINE inline __attribute__((always_inline)) TARGET
#define LAMBDA __attribute__((always_inline)) TARGET

INLINE Floats load(const float* at) {
  Floats floats;
  std::memcpy(&floats, at, sizeof floats);
  return floats;
}

INLINE float load_one(const uint16_t* at) {
  const uint32_t bits = static_cast<uint32_t>(*at) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

INLINE float load_one(const float* at) { return *at; }

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

template <int Q, int K, typename Number>
INLINE void score_keys(const Query* queries, const Number* k, int64_t width, float* scores) {
  Floats dot[Q][K];
  for (int i = 0; i < Q; i++)  // an initialiser would be a slow `rep stos`
    for (int j = 0; j < K; j++) dot[i][j] = Floats{};
  int64_t h = 0;
  for (; h + kLanes <= width; h += kLanes) {
    Floats keys[K];
    for (int j = 0; j < K; j++) keys[j] = load(k + j * width + h);
    for (int i = 0; i < Q; i++) {
      const Floats q = load(queries[i].q + h);
      for (int j = 0; j < K; j++) dot[i][j] += q * keys[j];
    }
  }
  for (int i = 0; i < Q; i++)
    for (int j = 0; j < K; j++) {
      float total = sum(dot[i][j]);
      for (int64_t rest = h; rest < width; rest++)
        total += queries[i].q[rest] * load_one(k + j * width + rest);
      scores[i * kLine + j] = total;
    }
}

// Scores of those keys from `first` to `stop`, the first of them at k, that any of Q queries sees.
template <int Q, typename Number>
INLINE void score(const Query* queries, const Number* k, int64_t first, int64_t stop,
                  int64_t width, float* scores) {
  int64_t from = stop, until = first;
  for (int i = 0; i < Q; i++) {
    from = std::min(from, std::max(first, queries[i].first));
    until = std::max(until, std::min(stop, queries[i].stop));
  }
  k += (from - first) * width;
  for (; from + 2 <= until; from += 2, k += 2 * width)
    score_keys<Q, 2>(queries, k, width, scores + from);
  if (from < until) score_keys<Q, 1>(queries, k, width, scores + from);
}

// Adds what one query sees beside the values that all of its tile see. It is seldom much.
template <typename Number>
TARGET __attribute__((noinline)) void add_rest(const float* weights, const Number* v,
                                               int64_t first, int64_t stop, int64_t width,
                                               Floats* total) {
  for (int64_t j = first; j < stop; j++, v += width) {
    total[0] += weights[j] * load(v);
    total[1] += weights[j] * load(v + kLanes);
  }
}

// Adds the values from `first` to `stop`, the first of them at v, to two vectors of each query.
template <int Q, typename Number>
INLINE void add_values(const float* weights, const Number* v, int64_t first, int64_t stop,
                       int64_t width, Floats (*total)[2]) {
  for (int64_t j = first; j < stop; j++, v += width) {
    const Floats low = load(v), high = load(v + kLanes);
    for (int i = 0; i < Q; i++) {
      total[i][0] += weights[i * kLine + j] * low;
      total[i][1] += weights[i * kLine + j] * high;
    }
  }
}

// Adds those values from `first` to `stop`, the first of them at v, that each of Q queries sees.
template <int Q, typename Number>
INLINE void mix(const Query* queries, const Number* v, int64_t first, int64_t stop, int64_t width,
                const float* weights) {
  int64_t from[Q], until[Q], common = first, end = stop;  // what each sees, and what all do
  for (int i = 0; i < Q; i++) {
    from[i] = std::max(first, queries[i].first);
    until[i] = std::max(from[i], std::min(stop, queries[i].stop));
    common = std::max(common, from[i]);
    end = std::min(end, until[i]);
  }
  if (common >= end) common = end = stop;
  int64_t h = 0;
  for (; h + 2 * kLanes <= width; h += 2 * kLanes) {
    const auto at = [&](int64_t key) { return v + (key - first) * width + h; };
    Floats total[Q][2];
    for (int i = 0; i < Q; i++) {
      total[i][0] = load(queries[i].to->mixed + h);
      total[i][1] = load(queries[i].to->mixed + h + kLanes);
      if (from[i] < common)
        add_rest(weights + i * kLine, at(from[i]), from[i], std::min(common, until[i]), width,
                 total[i]);
    }
    add_values<Q>(weights, at(common), common, end, width, total);
    for (int i = 0; i < Q; i++) {
      const int64_t after = std::max(end, from[i]);
      if (after < until[i])
        add_rest(weights + i * kLine, at(after), after, until[i], width, total[i]);
      store(queries[i].to->mixed + h, total[i][0]);
      store(queries[i].to->mixed + h + kLanes, total[i][1]);
    }
  }
  for (; h < width; h++)
    for (int i = 0; i < Q; i++)
      for (int64_t j = from[i]; j < until[i]; j++)
        queries[i].to->mixed[h] += weights[i * kLine + j] * load_one(v + (j - first) * width + h);
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

// Calls work(Q, first) for tiles of Q queries; Q is a constant.
template <typename Work>
INLINE void in_tiles(int64_t count, const Work& work) {
  int64_t first = 0;
  for (; first + kTile <= count; first += kTile)
    work(std::integral_constant<int, kTile>{}, first);
  if (first + 2 <= count) work(std::integral_constant<int, 2>{}, first), first += 2;
  if (first < count) work(std::integral_constant<int, 1>{}, first);
}

// Calls work(numbers, first, stop) for the keys or values of a span, in turn. Several tiles read
// them: then they are widened once for all of these.
template <typename Work>
INLINE void in_parts(const uint16_t* numbers, int64_t first, int64_t stop, int64_t width,
                     bool widens, const Work& work) {
  if (!widens) return work(numbers + first * width, first, stop);
  thread_local std::vector<float> wide;
  wide.resize(kKeys * width);
  for (int64_t key = first; key < stop; key += kKeys) {
    const int64_t count = std::min(kKeys, stop - key) * width;
    const uint16_t* from = numbers + key * width;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(&wide[i], load(from + i));
    for (; i < count; i++) wide[i] = load_one(from + i);
    work(static_cast<const float*>(wide.data()), key, std::min(key + kKeys, stop));
  }
}

TARGET void attend(const Query* queries, int64_t count, const uint16_t* k, const uint16_t* v,
                   const Shape& shape) {
  thread_local std::vector<float> all_scores;
  all_scores.resize(count * kLine);
  float* scores = all_scores.data();
  const int64_t width = shape.width;
  int64_t first = kSpan, stop = 0;
  for (int64_t i = 0; i < count; i++) {
    first = std::min(first, queries[i].first);
    stop = std::max(stop, queries[i].stop);
  }
  const bool widens = count > kTile;
  in_parts(k, first, stop, width, widens, [&](auto keys, int64_t from, int64_t until) LAMBDA {
    in_tiles(count, [&](auto tile, int64_t i) LAMBDA {
      score<tile.value>(queries + i, keys, from, until, width, scores + i * kLine);
    });
  });
  for (int64_t i = 0; i < count; i++) {
    const Query& query = queries[i];
    weigh(scores + i * kLine + query.first, query.stop - query.first, shape.softcap,
          &query.to->top, &query.to->total);
    std::fill_n(query.to->mixed, width, 0.0f);
  }
  in_parts(v, first, stop, width, widens, [&](auto values, int64_t from, int64_t until) LAMBDA {
    in_tiles(count, [&](auto tile, int64_t i) LAMBDA {
      mix<tile.value>(queries + i, values, from, until, width, scores + i * kLine);
    });
  });
}

#undef INLINE
#undef LAMBDA
