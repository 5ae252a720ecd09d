// BatchNorm in training with PReLU and a shortcut, where no convolution takes it along.
//
// Two passes forward (statistics, output), two backward (sums, gradient). Nothing but the input is
// kept in between: what PReLU saw is computed again. All functions are deterministic for a number
// of threads: each has the same rows every time, and sums are put together in the threads' order.

#include "memory.h"
#include "norm.h"

namespace {

// Calls body(first, count) for each chunk of this thread's rows, backwards on demand: a second pass
// begins with what the first one has left in the cache.
template <typename Body>
void each_chunk(int64_t rows, bool backwards, Body body) {
    const auto [first, last] = share((rows + CHUNK - 1) / CHUNK);
    for (int64_t i = first; i < last; ++i) {
        const int64_t row = CHUNK * (backwards ? first + last - 1 - i : i);
        body(row, std::min(CHUNK, rows - row));
    }
}

// Writes an image that is not read again soon: make(place, rows, to) makes each chunk of it.
template <typename Make>
void write_each_chunk(const Norm& n, float* image, Make make) {
#pragma omp parallel
    {
        const Buffer room(CHUNK * n.channels);
        each_chunk(n.rows, true, [&](int64_t row, int64_t count) {
            const int64_t at = row * n.channels;
            make(at, count, room.data());
            write_out(room.data(), count * n.channels, image + at);
        });
    }
}

}  // namespace

extern "C" {

void norm_statistics(const Norm* n, const float* x) {
    Parts<Moments> parts;
#pragma omp parallel
    {
        Moments mine(n->channels);
        each_chunk(n->rows, false, [&](int64_t row, int64_t count) {
            mine.add(x + row * n->channels, count);
        });
        parts.put(std::move(mine));
    }
    set_statistics(*n, parts.sum(Moments(n->channels)));
}

void norm_apply(const Norm* n, const float* x, const float* shortcut, float* y) {
    const Activation forward(*n);
    write_each_chunk(*n, y, [&](int64_t at, int64_t count, float* to) {
        forward.apply(x + at, count, shortcut ? shortcut + at : nullptr, to);
    });
}

void norm_sums(const Norm* n, const float* x, const float* gradient) {
    const Activation forward(*n);
    Parts<Sums> parts;
#pragma omp parallel
    {
        Sums mine(n->channels);
        each_chunk(n->rows, false, [&](int64_t row, int64_t count) {
            const int64_t at = row * n->channels;
            mine.add(forward, x + at, gradient + at, count);
        });
        parts.put(std::move(mine));
    }
    parts.sum(Sums(n->channels)).write(n->totals);
}

void norm_derivative(const Norm* n, const float* x, const float* gradient, float* to_x) {
    const Derivative derivative(*n);
    write_each_chunk(*n, to_x, [&](int64_t at, int64_t count, float* to) {
        derivative.apply(x + at, gradient + at, count, to);
    });
}
}
