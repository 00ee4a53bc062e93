// The equal copy, which reads and writes given numbers of bytes, and a kernel that does nothing.
//
//   from   READS * writes vectors of 16 bytes; each vector written folds READS of them
//   extra  extras vectors of 16 bytes that are read besides (the op's slots)
//   to     writes vectors of 16 bytes
//
// grid.x = ceil(writes / (THREADS * UNROLL)), block.x = THREADS.

using int64_t = long long;

__device__ __forceinline__ void fold(uint4& into, const uint4 other) {
    into.x ^= other.x;
    into.y ^= other.y;
    into.z ^= other.z;
    into.w ^= other.w;
}

extern "C" __global__ void __launch_bounds__(THREADS)
copy(const uint4* __restrict__ from, const uint4* __restrict__ extra, uint4* __restrict__ to, int64_t writes,
     int64_t extras) {
    const int64_t first = int64_t(blockIdx.x) * (THREADS * UNROLL) + threadIdx.x;
    uint4 loaded[UNROLL][READS];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const int64_t at = first + u * THREADS;
#pragma unroll
        for (int r = 0; r < READS; ++r) {
            if (at < writes) loaded[u][r] = from[r * writes + at];
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const int64_t at = first + u * THREADS;
        if (at >= writes) continue;
        uint4 out = loaded[u][0];
#pragma unroll
        for (int r = 1; r < READS; ++r) fold(out, loaded[u][r]);
        if (at < extras) fold(out, extra[at]);
        to[at] = out;
    }
}

// The same of so many reads for each vector written that they are a loop: what one call reads, and hardly writes.
extern "C" __global__ void __launch_bounds__(THREADS)
fold_many(const uint4* __restrict__ from, const uint4* __restrict__ extra, uint4* __restrict__ to, int64_t writes,
          int64_t extras, int64_t reads) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= writes) return;
    uint4 out = at < extras ? extra[at] : uint4{0, 0, 0, 0};
#pragma unroll 8
    for (int64_t r = 0; r < reads; ++r) fold(out, from[r * writes + at]);
    to[at] = out;
}

extern "C" __global__ void __launch_bounds__(THREADS) empty() {}
