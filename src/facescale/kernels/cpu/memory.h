// Memory: room for one call of a kernel, what is fetched before it is wanted, what is written for
// later.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// Floats that begin with a cache line; what they are is left open.
class Buffer {
  public:
    explicit Buffer(int64_t count)
        : floats(static_cast<float*>(std::aligned_alloc(64, (count + 16) / 16 * 64))) {
        if (!floats) throw std::bad_alloc();
    }

    float* data() const { return floats.get(); }

  private:
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Free> floats;
};

// Memory that is wanted soon, asked for a few lines at a time, evenly over the work until then:
// memory that is asked for at once is waited for.
class Ahead {
  public:
    // Forgets what was wanted before; `ask` will be called `num_asks` times.
    void begin(int64_t num_asks) {
        wanted.clear();
        next = 0;
        lines = 0;
        asks = std::max<int64_t>(num_asks, 1);
    }

    template <typename Number>
    void want(const Number* from, int64_t count) {
        if (count <= 0) return;
        const char* first = reinterpret_cast<const char*>(from);
        wanted.push_back({first, first + count * sizeof(Number)});
        lines += count * sizeof(Number) / LINE + 1;
        portion = (lines + asks - 1) / asks;
    }

    void ask() {
        for (int64_t i = 0; i < portion && next < wanted.size(); ++i) {
            Range& range = wanted[next];
            __builtin_prefetch(range.at, 0, 2);
            range.at += LINE;
            next += range.at >= range.end;
        }
    }

  private:
    static constexpr int64_t LINE = 64;  // bytes

    struct Range {
        const char *at, *end;
    };
    std::vector<Range> wanted;
    size_t next = 0;
    int64_t lines = 0, asks = 1, portion = 0;
};

// Copies floats out of the cache, not into it: memory that will be read much later, if it were
// written as usual, would be fetched first.
inline void write_out(const float* from, int64_t count, float* to) {
    int64_t i = 0;
#if defined(__AVX512F__)
    if (reinterpret_cast<uintptr_t>(to) % 64 == 0)
        for (; i + 16 <= count; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
    _mm_sfence();
#endif
    std::copy(from + i, from + count, to + i);
}

}  // namespace
