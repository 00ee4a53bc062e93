// Questions about whole memories, which are read once.
//
//   memory   vectors of 16 bytes
//   found    int64, 0 before the launch
//
// Grids of any size; THREADS in a CTA.

using int64_t = long long;
using uint64_t = unsigned long long;

constexpr int UNROLL = 4;  // vectors of a thread that are on their way at once

// found becomes 1 where a word of 8 bytes is not `word`.
extern "C" __global__ void __launch_bounds__(THREADS)
differs(const ulonglong2* __restrict__ memory, uint64_t* __restrict__ found, int64_t vectors, int64_t word) {
    const int64_t step = int64_t(gridDim.x) * THREADS;
    uint64_t difference = 0;
    for (int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x; first < vectors; first += UNROLL * step) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int64_t at = first + u * step;
            if (at < vectors) {
                const ulonglong2 seen = __ldcs(memory + at);
                difference |= (seen.x ^ uint64_t(word)) | (seen.y ^ uint64_t(word));
            }
        }
    }
    if (difference) *found = 1;
}

// found becomes the sum of each word of 8 bytes times the odd number 2 * index + 1, modulo 2^64.
extern "C" __global__ void __launch_bounds__(THREADS)
checksum(const ulonglong2* __restrict__ memory, uint64_t* __restrict__ found, int64_t vectors) {
    const int64_t step = int64_t(gridDim.x) * THREADS;
    uint64_t sum = 0;
    for (int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x; first < vectors; first += UNROLL * step) {
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int64_t at = first + u * step;
            if (at < vectors) {
                const ulonglong2 seen = __ldcs(memory + at);
                sum += seen.x * uint64_t(4 * at + 1) + seen.y * uint64_t(4 * at + 3);
            }
        }
    }
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lanes);
    if (threadIdx.x % 32 == 0) atomicAdd(found, sum);
}
