// BatchNorm in training, with PReLU behind it where there is one, on float32 rows x channels.
//
// Two passes forward (statistics, output), two backward (sums, gradient). Nothing but the input is
// kept in between: what PReLU saw is computed again. All functions are deterministic for a number
// of threads: each has the same rows every time, and sums are put together in the threads' order.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t CHUNK = 128;  // rows whose sums are taken in float32; above that in float64
constexpr int64_t UNROLL = 4;   // rows a step, for which what belongs to a channel is read once

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// Calls body(first, count) for each chunk of this thread's rows, backwards on demand: a second pass
// begins with what the first one has left in the cache.
template <typename Body>
void each_chunk(int64_t rows, bool backwards, Body body) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t first = chunks * thread / threads, last = chunks * (thread + 1) / threads;
    for (int64_t i = first; i < last; ++i) {
        const int64_t row = CHUNK * (backwards ? first + last - 1 - i : i);
        body(row, std::min(CHUNK, rows - row));
    }
}

// Calls body(row, number of rows as a constant) until `count` rows are done.
template <typename Body>
void by_unrolled_rows(int64_t count, Body body) {
    int64_t row = 0;
    for (; row + UNROLL <= count; row += UNROLL) body(row, std::integral_constant<int, UNROLL>());
    for (; row < count; ++row) body(row, std::integral_constant<int, 1>());
}

// Count, mean and sum of squared deviations of each channel, as Chan et al. put them together.
struct Moments {
    double count = 0;
    Doubles mean, squares;

    explicit Moments(int64_t channels = 0) : mean(channels), squares(channels) {}

    template <typename Mean, typename Squares>
    void add(double more, Mean their_mean, Squares their_squares) {
        const double weight = more / (count + more), cross = count * weight;
        for (size_t c = 0; c < mean.size(); ++c) {
            const double distance = their_mean(c) - mean[c];
            squares[c] += their_squares(c) + cross * distance * distance;
            mean[c] += weight * distance;
        }
        count += more;
    }
};

// Deviations are taken from `shift`: the mean of the rows before, or one row of the chunk itself,
// and no row lies further from its chunk's mean than sqrt(count) deviations. So nothing cancels.
void add_chunk(const float* x, int64_t count, int64_t channels, const float* shift, float* sums,
               float* squares, Moments& moments) {
    std::fill_n(sums, channels, 0.f);
    std::fill_n(squares, channels, 0.f);
    by_unrolled_rows(count, [=](int64_t row, auto unroll) {
        const float* at = x + row * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
            float sum = 0.f, square = 0.f;
            for (int r = 0; r < unroll; ++r) {
                const float d = at[r * channels + c] - shift[c];
                sum += d;
                square += d * d;
            }
            sums[c] += sum;
            squares[c] += square;
        }
    });
    const double per_row = 1.0 / count;
    moments.add(
        count, [=](size_t c) { return shift[c] + sums[c] * per_row; },
        [=](size_t c) { return squares[c] - per_row * sums[c] * sums[c]; });
}

Moments statistics(const float* x, int64_t rows, int64_t channels) {
    std::vector<Moments> parts(omp_get_max_threads());
#pragma omp parallel
    {
        Moments mine(channels);
        Floats buffer(3 * channels);
        float *shift = buffer.data(), *sums = shift + channels, *squares = sums + channels;
        each_chunk(rows, false, [&](int64_t row, int64_t count) {
            const float* at = x + row * channels;
            for (int64_t c = 0; c < channels; ++c)
                shift[c] = mine.count ? static_cast<float>(mine.mean[c]) : at[c];
            add_chunk(at, count, channels, shift, sums, squares, mine);
        });
        parts[omp_get_thread_num()] = std::move(mine);
    }
    Moments all(channels);
    for (const Moments& part : parts)
        if (part.count)
            all.add(
                part.count, [&](size_t c) { return part.mean[c]; },
                [&](size_t c) { return part.squares[c]; });
    return all;
}

}  // namespace

extern "C" {

// What belongs to each channel; `slope` is null where no PReLU follows.
struct Channels {
    int64_t rows, channels;
    const float *weight, *bias, *slope;
    float *mean, *inverse;  // of the standard deviation; forward writes, backward reads
};
}

namespace {

Floats scales_of(const Channels& n) {
    Floats scales(n.channels);
    for (int64_t c = 0; c < n.channels; ++c) scales[c] = n.weight[c] * n.inverse[c];
    return scales;
}

// Calls body(place, channel) for every number of an image, as vectors; the rows of a thread from the
// last one on.
template <typename Body>
void each_number(const Channels& n, Body body) {
    const int64_t channels = n.channels;
#pragma omp parallel
    each_chunk(n.rows, true, [=](int64_t first, int64_t count) {
        by_unrolled_rows(count, [=](int64_t row, auto unroll) {
            const int64_t at = (first + row) * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c)
                for (int r = 0; r < unroll; ++r) body(at + r * channels + c, c);
        });
    });
}

