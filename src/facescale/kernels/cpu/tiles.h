// Tiles of drawn class centres: which there are, the room of a core that works on them, and how
// their weights come into it.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <omp.h>

#include "product.h"
#include "rows.h"

namespace {

const float SMALLEST_NORM = 1e-12f;

}  // namespace

// As `Arguments` in facescale/head/walks/cpu.py.
struct Head {
    char* table;            // (classes, parts, width): weight, then momentum if there is one
    const int64_t* rows;    // of the drawn rows, sorted; or null: place i is row i
    const float* batch;     // (samples, dim), of unit length
    const int64_t* own_row;     // (num_own,), sorted: place of a sample's own class among the rows
    const int64_t* own_sample;  // (num_own,): which sample that is
    float* logits;          // (num_kept, samples): from the forward to the backward pass
    float* maximum;         // (threads, samples), which each thread raises
    float* sum;             // (threads, samples): of exp(logit - maximum), own classes left out
    float* own_cosine;      // (samples,): out of forward, into backward
    const float* log_sum;   // (samples,): of all logits of a sample
    const float* to_own;    // (samples,): gradient of a sample's own cosine
    float* gradient;        // (threads, samples, dim), which each thread adds to
    float* room;            // (threads, as `head_room` says)
    float* velocity;        // (last - first, dim), or null: momentum that copies of a shard sum up
    int64_t first, last;    // places of the drawn rows that this call walks
    int64_t num_kept, num_own, first_class;
    int32_t dim, samples, parts, width, format, tile, threads;
    Key key;                // of this step's rounding
    float scale, factor, lr, momentum, weight_decay;
    float limit;            // logits of other classes above it count as 0 and get no gradient
};

namespace {

// Floats up to the next start of a cache line.
int64_t whole_lines(int64_t count) { return (count + 15) / 16 * 16; }

// What one core works with, a part of `head.room`.
struct Room {
    int64_t stride;  // of the weights: rows a power of two apart would share a few lines of the cache
    float *weight, *step, *logits, *inverse_norm, *decay, *before;

    Room(const Head& head, int thread) : stride(stride_of(head)) {
        float* next = head.room + thread * size(head);
        const auto take = [&next](int64_t count) {
            float* part = next;
            next += whole_lines(count);
            return part;
        };
        weight = take(head.tile * stride);
        step = take(int64_t(head.tile) * head.dim);
        logits = take(int64_t(head.tile) * head.samples);
        inverse_norm = take(head.tile);
        decay = take(head.tile);
        before = take(head.samples);
    }

    float* weight_of(int i) const { return weight + i * stride; }

    static int64_t stride_of(const Head& head) { return whole_lines(head.dim) + 16; }

    // In floats.
    static int64_t size(const Head& head) {
        return whole_lines(head.tile * stride_of(head))
               + whole_lines(int64_t(head.tile) * head.dim) + whole_lines(int64_t(head.tile) * head.samples)
               + 2 * whole_lines(head.tile) + whole_lines(head.samples);
    }
};

// Rows [start, start + count) of the drawn ones; of the samples' own classes, [first, last).
struct Tile {
    int64_t start, stop;  // stop: where the rows of this core end
    int count;
    int64_t first, last;
};

// Calls work(tile) for each tile of this core's share, in order.
template <class Work>
void each_tile(const Head& head, Work work) {
    const int64_t tiles = (head.last - head.first + head.tile - 1) / head.tile;
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t begin = tiles * thread / threads, end = tiles * (thread + 1) / threads;
    const int64_t stop = std::min(head.first + end * head.tile, head.last);
    const int64_t* own_end = head.own_row + head.num_own;
    for (int64_t start = head.first + begin * head.tile; start < stop; start += head.tile) {
        const int count = int(std::min<int64_t>(head.tile, stop - start));
        const int64_t first = std::lower_bound(head.own_row, own_end, start) - head.own_row;
        const int64_t last = std::lower_bound(head.own_row, own_end, start + count) - head.own_row;
        work(Tile{start, stop, count, first, last});
    }
}

template <class Format>
typename Format::Stored* stored_row(const Head& head, int64_t place) {
    const int64_t row = head.rows ? head.rows[place] : place;
    return reinterpret_cast<typename Format::Stored*>(head.table) + row * head.parts * head.width;
}

// Wants the rows of the tile after this one, `parts` of each: rows apart in memory are too far for
// the processor to foresee.
template <class Format>
void want_next(const Head& head, const Tile& tile, int parts, Ahead& ahead) {
    const int64_t next = tile.start + tile.count;
    for (int64_t place = next; place < std::min(next + head.tile, tile.stop); place++)
        ahead.want(stored_row<Format>(head, place), int64_t(parts) * head.width);
}

// Weights of a tile and 1 / their lengths. Of the rows to come `parts` will be read.
template <class Format>
void read_weights(const Head& head, const Tile& tile, int parts, Room& room) {
    // The page of a row has to be looked up before the row can be fetched, which takes as long again.
    // Asked for all rows of a tile at once, the processor looks several up together. A row may
    // reach into a second page.
    const int64_t far = tile.start + 2 * head.tile;
    for (int64_t place = far; place < std::min(far + head.tile, tile.stop); place++) {
        const auto* row = stored_row<Format>(head, place);
        __builtin_prefetch(row, 0, 2);
        __builtin_prefetch(row + int64_t(parts) * head.width - 1, 0, 2);
    }
    for (int i = 0; i < tile.count; i++) {
        float* weight = room.weight_of(i);
        const auto* row = stored_row<Format>(head, tile.start + i);
        const float square = read_row<Format>(row, weight, head.dim);
        room.inverse_norm[i] = 1 / std::max(std::sqrt(square), SMALLEST_NORM);
    }
}

}  // namespace
