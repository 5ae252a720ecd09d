// Winograd's transforms for 3x3 convolutions of stride 1 and padding 1, in float32.
//
// A tile of 4x4 inputs gives 2x2 outputs by 16 products where 36 would do it the plain way (Lavin
// and Gray, CVPR 2016, F(2x2, 3x3)); over channels and tiles the products are 16 matrices, which a
// BLAS multiplies. Each transform has its adjoint here, for the gradients. Images are (b, height,
// width, channels), transformed (16, tiles, channels); weights (channels, 3, 3, in_channels),
// transformed (16, channels, in_channels). Deterministic for any number of threads.

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace {

// Each step is a small matrix times a row of numbers; both ways over a tile it is a transform.
struct ToInput {
    static constexpr int FROM = 4, TO = 4;
    template <typename F>
    static void apply(const F* d, F* v) {
        v[0] = d[0] - d[2];
        v[1] = d[1] + d[2];
        v[2] = d[2] - d[1];
        v[3] = d[1] - d[3];
    }
};

struct FromInput {  // the adjoint, as those below
    static constexpr int FROM = 4, TO = 4;
    template <typename F>
    static void apply(const F* v, F* d) {
        d[0] = v[0];
        d[1] = v[1] - v[2] + v[3];
        d[2] = v[1] + v[2] - v[0];
        d[3] = -v[3];
    }
};

struct ToOutput {
    static constexpr int FROM = 4, TO = 2;
    template <typename F>
    static void apply(const F* m, F* y) {
        y[0] = m[0] + m[1] + m[2];
        y[1] = m[1] - m[2] - m[3];
    }
};

struct FromOutput {
    static constexpr int FROM = 2, TO = 4;
    template <typename F>
    static void apply(const F* y, F* m) {
        m[0] = y[0];
        m[1] = y[0] + y[1];
        m[2] = y[0] - y[1];
        m[3] = -y[1];
    }
};

struct ToWeight {
    static constexpr int FROM = 3, TO = 4;
    template <typename F>
    static void apply(const F* g, F* u) {
        u[0] = g[0];
        u[1] = (g[0] + g[2] + g[1]) * 0.5f;
        u[2] = (g[0] + g[2] - g[1]) * 0.5f;
        u[3] = g[2];
    }
};

struct FromWeight {
    static constexpr int FROM = 4, TO = 3;
    template <typename F>
    static void apply(const F* u, F* g) {
        g[0] = u[0] + (u[1] + u[2]) * 0.5f;
        g[1] = (u[1] - u[2]) * 0.5f;
        g[2] = (u[1] + u[2]) * 0.5f + u[3];
    }
};

template <typename Step, typename F>
inline void both_ways(const F (&in)[Step::FROM][Step::FROM], F (&out)[Step::TO][Step::TO]) {
    F half[Step::TO][Step::FROM];
    for (int j = 0; j < Step::FROM; ++j) {
        F column[Step::FROM], result[Step::TO];
        for (int i = 0; i < Step::FROM; ++i) column[i] = in[i][j];
        Step::apply(column, result);
        for (int i = 0; i < Step::TO; ++i) half[i][j] = result[i];
    }
    for (int i = 0; i < Step::TO; ++i) Step::apply(half[i], out[i]);
}

}  // namespace

extern "C" {

struct Images {
    int64_t images, height, width, channels;
};
}

namespace {

// One tile in an image and in the transformed matrices. Its first row and column are `before`
// twice its number: 1 for inputs, which overlap, 0 for outputs.
struct Tile {
    const Images& s;
    int64_t image, ty, tx, before;

