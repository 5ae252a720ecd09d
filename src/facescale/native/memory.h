// Memory: room for one call of a kernel, what is fetched before it is wanted, what is written for
// later.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// Floats that begin with a cache line; what they are is left open.
class Room {
  public:
    explicit Room(int64_t count)
        : floats(static_cast<float*>(std::aligned_alloc(64, (count + 15) / 16 * 64))) {}

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
    // Forgets what was wanted before; `ask` will be called `num_steps` times.
    void begin(int64_t num_steps) {
        next = wanted = 0;
        lines = 0;
        steps = std::max<int64_t>(num_steps, 1);
    }

    void want(const float* from, int64_t count) {
        if (count <= 0) return;
        ranges[wanted++] = {from, from + count};
        lines += count / LINE + 1;
        portion = (lines + steps - 1) / steps * LINE;
    }

    void ask() {
        if (next == wanted) return;
        Range& range = ranges[next];
        const float* end = range.at + portion;
        for (; range.at < end; range.at += LINE) __builtin_prefetch(range.at, 0, 2);
        next += range.at >= range.end;
    }

  private:
    static constexpr int64_t LINE = 16;  // floats

    struct Range {
        const float *at, *end;
    };
    std::array<Range, 5> ranges;
    int next = 0, wanted = 0;
    int64_t lines = 0, steps = 1, portion = 0;
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
