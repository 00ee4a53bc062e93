// fp8_ds_mla: write a row of latent attention as 512 e4m3 codes, four scales and 64 items to its slot.
//
//   kv_c          [>= num_tokens, 512], items of 2 bytes, rows KV_C_STRIDE items apart
//   k_pe          [>= num_tokens, 64], likewise, K_PE_STRIDE items apart; read with HAS_ROPE, else zeros are written
//   kv_cache      bytes [num_blocks, BLOCK_SIZE, 656], with the strides BLOCK_STRIDE and TOKEN_STRIDE in bytes: codes,
//                 a float for each 128 of them, then k_pe
//   slot_mapping  int64 [num_tokens]; slot = block * BLOCK_SIZE + offset; a slot outside [0, num_slots) writes nothing
//
// A warp writes a row: a lane converts 16 items of kv_c, and eight lanes have the items of a scale. Lanes 0 to 7 move
// k_pe too, and lane 8 stores the scales. Rows stay in registers, and no load waits for the slot. SOURCE_ACCESS and
// CACHE_ACCESS divide the addresses of all rows.
// A warp has UNROLL rows, the warps of a CTA apart. A CTA has THREADS threads, whole warps.
//
// Semantics: docs/semantics.md.

#include "convert.cuh"
#include "types.cuh"

constexpr uint32_t ALL_LANES = 0xFFFFFFFF;
constexpr uint32_t WARP = 32;
constexpr int LANE_ITEMS = 16;
constexpr int TILE_LANES = 8;
constexpr int TILES = 4;
constexpr int PIECE = 16;  // bytes that a lane stores at once
constexpr uint32_t ROPE_LANES = 8;
constexpr int SCALES_AT = 512;
constexpr int ROPE_AT = 528;
constexpr uint32_t EXPONENT = 0x7F800000;

using LaneItems = Chunk<LANE_ITEMS * SOURCE_BYTES>;
using Piece = Chunk<PIECE>;

// Returns the bits of the smallest power of two that is not below max(amax / 448, 1e-4), of an infinity an infinity.
__device__ __forceinline__ uint32_t scale_bits(float amax) {
    const float least = fmaxf(__fdiv_rn(amax, 448.0f), 1e-4f);
    return (__float_as_uint(least) + 0x7FFFFF) & EXPONENT;
}

// Returns 1 / scale, which is exact.
__device__ __forceinline__ float inverse(uint32_t scale) {
    return __uint_as_float(scale == EXPONENT ? 0 : 0x7F000000 - scale);
}

// Returns the largest magnitude of the tile that these items are of. fmaxf ignores NaN.
__device__ __forceinline__ float tile_amax(const LaneItems& items) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < LANE_ITEMS; ++i) amax = fmaxf(amax, fabsf(source_item(items, i)));
#pragma unroll
    for (int apart = TILE_LANES / 2; apart; apart /= 2) {
        amax = fmaxf(amax, __shfl_xor_sync(ALL_LANES, amax, apart));
    }
    return amax;
}

__device__ __forceinline__ Piece codes_of(const LaneItems& items, float factor) {
    Piece codes;
#pragma unroll
    for (int w = 0; w < Piece::WORDS; ++w) {
        uint32_t word = 0;
#pragma unroll
        for (int p = 0; p < 2; ++p) {
            const float low = __fmul_rn(source_item(items, 4 * w + 2 * p), factor);
            const float high = __fmul_rn(source_item(items, 4 * w + 2 * p + 1), factor);
            word |= uint32_t(fp8x2(low, high)) << (16 * p);
        }
        codes.word[w] = word;
    }
    return codes;
}

extern "C" __global__ void __launch_bounds__(THREADS)
fp8_ds_mla(const uint8_t* __restrict__ kv_c, const uint8_t* __restrict__ k_pe, uint8_t* __restrict__ kv_cache,
           const int64_t* __restrict__ slot_mapping, int64_t num_tokens, int64_t num_slots) {
    constexpr uint32_t CTA_ROWS = THREADS / WARP;
    const index_t first = flat_index<UNROLL>() / WARP;  // counts CTAs of UNROLL times their warps
    const uint32_t lane = threadIdx.x % WARP;
    if (first >= index_t(num_tokens)) return;
    int64_t slot[UNROLL];
    LaneItems items[UNROLL];
    Piece codes[UNROLL], tail[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const index_t own = first + u * CTA_ROWS;
        const int64_t token = own < index_t(num_tokens) ? own : num_tokens - 1;
        slot[u] = slot_mapping[token];
        items[u] = load<LANE_ITEMS * SOURCE_BYTES, SOURCE_ACCESS>(
            kv_c + (token * KV_C_STRIDE + lane * LANE_ITEMS) * SOURCE_BYTES);
        tail[u] = Piece{};
        if (HAS_ROPE && lane < ROPE_LANES) {
            tail[u] = load<PIECE, SOURCE_ACCESS>(k_pe + token * K_PE_STRIDE * SOURCE_BYTES + lane * PIECE);
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const uint32_t scale = scale_bits(tile_amax(items[u]));
        codes[u] = codes_of(items[u], inverse(scale));
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const uint32_t bits = __shfl_sync(ALL_LANES, scale, tile * TILE_LANES);
            if (lane == ROPE_LANES) tail[u].word[tile] = bits;
        }
        // See converted_now in convert.cuh.
#pragma unroll
        for (int w = 0; w < Piece::WORDS; ++w) asm volatile("" : "+r"(codes[u].word[w]));
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (u && first + u * CTA_ROWS >= index_t(num_tokens)) return;
        if (!is_slot(slot[u], num_slots)) continue;
        const uint64_t at = uint64_t(slot[u]);
        uint8_t* row = kv_cache + int64_t(at / BLOCK_SIZE) * BLOCK_STRIDE + int64_t(at % BLOCK_SIZE) * TOKEN_STRIDE;
        store<CACHE_ACCESS>(row + lane * PIECE, codes[u]);
        if (lane <= ROPE_LANES) {
            store<CACHE_ACCESS>(row + (lane < ROPE_LANES ? ROPE_AT + lane * PIECE : SCALES_AT), tail[u]);
        }
    }
}
