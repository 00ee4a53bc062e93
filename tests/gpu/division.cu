// Counts where the division of convert.cuh differs from IEEE division.
//
// Macros: those of convert.cuh; THREADS of a CTA; SIGNIFICANDS of a source item.

#include "convert.cuh"

// Significands of a source item, from 1 to below 2, by all of a scale, one a thread; 2^23 threads. Of 16 bits all are
// tried, of 32 as many as SIGNIFICANDS, spread over all, others in each thread.
extern "C" __global__ void quotients(unsigned long long* wrong) {
    const uint32_t thread = blockIdx.x * THREADS + threadIdx.x;
    const Divisor by(__uint_as_float(0x3f800000 | thread));
    uint32_t found = 0;
    for (uint32_t i = 0; i < SIGNIFICANDS; ++i) {
        const uint32_t spread = (i * 2654435761u + thread * 40503u) & 0x7fffff;
        const float x = SOURCE_BYTES == 4 ? __uint_as_float(0x3f800000 | spread) : 1.0f + float(i) / float(SIGNIFICANDS);
        found += __float_as_uint(by.quotient<true>(x)) != __float_as_uint(__fdiv_rn(x, by.scale));
    }
    if (found || !by.mild) atomicAdd(wrong, found + !by.mild);
}

// All 2^16 source items of 16 bits, one a thread, by each of the scales; of 32 bits those whose upper half these are, with a
// lower half that is zero for every other scale.
extern "C" __global__ void codes(unsigned long long* wrong, const float* scales, int64_t num_scales) {
    const uint32_t thread = blockIdx.x * THREADS + threadIdx.x;
    for (int64_t i = 0; i < num_scales; ++i) {
        const uint32_t lower = i % 2 ? thread * 40503u & 0xffff : 0;
        const Chunk<SOURCE_BYTES> item = {
            Chunk<SOURCE_BYTES>::word_t(SOURCE_BYTES == 2 ? thread : thread << 16 | lower)};
        const uint8_t right = uint8_t(fp8x2(__fdiv_rn(source_item(item, 0), scales[i]), 0.0f));
        if (converted<1>(item, scales[i]).word[0] != right) atomicAdd(wrong, 1ull);
    }
}
