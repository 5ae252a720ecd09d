// 3x3 convolutions in groups of one or two channels: float32, images (b, height, width, channels).
//
// Padding is 1, stride 1 or 2, both ways. Where norms lie before or behind, their passes are taken
// along, row by row. The backward pass reads image and gradient once for the gradients of both.
// Deterministic for a number of threads: each has the same rows every time.

#include "memory.h"
#include "sides.h"
#include "taps.h"

namespace {

// Calls body(image, row) for this thread's rows of all images.
template <typename Body>
void each_row(int64_t images, int64_t height, Body body) {
    const auto [first, last] = share(images * height);
    for (int64_t row = first; row < last; ++row) body(row / height, row % height);
}

// Rows that a window of three slides over, each made once.
template <typename Source>
class Window {
  public:
    Window(const Source& of, int64_t row_width, int64_t channels)
        : source(of), width(row_width), size(width * channels), room(3 * size), outside(size) {}

    // The row at `index` of all; where it is not `inside` its image, one of zeros.
    const float* row(int64_t index, bool inside) {
        if (!inside) return outside.data();
        const int64_t slot = index % 3;
        if (held[slot] != index) {
            made[slot] = source.rows(index * width, width, room.data() + slot * size);
            held[slot] = index;
        }
        return made[slot];
    }

  private:
    const Source& source;
    int64_t width, size;
    Floats room, outside;
    int64_t held[3] = {-1, -1, -1};
    const float* made[3] = {};
};

template <int GROUP>
void forward(const Shape& s, const Norm* before, const float* x, const float* weight,
             const Norm* behind, float* y) {
    const auto packed = pack(s, weight, false);
    const Input input(before, x, s.channels);
    Parts<Moments> parts;
#pragma omp parallel
    {
        Window<Input> window(input, s.width, s.channels);
        const Buffer room(s.out_row);
        float* out = room.data();
        Moments mine(behind ? s.channels : 0);
        Ahead ahead;
        each_row(s.images, s.out_height, [&](int64_t image, int64_t oy) {
            const float* rows[3];
            for (int ky = 0; ky < 3; ++ky) {
                const int64_t iy = s.stride * oy + ky - 1;
                rows[ky] = window.row(image * s.height + iy, iy >= 0 && iy < s.height);
            }
            const int64_t next = image * s.height + s.stride * oy + 2;
            ahead.begin(s.channels / 16);
            ahead.want(x + next * s.row, std::min(s.stride, s.images * s.height - next) * s.row);
            each_vector<GROUP>(s.channels, [&](int64_t c, auto lanes) {
                ahead.ask();
                output_row<GROUP, lanes>(s, rows, packed.data(), c, out);
            });
            if (behind) mine.add(out, s.out_width);
            write_out(out, s.out_row, y + (image * s.out_height + oy) * s.out_row);
        });
        parts.put(std::move(mine));
    }
    if (behind) set_statistics(*behind, parts.sum(Moments(s.channels)));
}

template <int GROUP>
void backward(const Shape& s, const Norm* before, const float* x, const float* weight,
              const Norm* behind, const float* y, const float* gradient, const float* shortcut,
              float* to_x, float* to_weight) {
    const auto packed = pack(s, weight, true);
    const Input input(before, x, s.channels);
    const Upstream upstream(behind, y, gradient, s.channels);
    Parts<Totals> to_weights;
    Parts<Sums> parts;
#pragma omp parallel
    {
        Window<Upstream> window(upstream, s.out_width, s.channels);
        const Buffer inner(s.row), room(s.row);
        float* to = room.data();
        Ahead ahead;
        Totals mine(GROUP * TAPS * s.channels);
        Sums sums(before ? s.channels : 0);
        each_row(s.images, s.height, [&](int64_t image, int64_t iy) {
            const float* rows[3];
            for (int ky = 0; ky < 3; ++ky) {
                const int64_t above = iy + 1 - ky, oy = above / s.stride;
                const bool inside = above >= 0 && oy < s.out_height;
                rows[ky] = window.row(image * s.out_height + oy, inside);
            }
            const int64_t first = (image * s.height + iy) * s.width;
            const float* seen = input.rows(first, s.width, inner.data());
            const int64_t next = image * s.out_height + iy / s.stride + 2;
            ahead.begin(s.channels / 16);
            if (iy + 1 < s.height) ahead.want(x + (first + s.width) * s.channels, s.row);
            if (iy % s.stride == 0 && next < s.images * s.out_height) {
                ahead.want(gradient + next * s.out_row, s.out_row);
                if (behind) ahead.want(y + next * s.out_row, s.out_row);
            }
            if (iy % 8 == 0) mine.flush();
            each_vector<GROUP>(s.channels, [&](int64_t c, auto lanes) {
                ahead.ask();
                input_row_of_any<GROUP, lanes>(s, iy, seen, rows, packed.data(), c, to,
                                               mine.latest());
            });
            if (shortcut)
                for (int64_t i = 0; i < s.row; ++i) to[i] += shortcut[first * s.channels + i];
            input.sum(first, s.width, to, sums);
            write_out(to, s.row, to_x + first * s.channels);
        });
        to_weights.put(std::move(mine));
        parts.put(std::move(sums));
    }
    unpack(s, to_weights.sum(Totals(GROUP * TAPS * s.channels)).sums().data(), to_weight);
    if (before) parts.sum(Sums(s.channels)).write(before->totals);
}

}  // namespace

extern "C" {

void depthwise_forward(const Depthwise* d, const Norm* before, const float* x, const float* weight,
                       const Norm* behind, float* y) {
    if (d->group == 1) forward<1>(Shape(*d), before, x, weight, behind, y);
    else forward<2>(Shape(*d), before, x, weight, behind, y);
}

void depthwise_backward(const Depthwise* d, const Norm* before, const float* x, const float* weight,
                        const Norm* behind, const float* y, const float* gradient,
                        const float* shortcut, float* to_x, float* to_weight) {
    const auto back = d->group == 1 ? backward<1> : backward<2>;
    back(Shape(*d), before, x, weight, behind, y, gradient, shortcut, to_x, to_weight);
}
}
