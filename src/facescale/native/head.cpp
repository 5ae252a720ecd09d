// The margin softmax over drawn class centres, and their step of SGD, a tile of rows at a time.
//
// All that is done with a tile happens while it lies in the cache of one core, so memory is read
// and written as seldom as the algorithm allows: a drawn weight twice, its momentum once, both
// written once. Products are torch's own BLAS, which runs on one thread inside a parallel region.
// Matrices are row by row; BLAS wants columns, so it is asked for the transpose of each product.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include <omp.h>

#include "rows.h"

namespace {

using Sgemm = void (*)(const char*, const char*, const int*, const int*, const int*, const float*,
                       const float*, const int*, const float*, const int*, const float*, float*,
                       const int*);

const float LEFT_OUT = -1e4f;     // logit of a class that does not count; its exponential is 0
const float SMALLEST_NORM = 1e-12f;

}  // namespace

// As `Arguments` in facescale/head/compiled.py.
struct Head {
    Sgemm gemm;
    char* table;            // (classes, parts, width): weight, then momentum if there is one
    const int64_t* rows;    // (num_rows,), sorted; or null for all
    const float* batch;     // (samples, dim), of unit length
    const int64_t* own_row;     // (num_own,), sorted: place of a sample's own class among the rows
    const int64_t* own_sample;  // (num_own,): which sample that is
    float* logits;          // (num_kept, samples): from the forward to the backward pass
    float* maximum;         // out, (threads, samples)
    float* sum;             // out, (threads, samples): of exp(logit - maximum), own classes left out
    float* own_cosine;      // (samples,): out of forward, into backward
    const float* log_sum;   // (samples,): of all logits of a sample
    const float* to_own;    // (samples,): gradient of a sample's own cosine
    float* gradient;        // out, (threads, samples, dim)
    int64_t num_rows, num_kept, num_own, first_class;
    int32_t dim, samples, parts, width, format, tile, threads;
    uint32_t key;           // of this step's rounding
    float scale, factor, lr, momentum, weight_decay;
};

namespace {

// Numbers from the start of a cache line on: BLAS rounds alike then, wherever they are.
class Numbers {
  public:
    explicit Numbers(size_t count)
        : numbers(static_cast<float*>(std::aligned_alloc(LINE, (count * 4 / LINE + 1) * LINE))) {}
    ~Numbers() { std::free(numbers); }
    Numbers(const Numbers&) = delete;
    operator float*() { return numbers; }

  private:
    static constexpr size_t LINE = 64;
    float* numbers;
};

// What one core works with.
struct Room {
    Numbers weight, step, logits, inverse_norm, decay, before;

