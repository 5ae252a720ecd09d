// The margin softmax over drawn class centres, and their step of SGD, a tile of rows at a time.
//
// All that is done with a tile happens while it lies in the cache of one core, so memory is read
// and written as seldom as the algorithm allows: a drawn weight twice, its momentum once, both
// written once. The rows of the next tile are fetched while products of this one keep the core busy.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include <omp.h>

#include "rows.h"
#include "tiles.h"

namespace {

const float LEFT_OUT = -1e4f;  // logit of a class that does not count; its exponential is 0
const float FILTERED = 1e-30f;  // logit that was above the limit: 0, but told apart

// Notes the own cosines of a tile, and leaves those logits out of what follows.
void take_out_own(const Head& head, const Tile& tile, float* logits) {
    for (int64_t own = tile.first; own < tile.last; own++) {
        const int64_t sample = head.own_sample[own];
        float* logit = logits + (head.own_row[own] - tile.start) * head.samples + sample;
        head.own_cosine[sample] = *logit / head.scale;
        *logit = LEFT_OUT;
    }
}

// scale * cosine of each row of a tile and each sample, but of no sample's own class; (count,
// samples).
void find_logits(const Head& head, const Tile& tile, const Packed& by_dim, Room& room,
                 float* logits, Ahead& ahead) {
    by_dim.multiply(tile.count, room.weight, room.stride, logits, false, ahead);
    for (int i = 0; i < tile.count; i++) {
        float* line = logits + size_t(i) * head.samples;
        const float factor = head.scale * room.inverse_norm[i];
#pragma omp simd
        for (int b = 0; b < head.samples; b++) line[b] *= factor;
    }
    take_out_own(head, tile, logits);
    if (std::isinf(head.limit)) return;
#pragma omp simd
    for (int64_t k = 0; k < int64_t(tile.count) * head.samples; k++)
        logits[k] = logits[k] > head.limit ? FILTERED : logits[k];
}

bool is_kept(const Head& head, const Tile& tile) { return tile.start + tile.count <= head.num_kept; }

float* logits_of(const Head& head, const Tile& tile, Room& room) {
    return is_kept(head, tile) ? head.logits + tile.start * head.samples : room.logits;
}

// Adds a tile to the running maximum and sum of each sample.
void add_exponentials(const Head& head, const Tile& tile, const float* logits, Room& room,
                      float* maximum, float* sum) {
    const int samples = head.samples;
    float* before = room.before;
    std::copy(maximum, maximum + samples, before);
    for (int i = 0; i < tile.count; i++) {
        const float* line = logits + size_t(i) * samples;
#pragma omp simd
        for (int b = 0; b < samples; b++) maximum[b] = std::max(maximum[b], line[b]);
    }
#pragma omp simd
    for (int b = 0; b < samples; b++) sum[b] *= exponential(before[b] - maximum[b]);
    for (int i = 0; i < tile.count; i++) {
        const float* line = logits + size_t(i) * samples;
#pragma omp simd
        for (int b = 0; b < samples; b++) sum[b] += exponential(line[b] - maximum[b]);
    }
}

template <class Format>
void forward(const Head& head) {
    const Packed by_dim(head.dim, head.samples, Left<true>{head.batch, head.dim});
#pragma omp parallel num_threads(head.threads)
    {
        Room room(head, omp_get_thread_num());
        float* maximum = head.maximum + size_t(omp_get_thread_num()) * head.samples;
        float* sum = head.sum + size_t(omp_get_thread_num()) * head.samples;
        Ahead ahead;
        each_tile(head, [&](const Tile& tile) {
            float* logits = logits_of(head, tile, room);
            ahead.begin(asks_of(tile.count, head.samples, head.dim));
            want_next<Format>(head, tile, 1, ahead);
            read_weights<Format>(head, tile, 1, room);
            find_logits(head, tile, by_dim, room, logits, ahead);
            add_exponentials(head, tile, logits, room, maximum, sum);
        });
    }
}

// Turns the logits of a row into probabilities times `factor`, and what was above the limit into 0;
// returns the sum of logit times probability. Not inline: beside other loops over the row, gcc makes
// it four times as slow.
template <bool filtered>
[[gnu::noinline]] float find_probabilities(float* line, const float* log_sum, int samples, float factor) {
    float radial = 0;
#pragma omp simd reduction(+ : radial)
    for (int b = 0; b < samples; b++) {
        const float found = exponential(line[b] - log_sum[b]);
        const float probability = filtered && line[b] == FILTERED ? 0 : found;
        radial += probability * line[b];
        line[b] = probability * factor;
    }
    return radial;
}

// Turns the logits of a tile into gradients of its weights' products with the batch, and finds
// what the rows' own weights add to their gradients: decay, less what would only change a length.
void find_gradients(const Head& head, const Tile& tile, float* logits, Room& room) {
    int64_t own = tile.first;
    for (int i = 0; i < tile.count; i++) {
        float* line = logits + size_t(i) * head.samples;
        const float inverse_norm = room.inverse_norm[i], factor = head.factor * inverse_norm;
        const auto find = std::isinf(head.limit) ? find_probabilities<false> : find_probabilities<true>;
        float radial = find(line, head.log_sum, head.samples, factor);
        for (; own < tile.last && head.own_row[own] == tile.start + i; own++) {
            const int64_t sample = head.own_sample[own];
            radial += head.to_own[sample] * head.scale * head.own_cosine[sample];
            line[sample] = head.to_own[sample] * factor;
        }
        room.decay[i] = head.weight_decay
                        - radial * head.factor / head.scale * inverse_norm * inverse_norm;
    }
}

float* shared_velocity(const Head& head, const Tile& tile) {
    return head.velocity + (tile.start - head.first) * head.dim;
}

// The new momentum of row i of a tile, by torch.optim.SGD's rule: `step` holds what the batch adds.
template <class Format>
void find_velocity(const Head& head, const Tile& tile, int i, const Room& room, float* step) {
    const auto* row = stored_row<Format>(head, tile.start + i);
    const bool remembers = head.parts == 2;
    // Without momentum the weight stands in for it, times 0.
    const auto* before = remembers ? row + head.width : row;
    const float scale = remembers ? Format::scale_of(before, head.dim) : 1;
    const float momentum = remembers ? head.momentum : 0, decay = room.decay[i];
    const float* weight = room.weight_of(i);
#pragma omp simd
    for (int k = 0; k < head.dim; k++)
        step[k] += momentum * Format::get(before[k], scale) + decay * weight[k];
}

// Moves row i of a tile by its new momentum, and stores both.
template <class Format>
void learn(const Head& head, const Tile& tile, int i, Room& room, const float* velocity) {
    const int64_t place = tile.start + i;
    auto* row = stored_row<Format>(head, place);
    float* weight = room.weight_of(i);
    const float lr = head.lr;
#pragma omp simd
    for (int k = 0; k < head.dim; k++) weight[k] -= lr * velocity[k];
    const Key key = head.key.child(head.first_class + (head.rows ? head.rows[place] : place));
    write_row<Format>(weight, row, head.dim, key, 0);
    if (head.parts == 2) write_row<Format>(velocity, row + head.width, head.dim, key, head.dim);
}

template <class Format>
void backward(const Head& head) {
    std::optional<Packed> by_dim;  // for logits that were not kept
    if (head.num_kept < head.last)
        by_dim.emplace(head.dim, head.samples, Left<true>{head.batch, head.dim});
    const Packed by_sample(head.samples, head.dim, Left<false>{head.batch, head.dim});
#pragma omp parallel num_threads(head.threads)
    {
        Room room(head, omp_get_thread_num());
        Ahead ahead;
        float* gradient = head.gradient + size_t(omp_get_thread_num()) * head.samples * head.dim;
        each_tile(head, [&](const Tile& tile) {
            float* logits = logits_of(head, tile, room);
            ahead.begin(asks_of(head.samples, head.dim, tile.count)
                        + asks_of(tile.count, head.dim, head.samples));
            want_next<Format>(head, tile, head.parts, ahead);
            read_weights<Format>(head, tile, head.parts, room);
            if (!is_kept(head, tile)) find_logits(head, tile, *by_dim, room, logits, ahead);
            find_gradients(head, tile, logits, room);
            product(head.samples, head.dim, tile.count, Left<true>{logits, head.samples},
                    room.weight, room.stride, BLOCK_COLUMNS, gradient, true, ahead);
            if (head.lr == 0) return;
            float* step = head.velocity ? shared_velocity(head, tile) : room.step;
            by_sample.multiply(tile.count, logits, head.samples, step, false, ahead);
            for (int i = 0; i < tile.count; i++, step += head.dim) {
                find_velocity<Format>(head, tile, i, room, step);
                if (!head.velocity) learn<Format>(head, tile, i, room, step);
            }
        });
    }
}

// Moves rows by a momentum that copies of the shard have summed up.
template <class Format>
void move(const Head& head) {
#pragma omp parallel num_threads(head.threads)
    {
        Room room(head, omp_get_thread_num());
        each_tile(head, [&](const Tile& tile) {
            read_weights<Format>(head, tile, head.parts, room);
            const float* velocity = shared_velocity(head, tile);
            for (int i = 0; i < tile.count; i++, velocity += head.dim)
                learn<Format>(head, tile, i, room, velocity);
        });
    }
}

// Calls call(format) with the format of the rows.
template <class Call>
void by_format(const Head& head, Call call) {
    if (head.format == 0) call(Float32());
    if (head.format == 1) call(BFloat16());
    if (head.format == 2) call(EightBits());
}

}  // namespace

