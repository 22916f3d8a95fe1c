// Multi-LoRA batches on CPU: y[row] += scale * B[slot(row)] A[slot(row)] x[row], for every slice of
// a layer, in one call. Rows arrive grouped by slot; rows without an adapter are in no group.
//
// Why it is fast: each adapter is read once per call however many rows use it, only as many of its
// rank rows as it really has, with no copy of weights and no intermediate in memory but the
// (rows, ranks) product of the first half.
//
// Written with GCC's vector extensions, so that one source serves every instruction set; the
// specialisations at __AVX512BF16__ are for processors that multiply bfloat16 pairs by themselves.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// For loops of a constant length whose arrays are to stay in registers.
#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int64_t kLanes = 16;
constexpr int kRowTile = 4;          // rows that share one read of the weights
constexpr int kRankTile = 4;         // rank rows that share one read of x
constexpr int64_t kRowChunk = 32;    // rows of one work item: their x stays in the L1 cache
constexpr int64_t kRankChunk = 8;    // rank rows of one work item, if it has but a tile of rows
constexpr int64_t kOutChunk = 256;   // outputs of one work item
constexpr int64_t kMostRank = 512;   // vLLM's largest

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Words = uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Floats load(const at::BFloat16* p) {
  Halves raw;
  std::memcpy(&raw, p, sizeof raw);
  const Words wide = __builtin_convertvector(raw, Words) << 16;
  Floats v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline void store(at::BFloat16* p, Floats v) {
  Words bits;
  std::memcpy(&bits, &v, sizeof bits);
  bits += 0x7fffu + ((bits >> 16) & 1u);  // round to nearest, ties to even
  const Halves raw = __builtin_convertvector(bits >> 16, Halves);
  std::memcpy(p, &raw, sizeof raw);
}

inline float sum(Floats v) {
  float total = 0;
  for (int64_t i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

template <int N>
using Count = std::integral_constant<int, N>;

// Calls f with the count, 1 to 4, as a constant.
template <typename F>
void with_constant(int64_t count, const F& f) {
  static_assert(kRowTile == 4 && kRankTile == 4);
  switch (count) {
    case 4: return f(Count<4>{});
    case 3: return f(Count<3>{});
    case 2: return f(Count<2>{});
    default: return f(Count<1>{});
  }
}

// The two products for one tile, on any processor. H is the type of the product in between.
template <typename T>
struct Tile {
  using H = float;

  // h[r][k] = scale * x[r] . a[k]
  template <int ROWS, int RANKS>
  static void dots(const T* const* x, const T* const* a, int64_t size, float scale, H* const* h) {
    Floats acc[ROWS][RANKS] = {};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      Floats av[RANKS];
      UNROLL for (int k = 0; k < RANKS; ++k) av[k] = load(a[k] + i);
      UNROLL for (int r = 0; r < ROWS; ++r) {
        const Floats xv = load(x[r] + i);
        UNROLL for (int k = 0; k < RANKS; ++k) acc[r][k] += xv * av[k];
      }
    }
    UNROLL for (int r = 0; r < ROWS; ++r) {
      UNROLL for (int k = 0; k < RANKS; ++k) {
        float dot = sum(acc[r][k]);
        for (int64_t j = i; j < size; ++j) dot += float(x[r][j]) * float(a[k][j]);
        h[r][k] = dot * scale;
      }
    }
  }

  // y[r][o] += h[r] . b[:, o]; the rank rows of b are ldb apart
  static void expand(const H* const* h, int64_t rows, int64_t rank, const T* b, int64_t ldb,
                     T* const* y, int64_t outs) {
    for (int64_t r = 0; r < rows; r += kRowTile) {
      with_constant(std::min<int64_t>(kRowTile, rows - r), [&](auto n) {
        expand_tile<n()>(h + r, rank, b, ldb, y + r, outs);
      });
    }
  }

 private:
  template <int ROWS>
  static void expand_tile(const H* const* h, int64_t rank, const T* b, int64_t ldb, T* const* y,
                          int64_t outs) {
    int64_t o = 0;
    for (; o + 4 * kLanes <= outs; o += 4 * kLanes) block<ROWS, 4>(h, rank, b, ldb, y, o);
    for (; o + kLanes <= outs; o += kLanes) block<ROWS, 1>(h, rank, b, ldb, y, o);
    for (; o < outs; ++o) {
      for (int r = 0; r < ROWS; ++r) {
        float delta = 0;
        for (int64_t k = 0; k < rank; ++k) delta += h[r][k] * float(b[k * ldb + o]);
        y[r][o] = T(float(y[r][o]) + delta);
      }
    }
  }

  template <int ROWS, int VECS>
  static void block(const H* const* h, int64_t rank, const T* b, int64_t ldb, T* const* y,
                    int64_t o) {
    Floats acc[ROWS][VECS] = {};
    for (int64_t k = 0; k < rank; ++k) {
      Floats bv[VECS];
      UNROLL for (int v = 0; v < VECS; ++v) bv[v] = load(b + k * ldb + o + v * kLanes);
      UNROLL for (int r = 0; r < ROWS; ++r)
        UNROLL for (int v = 0; v < VECS; ++v) acc[r][v] += h[r][k] * bv[v];
    }
    UNROLL for (int r = 0; r < ROWS; ++r)
      UNROLL for (int v = 0; v < VECS; ++v)
        store(y[r] + o + v * kLanes, load(y[r] + o + v * kLanes) + acc[r][v]);
  }
};

#ifdef __AVX512BF16__
// The sums of sixteen vectors, one a lane.
inline __m512 sums(const __m512* v) {
  __m512 pair[8], quad[4], half[2];
  for (int i = 0; i < 8; ++i)
    pair[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                            _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pair[2 * i]), b = _mm512_castps_pd(pair[2 * i + 1]);
    quad[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                            _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto across = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  for (int i = 0; i < 2; ++i) half[i] = across(quad[2 * i], quad[2 * i + 1]);
  return across(half[0], half[1]);
}

template <>
struct Tile<at::BFloat16> {
  using T = at::BFloat16;
  using H = at::BFloat16;  // what the processor multiplies

  template <int ROWS, int RANKS>
  static void dots(const T* const* x, const T* const* a, int64_t size, float scale, H* const* h) {
    __m512 acc[ROWS][RANKS];
    UNROLL for (int r = 0; r < ROWS; ++r)
      UNROLL for (int k = 0; k < RANKS; ++k) acc[r][k] = _mm512_setzero_ps();
    const auto step = [&](int64_t i, __mmask32 mask) __attribute__((always_inline)) {
      __m512bh av[RANKS];
      UNROLL for (int k = 0; k < RANKS; ++k)
        av[k] = (__m512bh)_mm512_maskz_loadu_epi16(mask, a[k] + i);
      UNROLL for (int r = 0; r < ROWS; ++r) {
        const __m512bh xv = (__m512bh)_mm512_maskz_loadu_epi16(mask, x[r] + i);
        UNROLL for (int k = 0; k < RANKS; ++k) acc[r][k] = _mm512_dpbf16_ps(acc[r][k], xv, av[k]);
      }
    };
    int64_t i = 0;
    for (; i + 32 <= size; i += 32) step(i, ~0u);
    if (i < size) step(i, upto(size - i));
    // Another array: one whose address is taken would live in memory during the loop.
    __m512 done[kRowTile * kRankTile] = {};
    UNROLL for (int r = 0; r < ROWS; ++r)
      UNROLL for (int k = 0; k < RANKS; ++k) done[r * kRankTile + k] = acc[r][k];
    const __m512 all = _mm512_mul_ps(sums(done), _mm512_set1_ps(scale));
    H narrow[kRowTile][kRankTile];
    _mm256_storeu_si256((__m256i*)narrow, (__m256i)_mm512_cvtneps_pbh(all));
    for (int r = 0; r < ROWS; ++r) std::memcpy(h[r], narrow[r], RANKS * sizeof(H));
  }

  static void expand(const H* const* h, int64_t rows, int64_t rank, const T* b, int64_t ldb,
                     T* const* y, int64_t outs) {
    for (int64_t o = 0; o < outs; o += kBlock) {
      Strip strip{b + o, ldb, rank, std::min(kBlock, outs - o)};
      for (int64_t r = 0; r < rows; ++r) {
        // The next block's part of y: two cache lines a row, which no processor foresees.
        __builtin_prefetch(y[r] + o + kBlock, 1);
        __builtin_prefetch(y[r] + o + kBlock + 32, 1);
      }
      if (rows > kRowTile) {
        alignas(64) static thread_local uint16_t packed[kMostRank * kBlock];
        strip.pack(packed);
        expand(h, rows, rank, Packed{packed}, strip, y, o);
      } else {
        for (int64_t k = 0; k < rank; ++k) {
          __builtin_prefetch(b + k * ldb + o + kBlock);
          __builtin_prefetch(b + k * ldb + o + kBlock + 32);
        }
        expand(h, rows, rank, strip, strip, y, o);
      }
    }
  }

 private:
  static __mmask32 upto(int64_t left) { return left >= 32 ? ~0u : (1u << left) - 1; }

  static constexpr int64_t kBlock = 64;  // outputs in registers: two vectors
  // Two rank rows of b, interleaved: the low and the high halves of each 128-bit lane.
  struct Pair {
    __m512i low, high;
  };

  // Some columns of b, as they lie in memory.
  struct Strip {
    const T* b;
    int64_t ldb, rank, outs;

    __mmask32 mask(int64_t v) const { return outs > 32 * v ? upto(outs - 32 * v) : 0; }
    [[gnu::always_inline]] Pair pair(int64_t k, int64_t v) const {
      const T* const row = b + 2 * k * ldb + 32 * v;
      const __m512i even = _mm512_maskz_loadu_epi16(mask(v), row);
      const __m512i odd = 2 * k + 1 < rank ? _mm512_maskz_loadu_epi16(mask(v), row + ldb)
                                           : _mm512_setzero_si512();
      return {_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)};
    }
    void pack(uint16_t* to) const {
      for (int64_t k = 0; 2 * k < rank; ++k) {
        for (int64_t v = 0; v < 2; ++v, to += 64) {
          const Pair both = pair(k, v);
          _mm512_store_si512(to, both.low);
          _mm512_store_si512(to + 32, both.high);
        }
      }
    }
  };

  // The same, in the order of use: for when several tiles of rows read it.
  struct Packed {
    const uint16_t* b;
    [[gnu::always_inline]] Pair pair(int64_t k, int64_t v) const {
      const uint16_t* const at = b + (2 * k + v) * 64;
      return {_mm512_load_si512(at), _mm512_load_si512(at + 32)};
    }
  };

  template <typename B>
  static void expand(const H* const* h, int64_t rows, int64_t rank, const B& b, const Strip& strip,
                     T* const* y, int64_t o) {
    for (int64_t r = 0; r < rows; r += kRowTile) {
      with_constant(std::min<int64_t>(kRowTile, rows - r), [&](auto n) {
        block<n()>(h + r, rank, b, strip, y + r, o);
      });
    }
  }

  template <int ROWS, typename B>
  static void block(const H* const* h, int64_t rank, const B& b, const Strip& strip, T* const* y,
                    int64_t o) {
    __m512 low[ROWS][2], high[ROWS][2];
    UNROLL for (int r = 0; r < ROWS; ++r)
      UNROLL for (int v = 0; v < 2; ++v) low[r][v] = high[r][v] = _mm512_setzero_ps();
    for (int64_t k = 0; 2 * k < rank; ++k) {
      const Pair b0 = b.pair(k, 0), b1 = b.pair(k, 1);
      UNROLL for (int r = 0; r < ROWS; ++r) {
        int32_t both;
        std::memcpy(&both, h[r] + 2 * k, sizeof both);
        const __m512bh hv = (__m512bh)_mm512_set1_epi32(both);
        low[r][0] = _mm512_dpbf16_ps(low[r][0], (__m512bh)b0.low, hv);
        high[r][0] = _mm512_dpbf16_ps(high[r][0], (__m512bh)b0.high, hv);
        low[r][1] = _mm512_dpbf16_ps(low[r][1], (__m512bh)b1.low, hv);
        high[r][1] = _mm512_dpbf16_ps(high[r][1], (__m512bh)b1.high, hv);
      }
    }
    UNROLL for (int r = 0; r < ROWS; ++r)
      UNROLL for (int v = 0; v < 2; ++v)
        add(y[r] + o + 32 * v, low[r][v], high[r][v], strip.mask(v));
  }

  // y is split into the same halves, and joined again.
  static void add(T* y, __m512 low, __m512 high, __mmask32 mask) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i old = _mm512_maskz_loadu_epi16(mask, y);
    const __m512 l = _mm512_add_ps(low, _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, old)));
    const __m512 h = _mm512_add_ps(high, _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, old)));
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(h, l);
    _mm512_mask_storeu_epi16(y, mask, _mm512_permutexvar_epi16(joined(), halves));
  }

  static __m512i joined() {
    alignas(64) static constexpr uint16_t order[32] = {
        0, 1, 2,  3,  16, 17, 18, 19, 4,  5,  6,  7,  20, 21, 22, 23,
        8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
    return _mm512_load_si512(order);
  }
};
#endif