// (x - mean) * scale + bias, then PReLU, then the sum with a shortcut.
template <bool PRELU, bool SHORTCUT>
void normalise(const Channels& n, const float* x, const float* shortcut, float* y) {
    const Floats scales = scales_of(n);
    const float *mean = n.mean, *scale = scales.data(), *bias = n.bias, *slope = n.slope;
    each_number(n, [=](int64_t i, int64_t c) {
        float value = (x[i] - mean[c]) * scale[c] + bias[c];
        if (PRELU) value = value > 0.f ? value : slope[c] * value;
        if (SHORTCUT) value += shortcut[i];
        y[i] = value;
    });
}

// Sums over the rows, for bias, weight and slope: of the gradient in front of PReLU, of that times
// x - mean, and of the gradient times what PReLU saw where that is not positive.
template <bool PRELU>
void reduce(const Channels& n, const float* x, const float* gradient, double* totals) {
    const int64_t channels = n.channels;
    std::vector<Doubles> parts(omp_get_max_threads());
    const Floats scales = scales_of(n);
    const float *mean = n.mean, *scale = scales.data(), *bias = n.bias, *slope = n.slope;
#pragma omp parallel
    {
        Floats sums(3 * channels);
        Doubles mine(3 * channels);
        float* to_bias = sums.data();
        float *to_weight = to_bias + channels, *to_slope = to_weight + channels;
        each_chunk(n.rows, false, [&](int64_t first, int64_t count) {
            std::fill(sums.begin(), sums.end(), 0.f);
            by_unrolled_rows(count, [=](int64_t row, auto unroll) {
                const int64_t at = (first + row) * channels;
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                    float bias_sum = 0.f, weight_sum = 0.f, slope_sum = 0.f;
                    for (int r = 0; r < unroll; ++r) {
                        const int64_t i = at + r * channels + c;
                        const float centred = x[i] - mean[c], g = gradient[i];
                        float inner = g;
                        if (PRELU) {
                            const float value = centred * scale[c] + bias[c];
                            inner = value > 0.f ? g : slope[c] * g;
                            slope_sum += value > 0.f ? 0.f : value * g;
                        }
                        bias_sum += inner;
                        weight_sum += inner * centred;
                    }
                    to_bias[c] += bias_sum;
                    to_weight[c] += weight_sum;
                    if (PRELU) to_slope[c] += slope_sum;
                }
            });
            for (int64_t c = 0; c < 3 * channels; ++c) mine[c] += sums[c];
        });
        parts[omp_get_thread_num()] = std::move(mine);
    }
    std::fill_n(totals, 3 * channels, 0.0);
    for (const Doubles& part : parts)
        for (size_t c = 0; c < part.size(); ++c) totals[c] += part[c];
}

// The gradient of x, in which those of mean and deviation are the same two numbers for all rows.
template <bool PRELU>
void differentiate(const Channels& n, const float* x, const float* gradient, const double* totals,
                   float* to_x) {
    const int64_t channels = n.channels;
    Floats buffer(3 * channels);
    float *scale = buffer.data(), *constant = scale + channels, *linear = constant + channels;
    for (int64_t c = 0; c < channels; ++c) {
        scale[c] = n.weight[c] * n.inverse[c];
        constant[c] = scale[c] * totals[c] / n.rows;
        linear[c] = scale[c] * totals[channels + c] * n.inverse[c] * n.inverse[c] / n.rows;
    }
    const float *mean = n.mean, *bias = n.bias, *slope = n.slope;
    each_number(n, [=](int64_t i, int64_t c) {
        const float centred = x[i] - mean[c];
        float inner = gradient[i];
        if (PRELU) {
            const float value = centred * scale[c] + bias[c];
            inner = value > 0.f ? inner : slope[c] * inner;
        }
        to_x[i] = scale[c] * inner - constant[c] - linear[c] * centred;
    });
}

}  // namespace

extern "C" {

void norm_forward(const Channels* n, const float* x, const float* shortcut, float eps,
                  float momentum, float* running_mean, float* running_variance, float* y) {
    const Moments all = statistics(x, n->rows, n->channels);
    for (int64_t c = 0; c < n->channels; ++c) {
        const double variance = all.squares[c] / n->rows;
        n->mean[c] = all.mean[c];
        n->inverse[c] = 1.0 / std::sqrt(variance + eps);
        running_mean[c] += momentum * (all.mean[c] - running_mean[c]);
        running_variance[c] += momentum * (all.squares[c] / (n->rows - 1) - running_variance[c]);
    }
    if (n->slope && shortcut) normalise<true, true>(*n, x, shortcut, y);
    else if (n->slope) normalise<true, false>(*n, x, shortcut, y);
    else if (shortcut) normalise<false, true>(*n, x, shortcut, y);
    else normalise<false, false>(*n, x, shortcut, y);
}

void norm_backward(const Channels* n, const float* x, const float* gradient, float* to_x,
                   float* to_bias, float* to_weight, float* to_slope) {
    Doubles totals(3 * n->channels);
    if (n->slope) reduce<true>(*n, x, gradient, totals.data());
    else reduce<false>(*n, x, gradient, totals.data());
    if (n->slope) differentiate<true>(*n, x, gradient, totals.data(), to_x);
    else differentiate<false>(*n, x, gradient, totals.data(), to_x);
    for (int64_t c = 0; c < n->channels; ++c) {
        to_bias[c] = totals[c];
        to_weight[c] = totals[n->channels + c] * n->inverse[c];
        if (n->slope) to_slope[c] = totals[2 * n->channels + c];
    }
}
}
