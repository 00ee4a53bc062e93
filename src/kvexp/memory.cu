// Questions about whole memories, which are read once.
//
//   memory   vectors of 16 bytes
//   found    int64, the answer; what it is before the launch is said with each question
//
// Grids of any size; THREADS in a CTA.

using int64_t = long long;
using uint64_t = unsigned long long;

constexpr int UNROLL = 4;  // vectors of a thread that are on their way at once

// Of two words' bits that differ, x before y: the first byte.
__device__ int first_byte(uint64_t x, uint64_t y) { return ((x ? __ffsll(x) : 64 + __ffsll(y)) - 1) / 8; }

// found, as large as it can be, becomes the index of the first byte that differs from that of `word`, where one does.
extern "C" __global__ void __launch_bounds__(THREADS)
other(const ulonglong2* __restrict__ memory, int64_t* __restrict__ found, int64_t vectors, int64_t word) {
    const int64_t step = int64_t(gridDim.x) * THREADS;
    const int64_t none = *found;
    int64_t least = none;
    for (int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x; first < vectors; first += UNROLL * step) {
        ulonglong2 bits[UNROLL];
        uint64_t any = 0;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int64_t at = first + u * step;
            bits[u] = at < vectors ? __ldcs(memory + at) : make_ulonglong2(word, word);
            bits[u].x ^= uint64_t(word);
            bits[u].y ^= uint64_t(word);
            any |= bits[u].x | bits[u].y;
        }
        if (!any) continue;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int64_t at = 16 * (first + u * step) + first_byte(bits[u].x, bits[u].y);
            if ((bits[u].x | bits[u].y) && at < least) least = at;
        }
    }
    if (least != none) atomicMin(found, least);
}

// found, 0, becomes the sum of each word of 8 bytes times the odd number 2 * index + 1, modulo 2^64.
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
