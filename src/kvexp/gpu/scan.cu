// Poison a cache's storage, and scan memory: each kernel reads it once.
//
//   memory   vectors of 16 bytes
//   found    int64, the result; each kernel says which value it must hold before the launch
//
// Grids of any size; THREADS in a CTA.

using int64_t = long long;
using uint64_t = unsigned long long;

constexpr int UNROLL = 4;  // vectors that a thread loads at once

// The first byte that differs, given the differing bits of two words, x before y.
__device__ int first_byte(uint64_t x, uint64_t y) { return ((x ? __ffsll(x) : 64 + __ffsll(y)) - 1) / 8; }

// The poison of the storage's 8-byte word at byte 8 * index. scan.py computes the same on a CPU.
__device__ uint64_t poison(uint64_t index) { return (index + 1) * 0x9E3779B97F4A7C15ull; }

// Lowers found, before the launch the largest int64, to the index of the first byte that is not poison, if any.
extern "C" __global__ void __launch_bounds__(THREADS)
unpoisoned(const ulonglong2* __restrict__ memory, int64_t* __restrict__ found, int64_t vectors) {
    const int64_t step = int64_t(gridDim.x) * THREADS;
    const int64_t none = *found;
    int64_t least = none;
    for (int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x; first < vectors; first += UNROLL * step) {
        ulonglong2 bits[UNROLL];
        uint64_t any = 0;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int64_t at = first + u * step;
            const ulonglong2 asked = make_ulonglong2(poison(2 * at), poison(2 * at + 1));
            bits[u] = at < vectors ? __ldcs(memory + at) : asked;
            bits[u].x ^= asked.x;
            bits[u].y ^= asked.y;
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

// Fills the vectors with poison; the first is vector `begin` of the storage.
extern "C" __global__ void __launch_bounds__(THREADS)
fill(ulonglong2* __restrict__ memory, int64_t vectors, int64_t begin) {
    const int64_t step = int64_t(gridDim.x) * THREADS;
    for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < vectors; i += step)
        memory[i] = make_ulonglong2(poison(2 * (begin + i)), poison(2 * (begin + i) + 1));
}

#if WORD == 1
using word_t = unsigned char;
#elif WORD == 2
using word_t = unsigned short;
#elif WORD == 4
using word_t = unsigned int;
#else
using word_t = uint64_t;
#endif

// Fills the rows of `slots` with poison, a word of WORD bytes at a time; every size is in such words.
//
//   storage   whole words
//   slots     int64 [num_slots], all valid
//   inner     int64 [row_words]: from a slot's first word to each word of its row
extern "C" __global__ void __launch_bounds__(THREADS)
fill_rows(word_t* __restrict__ storage, const int64_t* __restrict__ slots, const int64_t* __restrict__ inner,
          int64_t num_slots, int64_t row_words, int64_t block_size, int64_t base, int64_t block_stride,
          int64_t slot_stride) {
    const int64_t step = int64_t(gridDim.x) * THREADS;
    for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < num_slots * row_words; i += step) {
        const int64_t slot = slots[i / row_words];
        const int64_t at = base + slot / block_size * block_stride + slot % block_size * slot_stride + inner[i % row_words];
        const int64_t byte = at * WORD;
        storage[at] = word_t(poison(byte / 8) >> (8 * (byte % 8)));
    }
}

// Adds to found, before the launch 0, each 8-byte word times the odd number 2 * index + 1, modulo 2^64.
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