    explicit Room(const Head& head)
        : weight(size_t(head.tile) * head.dim), step(size_t(head.tile) * head.dim),
          logits(size_t(head.tile) * head.samples), inverse_norm(head.tile), decay(head.tile),
          before(head.samples) {}
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
    const int64_t tiles = (head.num_rows + head.tile - 1) / head.tile;
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t begin = tiles * thread / threads, end = tiles * (thread + 1) / threads;
    const int64_t stop = std::min(end * head.tile, head.num_rows);
    const int64_t* own_end = head.own_row + head.num_own;
    for (int64_t start = begin * head.tile; start < stop; start += head.tile) {
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

// Asks for a row that is needed a tile later: rows apart in memory are too far for the processor
// to foresee.
template <class Format>
void ask_for(const Head& head, int64_t place, int parts) {
    const char* row = reinterpret_cast<const char*>(stored_row<Format>(head, place));
    const size_t length = sizeof(typename Format::Stored) * parts * head.width;
    for (size_t byte = 0; byte < length; byte += 64) __builtin_prefetch(row + byte, 0, 2);
}

// Weights of a tile and 1 / their lengths.
template <class Format>
void read_weights(const Head& head, const Tile& tile, int parts, Room& room) {
    for (int i = 0; i < tile.count; i++) {
        const int64_t ahead = tile.start + i + head.tile;
        if (ahead < tile.stop) ask_for<Format>(head, ahead, parts);
        float* weight = room.weight + size_t(i) * head.dim;
        const auto* row = stored_row<Format>(head, tile.start + i);
        const float square = read_row<Format>(row, weight, head.dim);
        room.inverse_norm[i] = 1 / std::max(std::sqrt(square), SMALLEST_NORM);
    }
}

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
void find_logits(const Head& head, const Tile& tile, Room& room, float* logits) {
    const float one = 1, zero = 0;
    head.gemm("T", "N", &head.samples, &tile.count, &head.dim, &one, head.batch, &head.dim,
              room.weight, &head.dim, &zero, logits, &head.samples);
    for (int i = 0; i < tile.count; i++) {
        float* line = logits + size_t(i) * head.samples;
        const float factor = head.scale * room.inverse_norm[i];
#pragma omp simd
        for (int b = 0; b < head.samples; b++) line[b] *= factor;
    }
    take_out_own(head, tile, logits);
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
#pragma omp parallel num_threads(head.threads)
    {
        Room room(head);
        float* maximum = head.maximum + size_t(omp_get_thread_num()) * head.samples;
        float* sum = head.sum + size_t(omp_get_thread_num()) * head.samples;
        each_tile(head, [&](const Tile& tile) {
            float* logits = logits_of(head, tile, room);
            read_weights<Format>(head, tile, 1, room);
            find_logits(head, tile, room, logits);
            add_exponentials(head, tile, logits, room, maximum, sum);
        });
    }
}

// Turns the logits of a tile into gradients of its weights' products with the batch, and finds
// what the rows' own weights add to their gradients: decay, less what would only change a length.
void find_gradients(const Head& head, const Tile& tile, float* logits, Room& room) {
    int64_t own = tile.first;
    for (int i = 0; i < tile.count; i++) {
        float* line = logits + size_t(i) * head.samples;
        const float inverse_norm = room.inverse_norm[i], factor = head.factor * inverse_norm;
        float radial = 0;
#pragma omp simd reduction(+ : radial)
        for (int b = 0; b < head.samples; b++) {
            const float probability = exponential(line[b] - head.log_sum[b]);
            radial += probability * line[b];
            line[b] = probability * factor;
        }
        for (; own < tile.last && head.own_row[own] == tile.start + i; own++) {
            const int64_t sample = head.own_sample[own];
            radial += head.to_own[sample] * head.scale * head.own_cosine[sample];
            line[sample] = head.to_own[sample] * factor;
        }
        room.decay[i] = head.weight_decay
                        - radial * head.factor / head.scale * inverse_norm * inverse_norm;
    }
}

// torch.optim.SGD's rule on the rows of a tile, whose step holds the gradient so far.
template <class Format>
void learn(const Head& head, const Tile& tile, Room& room) {
    for (int i = 0; i < tile.count; i++) {
        const int64_t place = tile.start + i;
        auto* row = stored_row<Format>(head, place);
        auto* stored_velocity = row + head.width;
        float* weight = room.weight + size_t(i) * head.dim;
        float* step = room.step + size_t(i) * head.dim;
        const bool remembers = head.parts == 2;
        const float scale = remembers ? Format::scale_of(stored_velocity, head.dim) : 1;
        const float decay = room.decay[i], momentum = remembers ? head.momentum : 0, lr = head.lr;
        // Without momentum the weight stands in for it, times 0.
        const auto* velocity = remembers ? stored_velocity : row;
#pragma omp simd
        for (int k = 0; k < head.dim; k++) {
            step[k] += momentum * Format::get(velocity[k], scale) + decay * weight[k];
            weight[k] -= lr * step[k];
        }
        const int64_t number = head.first_class + (head.rows ? head.rows[place] : place);
        write_row<Format>(weight, row, head.dim, Noise(head.key, 2 * number));
        if (remembers)
            write_row<Format>(step, stored_velocity, head.dim, Noise(head.key, 2 * number + 1));
    }
}

template <class Format>
void backward(const Head& head) {
    const float one = 1, zero = 0;
#pragma omp parallel num_threads(head.threads)
    {
        Room room(head);
        float* gradient = head.gradient + size_t(omp_get_thread_num()) * head.samples * head.dim;
        std::fill(gradient, gradient + size_t(head.samples) * head.dim, 0.0f);
        each_tile(head, [&](const Tile& tile) {
            float* logits = logits_of(head, tile, room);
            read_weights<Format>(head, tile, head.parts, room);
            if (!is_kept(head, tile)) find_logits(head, tile, room, logits);
            find_gradients(head, tile, logits, room);
            head.gemm("N", "T", &head.dim, &head.samples, &tile.count, &one, room.weight,
                      &head.dim, logits, &head.samples, &one, gradient, &head.dim);
            if (head.lr == 0) return;
            head.gemm("N", "N", &head.dim, &tile.count, &head.samples, &one, head.batch, &head.dim,
                      logits, &head.samples, &zero, room.step, &head.dim);
            learn<Format>(head, tile, room);
        });
    }
}

}  // namespace

extern "C" void head_forward(const Head* head) {
    if (head->format == 0) forward<Float32>(*head);
    if (head->format == 1) forward<BFloat16>(*head);
    if (head->format == 2) forward<EightBits>(*head);
}

extern "C" void head_backward(const Head* head) {
    if (head->format == 0) backward<Float32>(*head);
    if (head->format == 1) backward<BFloat16>(*head);
    if (head->format == 2) backward<EightBits>(*head);
}
