// The taps of a 3x3 convolution in groups of one or two channels, a vector of channels at a time.
//
// A group lies inside a vector: a channel's partner is its neighbour, c ^ 1.

#pragma once

#include <cstdint>
#include <vector>

#include "vectors.h"

// As `_Depthwise` in between.py.
struct Depthwise {
    int64_t images, height, width, channels, stride, group;  // of the input; channels in a group
};

namespace {

constexpr int TAPS = 9;

// The weights of one vector of channels, or their gradients. Part 0 is a channel's own, part 1 is
// between it and its partner.
template <int GROUP, int LANES>
struct Weights {
    Vector<LANES> part[GROUP][TAPS];

    static Weights load(const float* packed, int64_t channels, int64_t c) {
        Weights w;
        for (int p = 0; p < GROUP; ++p)
            for (int t = 0; t < TAPS; ++t)
                w.part[p][t] = Vector<LANES>::load(packed + (p * TAPS + t) * channels + c);
        return w;
    }

    void store(float* packed, int64_t channels, int64_t c) const {
        for (int p = 0; p < GROUP; ++p)
            for (int t = 0; t < TAPS; ++t) part[p][t].store(packed + (p * TAPS + t) * channels + c);
    }
};

struct Shape : Depthwise {
    int64_t out_height, out_width, row, out_row;  // a row is width * channels

    explicit Shape(const Depthwise& d)
        : Depthwise(d),
          out_height((height - 1) / stride + 1),
          out_width((width - 1) / stride + 1),
          row(width * channels),
          out_row(out_width * channels) {}