// Floats of room that a thread needs.
extern "C" int64_t head_room(const Head* head) { return Room::size(*head); }

extern "C" void head_forward(const Head* head) {
    by_format(*head, [&](auto format) { forward<decltype(format)>(*head); });
}

extern "C" void head_backward(const Head* head) {
    by_format(*head, [&](auto format) { backward<decltype(format)>(*head); });
}

extern "C" void head_move(const Head* head) {
    by_format(*head, [&](auto format) { move<decltype(format)>(*head); });
}

// Start values: the first `dim` numbers of N(0, deviation) of each class's key; (count, dim).
extern "C" void head_start(uint32_t low, uint32_t high, const int64_t* classes, int64_t count,
                           int32_t dim, float deviation, float* to, int32_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        const Key own = Key{low, high}.child(classes[i]);
        float *row = to + i * dim, last;
#pragma omp simd
        for (int pair = 0; pair < dim / 2; pair++) {
            float first, second;
            normal_pair(own, pair, first, second);
            row[2 * pair] = first * deviation;
            row[2 * pair + 1] = second * deviation;
        }
        if (dim % 2) {
            normal_pair(own, dim / 2, row[dim - 1], last);
            row[dim - 1] *= deviation;
        }
    }
}

// Where a permutation, or its inverse, sends each of `count` places.
extern "C" void head_permute(const Permutation* permutation, const int64_t* from, int64_t* to,
                             int64_t count, int32_t inverse, int32_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i++)
        to[i] = inverse ? permutation->invert(from[i]) : permutation->apply(from[i]);
}