// The batch, as deployments/engines/lora_cpu.py packs it: [groups, slots.., starts.. (one more), rows..].
struct Batch {
  explicit Batch(const at::Tensor& packed) {
    const int32_t* p = packed.const_data_ptr<int32_t>();
    groups = p[0];
    slots = p + 1;
    starts = slots + groups;
    rows = starts + groups + 1;
  }
  int64_t size() const { return starts[groups]; }

  int64_t groups;
  const int32_t* slots;
  const int32_t* starts;
  const int32_t* rows;
};

// One slice of a layer: where its weights lie, and its columns of y and of h.
template <typename T>
struct Slice {
  const T* a;
  const T* b;
  int64_t a_slot, a_rank;  // strides
  int64_t b_slot, b_rank;
  int64_t out;
  int64_t y_offset, h_offset;
};

template <typename T>
struct Item {
  const Slice<T>* slice;
  int64_t slot, rank;
  int64_t first, last;  // rows, counted within the batch's list
  int64_t from, to;     // rank rows, or outputs
};

template <typename T>
class Layer {
 public:
  using H = typename Tile<T>::H;

  Layer(const at::Tensor& y, const at::Tensor& x, at::TensorList a, at::TensorList b,
        const Batch& batch, const at::Tensor& ranks, double scale)
      : batch_(batch),
        x_(x.const_data_ptr<T>()),
        y_(y.mutable_data_ptr<T>()),
        ldx_(x.stride(0)),
        ldy_(y.stride(0)),
        in_(x.size(1)),
        scale_(float(scale)) {
    int64_t y_offset = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      slices_.push_back({a[i].const_data_ptr<T>(), b[i].const_data_ptr<T>(), a[i].stride(0),
                         a[i].stride(2), b[i].stride(0), b[i].stride(3), b[i].size(2), y_offset,
                         h_width_});
      y_offset += b[i].size(2);
      h_width_ += a[i].size(2) + a[i].size(2) % 2;  // pairs
    }
    split(ranks.const_data_ptr<int32_t>());
  }

  void run() {
    if (shrinks_.empty()) return;
    thread_local std::vector<H> buffer;
    buffer.resize(size_t(batch_.size() * h_width_));
    h_ = buffer.data();
    each(shrinks_, [this](const Item<T>& item) { shrink(item); });
    each(expands_, [this](const Item<T>& item) { expand(item); });
  }

 private:
  // Rows outside, slices inside: what a thread does next finds the same x in its cache.
  void split(const int32_t* ranks) {
    for (int64_t g = 0; g < batch_.groups; ++g) {
      const int64_t slot = batch_.slots[g], end = batch_.starts[g + 1];
      for (int64_t r = batch_.starts[g]; r < end; r += kRowChunk) {
        const int64_t last = std::min(r + kRowChunk, end);
        for (size_t s = 0; s < slices_.size(); ++s) {
          const Slice<T>* slice = &slices_[s];
          const int64_t rank = ranks[size_t(slot) * slices_.size() + s];
          if (!rank) continue;
          const int64_t chunk = last - r > kRowTile ? rank : kRankChunk;
          for (int64_t k = 0; k < rank; k += chunk)
            shrinks_.push_back({slice, slot, rank, r, last, k, std::min(k + chunk, rank)});
          for (int64_t o = 0; o < slice->out; o += kOutChunk)
            expands_.push_back({slice, slot, rank, r, last, o, std::min(o + kOutChunk, slice->out)});
        }
      }
    }
  }

  template <typename F>
  static void each(const std::vector<Item<T>>& items, const F& run) {
    at::parallel_for(0, int64_t(items.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) run(items[size_t(i)]);
    });
  }

  void shrink(const Item<T>& item) const {
    const Slice<T>& slice = *item.slice;
    const T* const a0 = slice.a + item.slot * slice.a_slot;
    for (int64_t k = item.from; k < item.to; k += kRankTile) {
      const int64_t ranks = std::min<int64_t>(kRankTile, item.to - k);
      const T* a[kRankTile];
      for (int64_t i = 0; i < ranks; ++i) a[i] = a0 + (k + i) * slice.a_rank;
      for (int64_t r = item.first; r < item.last; r += kRowTile) {
        const int64_t rows = std::min<int64_t>(kRowTile, item.last - r);
        const T* x[kRowTile];
        H* h[kRowTile];
        for (int64_t i = 0; i < rows; ++i) {
          x[i] = x_ + batch_.rows[r + i] * ldx_;
          h[i] = h_row(slice, r + i) + k;
          if (ranks % 2) h[i][ranks] = H(0);  // the other half of the last pair
        }
        with_constant(rows, [&](auto n) {
          with_constant(ranks, [&](auto m) {
            Tile<T>::template dots<n(), m()>(x, a, in_, scale_, h);
          });
        });
      }
    }
  }

  void expand(const Item<T>& item) const {
    const Slice<T>& slice = *item.slice;
    const H* h[kRowChunk];
    T* y[kRowChunk];
    for (int64_t r = item.first; r < item.last; ++r) {
      h[r - item.first] = h_row(slice, r);
      y[r - item.first] = y_ + batch_.rows[r] * ldy_ + slice.y_offset + item.from;
    }
    Tile<T>::expand(h, item.last - item.first, item.rank,
                    slice.b + item.slot * slice.b_slot + item.from, slice.b_rank, y,
                    item.to - item.from);
  }

  H* h_row(const Slice<T>& slice, int64_t r) const { return h_ + r * h_width_ + slice.h_offset; }

  const Batch& batch_;
  const T* x_;
  T* y_;
  int64_t ldx_, ldy_, in_;
  float scale_;
  std::vector<Slice<T>> slices_;
  std::vector<Item<T>> shrinks_, expands_;
  int64_t h_width_ = 0;
  H* h_ = nullptr;
};

