// 1x1 convolutions between two norms: float32, images as rows of channels.
//
// A tile of rows is normalised, multiplied and its statistics are taken while it lies in a core's
// cache; so an image is written once, before its norm, and what the norm makes of it is never
// stored. Deterministic for a number of threads.

#include "product.h"
#include "sides.h"

extern "C" {

// As `_Pointwise` in between.py.
struct Pointwise {
    int64_t rows, inputs, outputs;
};
}

namespace {

constexpr int64_t TILE = 32 * BLOCK_ROWS;

// Calls body(first, count, and what will follow) for each tile of this thread's rows.
template <typename Body>
void each_tile(int64_t rows, Body body) {
    const auto [first, last] = share((rows + TILE - 1) / TILE);
    for (int64_t i = first; i < last; ++i) {
        const int64_t row = i * TILE, next = row + TILE;
        body(row, std::min(TILE, rows - row), next, i + 1 < last ? std::min(TILE, rows - next) : 0);
    }
}

}  // namespace

extern "C" {

void pointwise_forward(const Pointwise* p, const Norm* before, const float* x, const float* weight,
                       const Norm* behind, float* z) {
    const Packed weights(p->inputs, p->outputs, Left<true>{weight, p->inputs});
    const Input input(before, x, p->inputs);
    Parts<Moments> parts;
#pragma omp parallel
    {
        const Buffer room(TILE * p->inputs);
        Moments mine(p->outputs);
        Ahead ahead;
        each_tile(p->rows, [&](int64_t first, int64_t count, int64_t next, int64_t following) {
            ahead.begin(asks_of(count, p->outputs, p->inputs));
            ahead.want(x + next * p->inputs, following * p->inputs);
            ahead.want(z + next * p->outputs, following * p->outputs);
            float* out = z + first * p->outputs;
            weights.multiply(count, input.rows(first, count, room.data()), p->inputs, out, false,
                             ahead);
            mine.add(out, count);
        });
        parts.put(std::move(mine));
    }
    set_statistics(*behind, parts.sum(Moments(p->outputs)));
}

// `shortcut`, if there is one, is a gradient that reached the input by another way.
void pointwise_backward(const Pointwise* p, const Norm* before, const float* x, const float* weight,
                        const Norm* behind, const float* z, const float* gradient,
                        const float* shortcut, float* to_x, float* to_weight) {
    const Packed weights(p->outputs, p->inputs, Left<false>{weight, p->inputs});
    const Input input(before, x, p->inputs);
    const Upstream upstream(behind, z, gradient, p->outputs);
    const int64_t size = p->outputs * p->inputs;
    const int threads = omp_get_max_threads();
    const Buffer to_weights(size * threads);
    std::fill_n(to_weights.data(), size * threads, 0.f);
    Parts<Sums> parts;
#pragma omp parallel
    {
        const Buffer inner(TILE * p->inputs), outer(TILE * p->outputs);
        float* mine = to_weights.data() + size * omp_get_thread_num();
        Sums sums(before ? p->inputs : 0);
        Ahead ahead;
        each_tile(p->rows, [&](int64_t first, int64_t count, int64_t next, int64_t following) {
            ahead.begin(asks_of(p->outputs, p->inputs, count)
                        + asks_of(count, p->inputs, p->outputs));
            ahead.want(x + next * p->inputs, following * p->inputs);
            ahead.want(z + next * p->outputs, following * p->outputs);
            ahead.want(gradient + next * p->outputs, following * p->outputs);
            ahead.want(to_x + next * p->inputs, following * p->inputs);
            if (shortcut) ahead.want(shortcut + next * p->inputs, following * p->inputs);
            const float* g = upstream.rows(first, count, outer.data());
            float* to = to_x + first * p->inputs;
            if (shortcut) std::copy_n(shortcut + first * p->inputs, count * p->inputs, to);
            const float* y = input.rows(first, count, inner.data());
            product(p->outputs, p->inputs, count, Left<true>{g, p->outputs}, y, p->inputs,
                    BLOCK_COLUMNS, mine, true, ahead);
            weights.multiply(count, g, p->outputs, to, shortcut, ahead);
            input.sum(first, count, to, sums);
        });
        parts.put(std::move(sums));
    }
    std::fill_n(to_weight, size, 0.f);
    for (int thread = 0; thread < threads; ++thread)
        for (int64_t i = 0; i < size; ++i) to_weight[i] += to_weights.data()[thread * size + i];
    if (before) parts.sum(Sums(p->inputs)).write(before->totals);
}
}