    // Where the weight from input to output channel c lies in (channels, 3, 3, group).
    int64_t place(int64_t output, int64_t tap, int64_t input) const {
        return (output * TAPS + tap) * group + input % group;
    }
};

// Weights by part, tap and channel: the input's channel forward, the output's backward, since the
// partners change places when the sum over the taps is done.
std::vector<float> pack(const Shape& s, const float* weight, bool backward) {
    std::vector<float> packed;
    packed.reserve(s.group * TAPS * s.channels);
    for (int64_t part = 0; part < s.group; ++part)
        for (int64_t tap = 0; tap < TAPS; ++tap)
            for (int64_t c = 0; c < s.channels; ++c)
                packed.push_back(weight[backward ? s.place(c, tap, c ^ part)
                                                 : s.place(c ^ part, tap, c)]);
    return packed;
}

// The weights' gradient from its sums by part, tap and output channel.
void unpack(const Shape& s, const double* sum, float* to_weight) {
    for (int64_t part = 0; part < s.group; ++part)
        for (int64_t tap = 0; tap < TAPS; ++tap)
            for (int64_t c = 0; c < s.channels; ++c)
                to_weight[s.place(c, tap, c ^ part)] = *sum++;
}

constexpr bool has(int mask, int tap) { return mask >> tap & 1; }

// One vector of an output. COLUMNS: which of a row's three taps lie inside the image, as bits.
template <int COLUMNS, int GROUP, int LANES>
inline void output_pixel(const float* const rows[3], int64_t first, int64_t channels,
                         const Weights<GROUP, LANES>& w, float* out) {
    Vector<LANES> sums[GROUP] = {};
    for (int ky = 0; ky < 3; ++ky)
        for (int kx = 0; kx < 3; ++kx)
            if (has(COLUMNS, kx)) {
                const auto x = Vector<LANES>::load(rows[ky] + first + kx * channels);
                for (int p = 0; p < GROUP; ++p) sums[p].add_product(w.part[p][3 * ky + kx], x);
            }
    if constexpr (GROUP == 2) sums[0].v += sums[1].partners().v;
    sums[0].store(out);
}

template <int GROUP, int LANES>
void output_row(const Shape& s, const float* const rows[3], const float* packed, int64_t c,
                float* out) {
    const auto w = Weights<GROUP, LANES>::load(packed, s.channels, c);
    for (int64_t ox = 0; ox < s.out_width; ++ox) {
        const int64_t left = s.stride * ox - 1, first = left * s.channels + c;
        const bool all = left + 2 < s.width;
        float* to = out + ox * s.channels + c;
        if (left >= 0 && all) output_pixel<7>(rows, first, s.channels, w, to);
        else if (left >= 0) output_pixel<3>(rows, first, s.channels, w, to);
        else if (all) output_pixel<6>(rows, first, s.channels, w, to);
        else output_pixel<2>(rows, first, s.channels, w, to);
    }
}

// One vector of an input: its gradient, and its share in the weights', from the gradients of the
// outputs that saw it. ROWS and COLUMNS: at which taps they did, as bits; `first` is where the
// output of column tap 0 lies in its row.
template <int ROWS, int COLUMNS, int STRIDE, int GROUP, int LANES>
inline void input_pixel(Vector<LANES> x, const float* const rows[3], int64_t first,
                        int64_t channels, const Weights<GROUP, LANES>& w,
                        Weights<GROUP, LANES>& to_w, float* to_x) {
    Vector<LANES> sums[GROUP] = {};
    Vector<LANES> seen[2] = {x, x};
    if constexpr (GROUP == 2) seen[1] = x.partners();
    for (int ky = 0; ky < 3; ++ky)
        for (int kx = 0; kx < 3; ++kx)
            if (has(ROWS, ky) && has(COLUMNS, kx)) {
                const int64_t at = first - kx / STRIDE * channels;
                const auto gradient = Vector<LANES>::load(rows[ky] + at);
                for (int p = 0; p < GROUP; ++p) {
                    sums[p].add_product(w.part[p][3 * ky + kx], gradient);
                    to_w.part[p][3 * ky + kx].add_product(seen[p], gradient);
                }
            }
    if constexpr (GROUP == 2) sums[0].v += sums[1].partners().v;
    sums[0].store(to_x);
}

template <int ROWS, int STRIDE, int GROUP, int LANES>
void input_row(const Shape& s, const float* x, const float* const rows[3], const float* packed,
               int64_t c, float* to_x, float* to_weight) {
    const auto w = Weights<GROUP, LANES>::load(packed, s.channels, c);
    auto to_w = Weights<GROUP, LANES>::load(to_weight, s.channels, c);
    const auto pixel = [&](auto columns, int64_t ix) {
        const int64_t at = ix * s.channels + c, first = (ix + 1) / STRIDE * s.channels + c;
        input_pixel<ROWS, columns, STRIDE>(Vector<LANES>::load(x + at), rows, first, s.channels, w,
                                           to_w, to_x + at);
    };
    const auto edge = [&](int64_t ix) {  // tap 0 saw it from the output to the right
        return (ix + 1) / STRIDE >= s.out_width;
    };
    using std::integral_constant;
    for (int64_t ix = 0; ix < s.width; ++ix) {
        if constexpr (STRIDE == 2) {
            if (ix % 2 == 0) pixel(integral_constant<int, 2>(), ix);
            else if (edge(ix)) pixel(integral_constant<int, 4>(), ix);
            else pixel(integral_constant<int, 5>(), ix);
        } else {
            if (ix > 0 && !edge(ix)) pixel(integral_constant<int, 7>(), ix);
            else if (ix > 0) pixel(integral_constant<int, 6>(), ix);
            else if (edge(ix)) pixel(integral_constant<int, 2>(), ix);
            else pixel(integral_constant<int, 3>(), ix);
        }
    }
    to_w.store(to_weight, s.channels, c);
}

// The same for either stride; at stride 2 every other row of outputs saw an odd row of inputs.
template <int GROUP, int LANES>
void input_row_of_any(const Shape& s, int64_t iy, const float* x, const float* const rows[3],
                      const float* packed, int64_t c, float* to_x, float* to_weight) {
    if (s.stride == 1) input_row<7, 1, GROUP, LANES>(s, x, rows, packed, c, to_x, to_weight);
    else if (iy % 2) input_row<5, 2, GROUP, LANES>(s, x, rows, packed, c, to_x, to_weight);
    else input_row<2, 2, GROUP, LANES>(s, x, rows, packed, c, to_x, to_weight);
}

}  // namespace