// The ranks of each layer's slots, (slots, slices), by the address of the layer's first A.
std::unordered_map<const void*, at::Tensor>& rank_table() {
  static std::unordered_map<const void*, at::Tensor> table;
  return table;
}

void set_ranks(const at::Tensor& first_a, const at::Tensor& ranks) {
  TORCH_CHECK(ranks.scalar_type() == at::kInt && ranks.is_contiguous());
  rank_table().insert_or_assign(first_a.const_data_ptr(), ranks);
}

// Whether an adapter of the batch has weights for this layer.
bool any_rank(const Batch& batch, const at::Tensor& ranks) {
  const int32_t* r = ranks.const_data_ptr<int32_t>();
  const int64_t slices = ranks.size(1);
  return std::any_of(batch.slots, batch.slots + batch.groups, [&](int64_t slot) {
    return std::any_of(r + slot * slices, r + (slot + 1) * slices, [](int32_t n) { return n; });
  });
}

void check(const at::Tensor& y, const at::Tensor& x, at::TensorList a, at::TensorList b,
           const Batch& batch, const at::Tensor& ranks) {
  int64_t outs = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    TORCH_CHECK(a[i].stride(3) == 1 && b[i].stride(2) == 1,
                "A must be stored as (slots, 1, rank, in), B as (slots, 1, rank, out)");
    TORCH_CHECK(a[i].scalar_type() == x.scalar_type() && b[i].scalar_type() == x.scalar_type());
    TORCH_CHECK(a[i].size(2) <= kMostRank && b[i].size(3) == a[i].size(2));
    outs += b[i].size(2);
  }
  TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.stride(1) == 1 && y.stride(1) == 1);
  TORCH_CHECK(y.scalar_type() == x.scalar_type());
  TORCH_CHECK(x.size(1) == a[0].size(3) && outs <= y.size(1));
  TORCH_CHECK(ranks.size(1) == int64_t(a.size()));
  TORCH_CHECK(y.size(0) >= x.size(0));
  const int32_t* const in_use = ranks.const_data_ptr<int32_t>();
  for (int64_t g = 0; g < batch.groups; ++g) {
    // Rows are sorted within a group.
    TORCH_CHECK(batch.rows[batch.starts[g + 1] - 1] < x.size(0), "more rows mapped than given");
    TORCH_CHECK(batch.slots[g] < ranks.size(0));
    for (int64_t s = 0; s < ranks.size(1); ++s)
      TORCH_CHECK(in_use[batch.slots[g] * ranks.size(1) + s] <= a[size_t(s)].size(2));
  }
}

void lora_linear(at::Tensor y, const at::Tensor& x, at::TensorList a, at::TensorList b,
                 const at::Tensor& batch, double scale) {
  const Batch rows(batch);
  if (!rows.groups) return;
  const auto found = rank_table().find(a[0].const_data_ptr());
  TORCH_CHECK(found != rank_table().end(), "a layer whose ranks were never set");
  const at::Tensor& ranks = found->second;
  if (!any_rank(rows, ranks)) return;
  check(y, x, a, b, rows, ranks);
  if (x.scalar_type() == at::kBFloat16)
    return Layer<at::BFloat16>(y, x, a, b, rows, ranks, scale).run();
  TORCH_CHECK(x.scalar_type() == at::kFloat, "bfloat16 and float32 only");
  Layer<float>(y, x, a, b, rows, ranks, scale).run();
}

}  // namespace

// The schemas are in deployments/engines/lora_cpu.py, which has an implementation without a compiler too.
TORCH_LIBRARY_IMPL(roundhouse, CPU, library) {
  library.impl("lora_linear", lora_linear);
  library.impl("set_ranks", set_ranks);
}
