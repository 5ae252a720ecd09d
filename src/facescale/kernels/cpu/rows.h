// How a class centre is stored, as facescale/head/rows.py; and the exponential.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "bits.h"
#include "random.h"

// e^x to the last bits of a float32, in operations that fill a vector; 0 below e^-87.
// Source: Cephes, expf: x = n log 2 + r, and a polynomial of r.
inline float exponential(float x) {
    // Not by std::min, whose references make a loop gather numbers one by one.
    const float raised = x < -87.0f ? -87.0f : x, inside = raised > 88.0f ? 88.0f : raised;
    const float n = std::nearbyint(inside * 1.44269504f);
    const float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1;
    return x < -87.0f ? 0.0f : p * of_bits(uint32_t(int32_t(n) + 127) << 23);
}

struct Float32 {
    using Stored = float;
    static constexpr bool SCALED = false;

    static float scale_of(const float*, int) { return 1; }
    static float get(float stored, float) { return stored; }
    static float put(float number, float, uint32_t) { return number; }
};

// The upper half of a float32. A random lower half carries into it as often as what it is added
// to is large; then it goes.
struct BFloat16 {
    using Stored = uint16_t;
    static constexpr bool SCALED = false;

    static float scale_of(const uint16_t*, int) { return 1; }

    static float get(uint16_t stored, float) {
        const uint32_t bits = uint32_t(stored) << 16;
        float number;
        std::memcpy(&number, &bits, sizeof number);
        return number;
    }

    static uint16_t put(float number, float, uint32_t random) {
        return uint16_t((bits_of(number) + (random & 0xFFFF)) >> 16);
    }
};

// A byte a number, and a float32 scale in the last four bytes of the row. The scale stays as long
// as the row fits into it and fills half of it.
struct EightBits {
    using Stored = int8_t;
    static constexpr bool SCALED = true;

    static float scale_of(const int8_t* row, int dim) {
        float scale;
        std::memcpy(&scale, row + dim, sizeof scale);
        return scale;
    }

    // The scale from now on, for a row whose largest number is this; stored, and returned. NaN if
    // that is NaN, and then the whole row is: a step that reads it has a loss that is not finite.
    static float fit(int8_t* row, int dim, float largest) {
        const float needed = largest / LEVELS, before = scale_of(row, dim);
        const bool fits = needed <= before && needed >= before / 2;
        const float scale = fits ? before : ROOM * needed;
        std::memcpy(row + dim, &scale, sizeof scale);
        return scale > 0 ? scale : 1;
    }

    static float get(int8_t stored, float scale) { return scale * stored; }

    static int8_t put(float number, float scale, uint32_t random) {
        const float level = std::floor(number / scale + float(random >> 8) * 0x1p-24f);
        return int8_t(std::min(std::max(-LEVELS, level), LEVELS));  // of NaN, -LEVELS
    }

  private:
    static constexpr float LEVELS = 127, ROOM = 1.25;
};

// The numbers of a row, and the sum of their squares.
template <class Format>
float read_row(const typename Format::Stored* row, float* numbers, int dim) {
    const float scale = Format::scale_of(row, dim);
    float square = 0;
#pragma omp simd reduction(+ : square)
    for (int k = 0; k < dim; k++) {
        numbers[k] = Format::get(row[k], scale);
        square += numbers[k] * numbers[k];
    }
    return square;
}

// Stores the numbers of a row, rounded at random where they do not fit; the random bits of number k
// are those of counter `first` + k.
template <class Format>
void write_row(const float* numbers, typename Format::Stored* row, int dim, Key key, uint32_t first) {
    float scale = 1;
    if constexpr (Format::SCALED) {
        float largest = 0, not_finite = 0;  // the latter is 0 or NaN, which a maximum would lose
#pragma omp simd reduction(max : largest) reduction(+ : not_finite)
        for (int k = 0; k < dim; k++) {
            largest = std::max(largest, std::abs(numbers[k]));
            not_finite += numbers[k] * 0.0f;
        }
        scale = Format::fit(row, dim, largest + not_finite);
    }
#pragma omp simd
    for (int k = 0; k < dim; k++) row[k] = Format::put(numbers[k], scale, key.bits(first + k));
}
