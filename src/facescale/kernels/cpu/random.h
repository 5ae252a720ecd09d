// The random numbers of facescale/random.py: the same bits, and normal numbers up to rounding.

#pragma once

#include <cmath>
#include <cstdint>

#include "bits.h"

// 64 bits that select one of many independent sequences of random numbers, as `Key` there.
struct Key {
    uint32_t low, high;

    uint32_t bits(uint32_t counter) const {
        uint32_t x = counter * WEYL + low;
        x = (x ^ (x >> 16)) * 0x21F0AAADu;
        x ^= high;
        x = (x ^ (x >> 15)) * 0xD35A2D97u;
        return x ^ (x >> 15);
    }

    Key child(uint64_t word) const { return half(uint32_t(word >> 32)).half(uint32_t(word)); }

    static constexpr uint32_t WEYL = 0x9E3779B9u, OTHER = 0xB7E15163u;

  private:
    Key half(uint32_t word) const { return {bits(word), Key{high, low ^ OTHER}.bits(word)}; }
};

// log(x) for normal x > 0, in operations that fill a vector. Source: Cephes, logf.
inline float logarithm(float x) {
    const uint32_t bits = bits_of(x);
    const float half = of_bits((bits & 0x007FFFFFu) | 0x3F000000u);  // in [0.5, 1)
    const bool small = half < 0.707106781186547524f;
    const float e = float(int32_t(bits >> 23) - 126 - int32_t(small));
    const float m = small ? half + half - 1 : half - 1;
    float y = 7.0376836292e-2f;
    y = y * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    y = y * m * m * m - 2.12194440e-4f * e - 0.5f * m * m;
    return m + y + 0.693359375f * e;
}

// Numbers 2 * pair and 2 * pair + 1 of N(0, 1) of a key. Sources: Box and Muller, 1958; Cephes,
// sinf and cosf, on the eighth of a circle around each quarter turn.
inline void normal_pair(Key key, uint32_t pair, float& first, float& second) {
    const float unit = 0x1p-24f;
    const float chance = float(int32_t(key.bits(2 * pair) >> 8) + 1) * unit;
    const float quarters = float(int32_t(key.bits(2 * pair + 1) >> 8)) * (4 * unit);
    const float radius = std::sqrt(-2 * logarithm(chance));
    const float whole = std::nearbyint(quarters), angle = (quarters - whole) * 1.57079632679489662f;
    const float z = angle * angle;
    const float sine =
        ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * angle + angle;
    const float cosine =
        ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z
        - 0.5f * z + 1;
    const int32_t turn = int32_t(whole);
    const float x = turn & 1 ? sine : cosine, y = turn & 1 ? cosine : sine;
    first = radius * ((turn + 1) & 2 ? -x : x);
    second = radius * (turn & 2 ? -y : y);
}

// A permutation of [0, size) by a Feistel network on a grid, as `Permutation` there.
struct Permutation {
    int64_t size, rows, columns;
    Key key;
    int32_t rounds;

    int64_t apply(int64_t place) const {
        do {
            int64_t row = place / columns, column = place - row * columns;
            for (int32_t step = 0; step < 2 * rounds; step += 2) {
                row = wrap(row + shift(step, column, rows), rows);
                column = wrap(column + shift(step + 1, row, columns), columns);
            }
            place = row * columns + column;
        } while (place >= size);
        return place;
    }

    int64_t invert(int64_t index) const {
        do {
            int64_t row = index / columns, column = index - row * columns;
            for (int32_t step = 2 * rounds - 2; step >= 0; step -= 2) {
                column = wrap(column + columns - shift(step + 1, row, columns), columns);
                row = wrap(row + rows - shift(step, column, rows), rows);
            }
            index = row * columns + column;
        } while (index >= size);
        return index;
    }

  private:
    int64_t shift(int32_t step, int64_t other, int64_t side) const {
        const uint32_t counter = uint32_t(other) + uint32_t(step) * 0x61C88647u;
        return int64_t(uint64_t(key.bits(counter)) * uint64_t(side) >> 32);
    }

    static int64_t wrap(int64_t value, int64_t side) { return value >= side ? value - side : value; }
};
