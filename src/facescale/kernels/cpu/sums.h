// Sums over the rows of an image, by channel: in steps that a compiler makes vectors of, in float32
// for a while and in float64 for good, thread by thread.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

constexpr int64_t CHUNK = 128;  // rows whose sums are taken in float32; above that in float64
constexpr int64_t UNROLL = 4;   // rows a step, for which what belongs to a channel is read once

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// Calls body(place of a row, number of rows as a constant) until all rows are done.
template <typename Body>
void each_step(int64_t rows, int64_t channels, Body body) {
    int64_t row = 0;
    for (; row + UNROLL <= rows; row += UNROLL)
        body(row * channels, std::integral_constant<int, UNROLL>());
    for (; row < rows; ++row) body(row * channels, std::integral_constant<int, 1>());
}

// Calls body(place, channel) for every number of some rows, as vectors.
template <typename Body>
void each_number(int64_t rows, int64_t channels, Body body) {
    each_step(rows, channels, [=](int64_t at, auto unroll) {
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c)
            for (int r = 0; r < unroll; ++r) body(at + r * channels + c, c);
    });
}

// Gathers rows until there are CHUNK of them: calls add(first, count) with each part of `rows` that
// fits, and flush() after each CHUNK.
template <typename Add, typename Flush>
void by_chunks(int64_t rows, const int64_t& pending, Add add, Flush flush) {
    for (int64_t first = 0; first < rows;) {
        const int64_t count = std::min(rows - first, CHUNK - pending);
        add(first, count);
        if (pending == CHUNK) flush();
        first += count;
    }
}

// Sums of some rows in float32, of all of them in float64.
class Totals {
  public:
    explicit Totals(int64_t size = 0) : some(size), all(size) {}

    float* latest() { return some.data(); }

    void flush() {
        for (size_t i = 0; i < all.size(); ++i) all[i] += some[i];
        std::fill(some.begin(), some.end(), 0.f);
    }

    void add(Totals& other) {
        other.flush();
        for (size_t i = 0; i < other.all.size(); ++i) all[i] += other.all[i];
    }

    const Doubles& sums() const { return all; }

  private:
    Floats some;
    Doubles all;
};

// One part of a result from each thread, put together in their order.
template <typename Part>
class Parts {
  public:
    Parts() : parts(omp_get_max_threads()) {}

    void put(Part&& part) { parts[omp_get_thread_num()] = std::move(part); }

    Part sum(Part all) {
        for (Part& part : parts) all.add(part);
        return all;
    }

  private:
    std::vector<Part> parts;
};

// This thread's share of `count` things, in order.
inline std::pair<int64_t, int64_t> share(int64_t count) {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    return {count * thread / threads, count * (thread + 1) / threads};
}

}  // namespace
