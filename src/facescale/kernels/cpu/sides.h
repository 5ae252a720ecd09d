// What a convolution between two norms reads: rows that are made while they are wanted, out of the
// image before the norm and, on the way back, of the gradient behind it.

#pragma once

#include <optional>

#include "norm.h"

namespace {

// The input: an image, or what a norm makes of it.
class Input {
  public:
    Input(const Norm* norm, const float* image, int64_t num_channels)
        : x(image), channels(num_channels) {
        if (norm) forward.emplace(*norm);
    }

    // Rows, in `room` if they had to be made.
    const float* rows(int64_t first, int64_t count, float* room) const {
        const float* from = x + first * channels;
        if (!forward) return from;
        forward->apply(from, count, nullptr, room);
        return room;
    }

    // Adds to the sums of the norm, if there is one, what the gradient of some rows has for them.
    void sum(int64_t first, int64_t count, const float* gradient, Sums& sums) const {
        if (forward) sums.add(*forward, x + first * channels, gradient, count);
    }

  private:
    const float* x;
    int64_t channels;
    std::optional<Activation> forward;
};

// The gradient of the output: as it is given, or as the norm behind the convolution hands it on.
class Upstream {
  public:
    Upstream(const Norm* norm, const float* output, const float* given, int64_t num_channels)
        : z(output), gradient(given), channels(num_channels) {
        if (norm) derivative.emplace(*norm);
    }

    const float* rows(int64_t first, int64_t count, float* room) const {
        const int64_t at = first * channels;
        if (!derivative) return gradient + at;
        derivative->apply(z + at, gradient + at, count, room);
        return room;
    }

  private:
    const float *z, *gradient;
    int64_t channels;
    std::optional<Derivative> derivative;
};

}  // namespace
