// A pixel's channels, a vector at a time.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

template <int LANES>
struct Vector {
    typedef float Floats __attribute__((vector_size(4 * LANES)));
    Floats v;

    static Vector load(const float* from) {
        Vector result;
        std::memcpy(&result.v, from, sizeof result.v);
        return result;
    }

    void store(float* to) const { std::memcpy(to, &v, sizeof v); }

    void add_product(Vector a, Vector b) { v += a.v * b.v; }

    // Each channel's partner in its place: the halves of 64 bits exchanged.
    Vector partners() const {
        typedef unsigned long long Pairs __attribute__((vector_size(4 * LANES)));
        Pairs pairs;
        std::memcpy(&pairs, &v, sizeof v);
        pairs = pairs << 32 | pairs >> 32;
        Vector result;
        std::memcpy(&result.v, &pairs, sizeof v);
        return result;
    }
};

// Calls body(first channel, number of lanes as a constant).
template <int GROUP, typename Body>
void each_vector(int64_t channels, Body body) {
    int64_t c = 0;
    for (; c + 16 <= channels; c += 16) body(c, std::integral_constant<int, 16>());
    for (; c < channels; c += GROUP) body(c, std::integral_constant<int, GROUP>());
}
