// Pixels on their way to a network, in one pass each: mirrored images, and numbers around 0.

#include <cstdint>
#include <cstring>

namespace {

using Bytes = uint8_t __attribute__((vector_size(16)));

const Bytes TURNED = {0, 12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2};  // five pixels, from 1

// A row of pixels of three bytes, the last one first.
void turn_row(const uint8_t* from, uint8_t* to, int64_t width) {
    int64_t done = 0;
    // What a store puts in front of its five pixels, the next one writes over.
    for (; done + 6 <= width; done += 5) {
        Bytes pixels;
        std::memcpy(&pixels, from + 3 * done, sizeof pixels);
        pixels = __builtin_shuffle(pixels, TURNED);
        std::memcpy(to + 3 * (width - done - 5) - 1, &pixels, sizeof pixels);
    }
    for (; done < width; done++) std::memcpy(to + 3 * (width - done - 1), from + 3 * done, 3);
}

}  // namespace

// Images (count, height, width, 3) from one place to another; those that are `chosen`, mirrored.
extern "C" void pixels_mirror(const uint8_t* from, uint8_t* to, const bool* chosen, int64_t count,
                              int64_t height, int64_t width) {
    const int64_t row = 3 * width, image = height * row;
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++) {
        if (!chosen[i]) std::memcpy(to + i * image, from + i * image, image);
        for (int64_t y = i * height; chosen[i] && y < (i + 1) * height; y++)
            turn_row(from + y * row, to + y * row, width);
    }
}

// (pixel - 127.5) / scale.
extern "C" void pixels_normalise(const uint8_t* pixels, float* numbers, int64_t count, float scale) {
#pragma omp parallel for simd
    for (int64_t i = 0; i < count; i++) numbers[i] = (float(pixels[i]) - 127.5f) / scale;
}
