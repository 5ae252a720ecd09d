// A float32 and its bits: through memcpy, a loop over them would gather numbers one by one.

#pragma once

#include <cstdint>

union Bits {
    uint32_t bits;
    float number;
};

inline float of_bits(uint32_t bits) { return Bits{bits}.number; }

inline uint32_t bits_of(float number) {
    Bits both;
    both.number = number;
    return both.bits;
}