    // Offset of a pixel of the tile, or -1 where that lies outside the image.
    int64_t pixel(int i, int j) const {
        const int64_t y = 2 * ty - before + i, x = 2 * tx - before + j;
        const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
        return inside ? ((image * s.height + y) * s.width + x) * s.channels : -1;
    }
};

int64_t half(int64_t size) { return (size + 1) / 2; }

// Calls body(offset in a transformed matrix, tile) for all tiles, images shared among the threads.
template <typename Body>
void each_tile(const Images& s, int64_t before, Body body) {
    const int64_t rows = half(s.height), columns = half(s.width);
#pragma omp parallel for schedule(static)
    for (int64_t image = 0; image < s.images; ++image)
        for (int64_t ty = 0; ty < rows; ++ty)
            for (int64_t tx = 0; tx < columns; ++tx)
                body(((image * rows + ty) * columns + tx) * s.channels,
                     Tile{s, image, ty, tx, before});
}

int64_t matrix_size(const Images& s) {
    return s.images * half(s.height) * half(s.width) * s.channels;
}

// Image to matrices.
template <typename Step>
void transform(const Images& s, int64_t before, const float* image, float* matrices) {
    const int64_t size = matrix_size(s);
    each_tile(s, before, [=, &s](int64_t at, const Tile& tile) {
        int64_t from[Step::FROM][Step::FROM];
        for (int i = 0; i < Step::FROM; ++i)
            for (int j = 0; j < Step::FROM; ++j) from[i][j] = tile.pixel(i, j);
        each_vector<1>(s.channels, [&](int64_t c, auto lanes) {
            using V = Vector<lanes>;
            typename V::Floats in[Step::FROM][Step::FROM], out[Step::TO][Step::TO];
            for (int i = 0; i < Step::FROM; ++i)
                for (int j = 0; j < Step::FROM; ++j)
                    in[i][j] = from[i][j] < 0 ? V{}.v : V::load(image + from[i][j] + c).v;
            both_ways<Step>(in, out);
            for (int i = 0; i < Step::TO; ++i)
                for (int j = 0; j < Step::TO; ++j)
                    V{out[i][j]}.store(matrices + (Step::TO * i + j) * size + at + c);
        });
    });
}

// Matrices to image; ADDS where tiles overlap.
template <typename Step, bool ADDS>
void transform_back(const Images& s, int64_t before, const float* matrices, float* image) {
    const int64_t size = matrix_size(s);
    each_tile(s, before, [=, &s](int64_t at, const Tile& tile) {
        int64_t to[Step::TO][Step::TO];
        for (int i = 0; i < Step::TO; ++i)
            for (int j = 0; j < Step::TO; ++j) to[i][j] = tile.pixel(i, j);
        each_vector<1>(s.channels, [&](int64_t c, auto lanes) {
            using V = Vector<lanes>;
            typename V::Floats in[Step::FROM][Step::FROM], out[Step::TO][Step::TO];
            for (int i = 0; i < Step::FROM; ++i)
                for (int j = 0; j < Step::FROM; ++j)
                    in[i][j] = V::load(matrices + (Step::FROM * i + j) * size + at + c).v;
            both_ways<Step>(in, out);
            for (int i = 0; i < Step::TO; ++i)
                for (int j = 0; j < Step::TO; ++j) {
                    if (to[i][j] < 0) continue;
                    float* pixel = image + to[i][j] + c;
                    V{ADDS ? V::load(pixel).v + out[i][j] : out[i][j]}.store(pixel);
                }
        });
    });
}

// Weights, or transformed ones, of `rows` output channels; either is Step::FROM^2 matrices.
template <typename Step>
void transform_weights(int64_t rows, int64_t columns, const float* from, int64_t from_row,
                       int64_t from_place, float* to, int64_t to_row, int64_t to_place) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        each_vector<1>(columns, [&](int64_t c, auto lanes) {
            using V = Vector<lanes>;
            typename V::Floats in[Step::FROM][Step::FROM], out[Step::TO][Step::TO];
            for (int i = 0; i < Step::FROM; ++i)
                for (int j = 0; j < Step::FROM; ++j) {
                    const int64_t place = (Step::FROM * i + j) * from_place;
                    in[i][j] = V::load(from + row * from_row + place + c).v;
                }
            both_ways<Step>(in, out);
            for (int i = 0; i < Step::TO; ++i)
                for (int j = 0; j < Step::TO; ++j)
                    V{out[i][j]}.store(to + row * to_row + (Step::TO * i + j) * to_place + c);
        });
}

}  // namespace

extern "C" {

void winograd_input(const Images* s, const float* x, float* matrices) {
    transform<ToInput>(*s, 1, x, matrices);
}

void winograd_input_adjoint(const Images* s, const float* matrices, float* x) {
    std::fill_n(x, s->images * s->height * s->width * s->channels, 0.f);
    transform_back<FromInput, true>(*s, 1, matrices, x);
}

void winograd_output(const Images* s, const float* matrices, float* y) {
    transform_back<ToOutput, false>(*s, 0, matrices, y);
}

void winograd_output_adjoint(const Images* s, const float* y, float* matrices) {
    transform<FromOutput>(*s, 0, y, matrices);
}

void winograd_weight(int64_t rows, int64_t columns, const float* weight, float* matrices) {
    transform_weights<ToWeight>(rows, columns, weight, 9 * columns, columns, matrices, columns,
                                rows * columns);
}

void winograd_weight_adjoint(int64_t rows, int64_t columns, const float* matrices, float* weight) {
    transform_weights<FromWeight>(rows, columns, matrices, columns, rows * columns, weight,
                                  9 * columns, columns);
}
}
