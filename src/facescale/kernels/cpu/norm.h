// BatchNorm in training, with PReLU behind it where there is one, on float32 rows of channels: its
// passes over some rows, for kernels that have those rows in their cache.

#pragma once

#include <cmath>

#include "sums.h"

// As `Norm` in norm.py.
struct Norm {
    int64_t rows, channels;
    const float *weight, *bias, *slope;  // slope: of PReLU, or null where none follows
    // Of the batch, 1 / deviation, and the unbiased variance; the forward pass sets them.
    float *mean, *inverse, *variance;
    double* totals;  // (3, channels), as `Sums` has them; the backward pass sets them
    float eps;
};

namespace {

// Count, mean and sum of squared deviations of each channel, as Chan et al. put them together.
class Moments {
  public:
    explicit Moments(int64_t channels = 0)
        : mean(channels), squares(channels), shift(channels), sums(channels), raised(channels) {}

    void add(const float* x, int64_t rows) {
        by_chunks(
            rows, pending, [&](int64_t first, int64_t n) { add_some(x + first * size(), n); },
            [&] { flush(); });
    }

    void flush() {
        if (!pending) return;
        const double per_row = 1.0 / pending;
        merge(
            pending, [&](size_t c) { return shift[c] + sums[c] * per_row; },
            [&](size_t c) { return raised[c] - per_row * sums[c] * sums[c]; });
        pending = 0;
    }

    void add(Moments& other) {
        other.flush();
        if (other.count)
            merge(
                other.count, [&](size_t c) { return other.mean[c]; },
                [&](size_t c) { return other.squares[c]; });
    }

    double count = 0;
    Doubles mean, squares;

  private:
    int64_t size() const { return mean.size(); }

    // Deviations are taken from `shift`: the mean of the rows before, or one row of the chunk, and
    // no row lies further from its chunk's mean than sqrt(count) deviations. So nothing cancels.
    void add_some(const float* x, int64_t rows) {
        if (!pending) {
            for (int64_t c = 0; c < size(); ++c) shift[c] = count ? float(mean[c]) : x[c];
            std::fill(sums.begin(), sums.end(), 0.f);
            std::fill(raised.begin(), raised.end(), 0.f);
        }
        float *sum = sums.data(), *square = raised.data();
        const float* from = shift.data();
        const int64_t channels = size();
        each_step(rows, channels, [=](int64_t at, auto unroll) {
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) {
                float first = 0.f, second = 0.f;
                for (int r = 0; r < unroll; ++r) {
                    const float d = x[at + r * channels + c] - from[c];
                    first += d;
                    second += d * d;
                }
                sum[c] += first;
                square[c] += second;
            }
        });
        pending += rows;
    }

    template <typename Mean, typename Squares>
    void merge(double more, Mean their_mean, Squares their_squares) {
        const double weight = more / (count + more), cross = count * weight;
        for (size_t c = 0; c < mean.size(); ++c) {
            const double distance = their_mean(c) - mean[c];
            squares[c] += their_squares(c) + cross * distance * distance;
            mean[c] += weight * distance;
        }
        count += more;
    }

    Floats shift, sums, raised;
    int64_t pending = 0;
};

// Sets the statistics of a norm.
inline void set_statistics(const Norm& n, const Moments& all) {
    for (int64_t c = 0; c < n.channels; ++c) {
        n.mean[c] = all.mean[c];
        n.inverse[c] = 1.0 / std::sqrt(all.squares[c] / n.rows + n.eps);
        n.variance[c] = all.squares[c] / (n.rows - 1);
    }
}

// The way forward of a norm whose statistics are known.
class Activation {
  public:
    explicit Activation(const Norm& norm) : n(norm), scales(norm.channels) {
        for (int64_t c = 0; c < n.channels; ++c) scales[c] = n.weight[c] * n.inverse[c];
    }

