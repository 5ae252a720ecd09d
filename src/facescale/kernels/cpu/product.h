// Products of matrices of which one lies in a core's cache, while what comes next is fetched.
//
// A tile's products leave memory idle, and reading a tile leaves the arithmetic idle; BLAS does one
// thing after the other. This one asks for some lines of the tiles to come every few steps.

#pragma once

#include <cstdint>
#include <cstring>

#include "memory.h"
#include "vectors.h"

namespace {

// A block of results that fits the registers: BLOCK_ROWS rows of up to BLOCK_VECTORS vectors.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, BLOCK_VECTORS = 4;
#elif defined(__AVX__)
constexpr int WIDTH = 8, BLOCK_VECTORS = 2;
#else
constexpr int WIDTH = 4, BLOCK_VECTORS = 2;
#endif
constexpr int BLOCK_ROWS = 6, BLOCK_COLUMNS = WIDTH * BLOCK_VECTORS;

constexpr int STEPS = 16;  // of a block's product, between which memory is asked for

// Rows of the right side that are multiplied at a time: their columns of one block, 16 KB, stay in
// half of a 32 KB first-level cache. With vectors of 16 the columns come from the second level.
constexpr int64_t DEPTH = WIDTH == 16 ? INT64_MAX : 4096 / BLOCK_COLUMNS;

// How often a product asks.
inline int64_t asks_of(int64_t rows, int64_t columns, int64_t depth) {
    const int64_t blocks = rows / BLOCK_ROWS + rows % BLOCK_ROWS / 2 + rows % 2;
    return blocks * ((columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS) * ((depth + STEPS - 1) / STEPS);
}

// The left side of a product: element (i, k) lies at data[i * stride + k] or, transposed, at
// data[k * stride + i].
template <bool TRANSPOSED>
struct Left {
    const float* data;
    int64_t stride;

    Left from_row(int64_t i) const { return {data + i * (TRANSPOSED ? 1 : stride), stride}; }
    Left from_column(int64_t k) const { return {column(k), stride}; }
    const float* column(int64_t k) const { return data + k * (TRANSPOSED ? stride : 1); }
    int64_t row() const { return TRANSPOSED ? 1 : stride; }
};

// c (ROWS, VECTORS * LANES) = a (ROWS, depth) b (depth, VECTORS * LANES), beside what it held.
template <int ROWS, int VECTORS, int LANES, bool TRANSPOSED>
inline void block_product(int64_t depth, Left<TRANSPOSED> a, const float* b, int64_t b_row,
                          float* c, int64_t c_row, bool keep, Ahead& ahead) {
    using V = Vector<LANES>;
    typename V::Floats sums[ROWS][VECTORS] = {};
    const auto step = [&](const float* column, const float* row) {
        typename V::Floats right[VECTORS];
        for (int v = 0; v < VECTORS; ++v) right[v] = V::load(row + v * LANES).v;
        for (int i = 0; i < ROWS; ++i) {
            const float left = column[i * a.row()];
            for (int v = 0; v < VECTORS; ++v) sums[i][v] = sums[i][v] + left * right[v];
        }
    };
    for (int64_t first = 0; first < depth; first += STEPS) {
        ahead.ask();
        const float *column = a.column(first), *row = b + first * b_row;
        for (int64_t k = std::min<int64_t>(STEPS, depth - first); k; --k) {
            step(column, row);
            column += a.column(1) - a.column(0);
            row += b_row;
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECTORS; ++v) {
            float* to = c + i * c_row + v * LANES;
            V result;
            result.v = sums[i][v];
            if (keep) result.v = result.v + V::load(to).v;
            result.store(to);
        }
}

// The columns of a block that begins a row of `columns` of them: as many as fit.
inline int64_t piece_of(int64_t columns) {
    if (columns >= BLOCK_COLUMNS) return BLOCK_COLUMNS;
    if (columns >= WIDTH) return columns / WIDTH * WIDTH;
    int64_t piece = WIDTH;
    while (piece > columns) piece /= 2;
    return piece;
}

// Calls body(vectors, lanes) with the constants that make up a piece.
template <typename Body>
void as_vectors(int64_t piece, Body body) {
    using std::integral_constant;
    const auto narrow = [&](auto lanes) { body(integral_constant<int, 1>(), lanes); };
    const auto wide = [&](auto vectors) { body(vectors, integral_constant<int, WIDTH>()); };
    if (piece == 1) narrow(integral_constant<int, 1>());
    else if (piece == 2) narrow(integral_constant<int, 2>());
    else if (piece == 4) narrow(integral_constant<int, 4>());
    else if (piece == WIDTH) wide(integral_constant<int, 1>());
    else if (piece == 8) narrow(integral_constant<int, 8>());
    else if (piece == 2 * WIDTH) wide(integral_constant<int, 2>());
    else if (piece == 3 * WIDTH) wide(integral_constant<int, 3>());
    else wide(integral_constant<int, BLOCK_VECTORS>());
}

// Calls body(number of rows as a constant, first of them) until all rows are done.
template <typename Body>
void each_block_of_rows(int64_t rows, Body body) {
    int64_t row = 0;
    for (; row + BLOCK_ROWS <= rows; row += BLOCK_ROWS)
        body(std::integral_constant<int, BLOCK_ROWS>(), row);
    for (; row + 2 <= rows; row += 2) body(std::integral_constant<int, 2>(), row);
    for (; row < rows; ++row) body(std::integral_constant<int, 1>(), row);
}

// c (rows, columns) = a (rows, depth) b (depth, columns), beside what it held if `keep`. `b` lies by
// blocks of BLOCK_COLUMNS columns, each `b_block` behind the one before.
template <bool TRANSPOSED>
void product(int64_t rows, int64_t columns, int64_t depth, Left<TRANSPOSED> a, const float* b,
             int64_t b_row, int64_t b_block, float* c, bool keep, Ahead& ahead) {
    for (int64_t column = 0, piece; column < columns; column += piece) {
        piece = piece_of(columns - column);
        const float* right = b + column / BLOCK_COLUMNS * b_block + column % BLOCK_COLUMNS;
        as_vectors(piece, [&](auto vectors, auto lanes) {
            int64_t k = 0;
            do {  // once for a depth of 0 too, which writes zeros
                each_block_of_rows(rows, [&](auto count, int64_t row) {
                    block_product<count, vectors, lanes>(
                        std::min(DEPTH, depth - k), a.from_row(row).from_column(k),
                        right + k * b_row, b_row, c + row * columns + column, columns, keep || k,
                        ahead);
                });
                k += std::min(DEPTH, depth);
            } while (k < depth);
        });
    }
}

// A small matrix (depth, columns) laid out by blocks of columns, for products with many rows.
class Packed {
  public:
    template <bool TRANSPOSED>
    Packed(int64_t num_rows, int64_t num_columns, Left<TRANSPOSED> from)
        : depth(num_rows),
          columns(num_columns),
          room((columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS * BLOCK_COLUMNS * depth) {
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t c = 0; c < columns; ++c)
                room.data()[(c / BLOCK_COLUMNS * depth + k) * BLOCK_COLUMNS + c % BLOCK_COLUMNS] =
                    from.from_row(k).column(c)[0];
    }

    // c (rows, columns) = a (rows, depth) times this, added to what it held if `keep`. Rows of `a`
    // lie `a_row` apart.
    void multiply(int64_t rows, const float* a, int64_t a_row, float* c, bool keep,
                  Ahead& ahead) const {
        product(rows, columns, depth, Left<false>{a, a_row}, room.data(), BLOCK_COLUMNS,
                depth * BLOCK_COLUMNS, c, keep, ahead);
    }

  private:
    int64_t depth, columns;
    Buffer room;
};

}  // namespace
