// indexer_k_quant_and_cache: write a key as 128 e4m3 codes and a scale to its slot.
//
//   k             [>= num_tokens, 128], items of 2 bytes, rows K_STRIDE items apart
//   kv_cache      bytes [num_blocks, BLOCK_SIZE * 132], blocks BLOCK_STRIDE bytes apart: BLOCK_SIZE rows of codes, then
//                 as many floats
//   slot_mapping  int64 [num_tokens]; slot = block * BLOCK_SIZE + offset; a slot outside [0, num_slots) writes nothing
//
// Eight lanes write a row: each converts 16 items and stores their codes, the first one stores the scale. Rows stay in
// registers, and no load waits for the slot. SOURCE_ACCESS and CACHE_ACCESS divide the addresses of all rows of k and
// of all blocks. With POWER_OF_TWO a scale is the smallest power of two that is not below.
// Eight lanes have UNROLL rows, the rows of a CTA apart. A CTA has THREADS threads, whole warps.
//
// Semantics: docs/semantics.md.

#include "convert.cuh"
#include "types.cuh"

constexpr uint32_t ALL_LANES = 0xFFFFFFFF;
constexpr uint32_t WARP = 32;
constexpr uint32_t ROW_LANES = 8;
constexpr int LANE_ITEMS = 16;
constexpr int KEY_BYTES = 128;  // of a row's codes
constexpr int SCALE_BYTES = 4;
constexpr int SCALE_ACCESS = CACHE_ACCESS < SCALE_BYTES ? CACHE_ACCESS : SCALE_BYTES;
constexpr float LEAST_AMAX = 1e-4f;
constexpr float LARGEST = 448.0f;
constexpr uint32_t EXPONENT = 0x7F800000;

using LaneItems = Chunk<LANE_ITEMS * SOURCE_BYTES>;

// Returns the largest magnitude of the row that these items are of. fmaxf ignores NaN.
__device__ __forceinline__ float row_amax(const LaneItems& items) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < LANE_ITEMS; ++i) amax = fmaxf(amax, fabsf(source_item(items, i)));
#pragma unroll
    for (int apart = ROW_LANES / 2; apart; apart /= 2) {
        amax = fmaxf(amax, __shfl_xor_sync(ALL_LANES, amax, apart));
    }
    return amax;
}

__device__ __forceinline__ float scale_of(float amax) {
    const float scale = __fdiv_rn(fmaxf(amax, LEAST_AMAX), LARGEST);
    // By its bits: the exponent, and one more unless the mantissa is 0. An infinity stays one.
    return POWER_OF_TWO ? __uint_as_float((__float_as_uint(scale) + 0x7FFFFF) & EXPONENT) : scale;
}

// Returns the codes of items over their scale.
__device__ __forceinline__ Chunk<LANE_ITEMS> codes_of(const LaneItems& items, float scale) {
    if constexpr (!POWER_OF_TWO) return converted<LANE_ITEMS>(items, scale);
    // The inverse is exact, and so the product is the quotient; of an infinity it is 0.
    const uint32_t bits = __float_as_uint(scale);
    const float inverse = __uint_as_float(bits == EXPONENT ? 0 : 0x7F000000 - bits);
    Chunk<LANE_ITEMS> codes;
#pragma unroll
    for (int w = 0; w < codes.WORDS; ++w) {
        uint32_t word = 0;
#pragma unroll
        for (int item = 4 * w; item < 4 * w + 4; item += 2) {
            const float low = __fmul_rn(source_item(items, item), inverse);
            const float high = __fmul_rn(source_item(items, item + 1), inverse);
            word |= uint32_t(fp8x2(low, high)) << (8 * (item % 4));
        }
        codes.word[w] = word;
    }
    return codes;
}

extern "C" __global__ void __launch_bounds__(THREADS)
indexer_k_quant_and_cache(const uint8_t* __restrict__ k, uint8_t* __restrict__ kv_cache,
                          const int64_t* __restrict__ slot_mapping, int64_t num_tokens, int64_t num_slots) {
    constexpr uint32_t CTA_ROWS = THREADS / ROW_LANES;
    const index_t first = flat_index<UNROLL>() / ROW_LANES;  // counts CTAs of UNROLL times their rows
    const uint32_t lane = threadIdx.x % ROW_LANES;
    // Whole warps leave, since the lanes of one exchange maxima.
    if (first - threadIdx.x % WARP / ROW_LANES >= index_t(num_tokens)) return;
    int64_t slot[UNROLL];
    LaneItems items[UNROLL];
    Chunk<LANE_ITEMS> codes[UNROLL];
    Chunk<SCALE_BYTES> scale[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const index_t own = first + u * CTA_ROWS;
        const int64_t token = own < index_t(num_tokens) ? own : num_tokens - 1;
        slot[u] = slot_mapping[token];
        items[u] = load<LANE_ITEMS * SOURCE_BYTES, SOURCE_ACCESS>(
            k + (token * K_STRIDE + lane * LANE_ITEMS) * SOURCE_BYTES);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const float by = scale_of(row_amax(items[u]));
        codes[u] = codes_of(items[u], by);
        scale[u].word[0] = __float_as_uint(by);
        // See converted_now in convert.cuh.
#pragma unroll
        for (int w = 0; w < codes[u].WORDS; ++w) asm volatile("" : "+r"(codes[u].word[w]));
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (first + u * CTA_ROWS >= index_t(num_tokens)) return;
        if (!is_slot(slot[u], num_slots)) continue;
        const uint64_t at = uint64_t(slot[u]);
        const uint32_t offset = at % BLOCK_SIZE;
        uint8_t* block = kv_cache + int64_t(at / BLOCK_SIZE) * BLOCK_STRIDE;
        store<CACHE_ACCESS>(block + int64_t(offset) * KEY_BYTES + lane * LANE_ITEMS, codes[u]);
        if (lane == 0) {
            store<SCALE_ACCESS>(block + int64_t(BLOCK_SIZE) * KEY_BYTES + int64_t(offset) * SCALE_BYTES, scale[u]);
        }
    }
}