    // (x - mean) * scale + bias, then PReLU, then the sum with a shortcut if there is one.
    void apply(const float* x, int64_t rows, const float* shortcut, float* y) const {
        if (n.slope && shortcut) apply<true, true>(x, rows, shortcut, y);
        else if (n.slope) apply<true, false>(x, rows, shortcut, y);
        else if (shortcut) apply<false, true>(x, rows, shortcut, y);
        else apply<false, false>(x, rows, shortcut, y);
    }

    // Adds to (3, channels) `sums`, which `Sums` describes.
    void sum(const float* x, const float* gradient, int64_t rows, float* sums) const {
        if (n.slope) sum<true>(x, gradient, rows, sums);
        else sum<false>(x, gradient, rows, sums);
    }

    const Norm& n;

  protected:
    Floats scales;

  private:
    template <bool PRELU, bool SHORTCUT>
    void apply(const float* x, int64_t rows, const float* shortcut, float* y) const {
        const float *mean = n.mean, *scale = scales.data(), *bias = n.bias, *slope = n.slope;
        each_number(rows, n.channels, [=](int64_t i, int64_t c) {
            float value = (x[i] - mean[c]) * scale[c] + bias[c];
            if (PRELU) value = value > 0.f ? value : slope[c] * value;
            if (SHORTCUT) value += shortcut[i];
            y[i] = value;
        });
    }

    template <bool PRELU>
    void sum(const float* x, const float* gradient, int64_t rows, float* sums) const {
        const float *mean = n.mean, *scale = scales.data(), *bias = n.bias, *slope = n.slope;
        const int64_t channels = n.channels;
        float *to_bias = sums, *to_weight = sums + n.channels, *to_slope = to_weight + n.channels;
        each_step(rows, n.channels, [=](int64_t at, auto unroll) {
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
    }
};

// The way back: the gradient of x, in which those of mean and deviation are the same two numbers
// for all rows, and known once `Sums` has seen all.
class Derivative : private Activation {
  public:
    explicit Derivative(const Norm& norm)
        : Activation(norm), constants(norm.channels), linears(norm.channels) {
        for (int64_t c = 0; c < n.channels; ++c) {
            constants[c] = scales[c] * n.totals[c] / n.rows;
            const double inverse = n.inverse[c], to_weight = n.totals[n.channels + c];
            linears[c] = scales[c] * to_weight * inverse * inverse / n.rows;
        }
    }

    void apply(const float* x, const float* gradient, int64_t rows, float* to_x) const {
        if (n.slope) apply<true>(x, gradient, rows, to_x);
        else apply<false>(x, gradient, rows, to_x);
    }

  private:
    template <bool PRELU>
    void apply(const float* x, const float* gradient, int64_t rows, float* to_x) const {
        const float *mean = n.mean, *scale = scales.data(), *bias = n.bias, *slope = n.slope;
        const float *constant = constants.data(), *linear = linears.data();
        each_number(rows, n.channels, [=](int64_t i, int64_t c) {
            const float centred = x[i] - mean[c];
            float inner = gradient[i];
            if (PRELU) {
                const float value = centred * scale[c] + bias[c];
                inner = value > 0.f ? inner : slope[c] * inner;
            }
            to_x[i] = scale[c] * inner - constant[c] - linear[c] * centred;
        });
    }

    Floats constants, linears;
};

// Sums over the rows, for bias, weight and slope: of the gradient in front of PReLU, of that times
// x - mean, and of the gradient times what PReLU saw where that is not positive.
class Sums {
  public:
    explicit Sums(int64_t channels = 0) : totals(3 * channels) {}

    void add(const Activation& forward, const float* x, const float* gradient, int64_t rows) {
        const int64_t channels = forward.n.channels;
        by_chunks(
            rows, pending,
            [&](int64_t first, int64_t count) {
                const int64_t at = first * channels;
                forward.sum(x + at, gradient + at, count, totals.latest());
                pending += count;
            },
            [&] {
                totals.flush();
                pending = 0;
            });
    }

    void add(Sums& other) { totals.add(other.totals); }

    void write(double* to) const { std::copy(totals.sums().begin(), totals.sums().end(), to); }

  private:
    Totals totals;
    int64_t pending = 0;
};

}  // namespace
