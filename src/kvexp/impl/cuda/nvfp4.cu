// nvfp4: write keys and values as e2m1 codes, with an e4m3 scale for each 16 of them, to pages.
//
//   key           [>= num_tokens, NUM_HEADS, HEAD_SIZE], items of 2 bytes, heads adjacent, rows KEY_STRIDE items apart
//   value         likewise, VALUE_STRIDE items apart
//   kv_cache      bytes, pages BLOCK_STRIDE apart: codes of K, scales of K, codes of V, scales of V; in each of them the
//                 row of a head is slot * SLOT_ROWS + head * HEAD_ROWS, of HEAD_SIZE / 2 codes or HEAD_SIZE / 16 scales
//   slot_mapping  int64 [num_tokens]; slot = block * BLOCK_SIZE + offset; a slot outside [0, num_slots) writes nothing
//   k_scale       float, one; unless it is positive and finite, nothing of K is written
//   v_scale       the same for V
//
// A thread writes a tile of 16 items: 8 bytes of codes and a scale. One flat index over (token, tile) counts the tiles
// of K, then those of V. Items stay in registers, and no load waits for the slot. SOURCE_ACCESS divides the addresses of
// all rows, CODES_ACCESS those of all codes. A thread has UNROLL tiles, THREADS apart.
//
// Semantics: docs/semantics.md.

#include "convert.cuh"
#include "types.cuh"

constexpr int ITEMS = 16;
constexpr int CODE_BYTES = ITEMS / 2;
constexpr uint32_t HEAD_TILES = HEAD_SIZE / ITEMS;
constexpr uint32_t ROW_TILES = NUM_HEADS * HEAD_TILES;
constexpr int64_t PAGE_TILES = int64_t(BLOCK_SIZE) * ROW_TILES;
constexpr int64_t SIDE_BYTES = PAGE_TILES * (CODE_BYTES + 1);
constexpr uint32_t INFINITY_BITS = 0x7F800000;
constexpr uint32_t LARGEST_SCALE = 0x7E;
constexpr uint32_t SIGNS = 0x80008000;  // of two items

using Tile = Chunk<ITEMS * SOURCE_BYTES>;

struct Quantized {
    Chunk<CODE_BYTES> codes;
    uint32_t scale;
};

// Returns the larger of two pairs of items without signs; with PROPAGATE_NAN it is NaN where either is, else NaN is less
// than any number.
template <bool PROPAGATE_NAN>
__device__ __forceinline__ uint32_t larger_pair(uint32_t a, uint32_t b) {
    uint32_t larger;
    if constexpr (SOURCE_IS_BFLOAT16 && PROPAGATE_NAN) {
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    } else if constexpr (SOURCE_IS_BFLOAT16) {
        asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    } else if constexpr (PROPAGATE_NAN) {
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    } else {
        asm("max.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    }
    return larger;
}

// Returns the largest magnitude of a tile, without PROPAGATE_NAN of the items that are no NaN.
template <bool PROPAGATE_NAN>
__device__ __forceinline__ float tile_amax(const Tile& tile) {
    uint32_t pair = 0;
#pragma unroll
    for (int w = 0; w < Tile::WORDS; ++w) pair = larger_pair<PROPAGATE_NAN>(pair, tile.word[w] & ~SIGNS);
    const Chunk<4> largest = {larger_pair<PROPAGATE_NAN>(pair, pair >> 16)};
    return source_item(largest, 0);
}

// Returns the number of an e4m3 code without sign. Its bits, moved to those of a float, are 2^120 times too small.
__device__ __forceinline__ float scale_number(uint32_t code) {
    return __fmul_rn(__uint_as_float(code << 20), 0x1p120f);
}

// Returns 2^23 plus the e2m1 code of a number from 0 on; of one above 7 more than that. The codes of numbers below 2, 4
// and 8 are the nearest integers of 2 x, x + 2 and x / 2 + 4, a tie the even one, and the least of the three is right.
// Adding 2^23 rounds so.
__device__ __forceinline__ float rounded(float x) {
    constexpr float MAGIC = 0x1p23f;
    return fminf(__fmaf_rn(x, 2.0f, MAGIC),
                 fminf(__fadd_rn(x, MAGIC + 2.0f), __fmaf_rn(x, 0.5f, MAGIC + 4.0f)));
}

// Returns the magnitude of `x / by` as `rounded` does. With USUAL the quotient is at most 6.5, no NaN, and `by` moderate:
// see Divisor in convert.cuh, whose division by one corrected reciprocal this is.
template <bool USUAL>
__device__ __forceinline__ float rounded_quotient(float x, float by, float reciprocal) {
    x = fabsf(x);
    if constexpr (USUAL) {
        const float quotient = __fmul_rn(x, reciprocal);
        return rounded(__fmaf_rn(-__fmaf_rn(quotient, by, -x), reciprocal, quotient));
    }
    // fmaxf makes NaN the code 0.
    return fminf(fmaxf(rounded(__fdiv_rn(x, by)), 0x1p23f), 0x1p23f + 7.0f);
}

// Returns a byte for each pair of eight items: their signs as the highest bits of its two codes.
__device__ __forceinline__ uint32_t sign_bits(const uint32_t* words) {
    const uint32_t first = __byte_perm(words[0], words[1], 0x7531), last = __byte_perm(words[2], words[3], 0x7531);
    const uint32_t even = __byte_perm(first, last, 0x6420), odd = __byte_perm(first, last, 0x7531);
    return ((even >> 4) & 0x08080808) | (odd & 0x80808080);
}

template <bool USUAL>
__device__ __forceinline__ Chunk<CODE_BYTES> codes_of(const Tile& tile, float by, float reciprocal) {
    constexpr int HALF = ITEMS / 2;
    constexpr uint32_t MAGIC_BITS = 0x4B000000;  // of 2^23
    Chunk<CODE_BYTES> codes;
#pragma unroll
    for (int w = 0; w < 2; ++w) {
        uint32_t word = 0;
#pragma unroll
        for (int i = HALF - 1; i >= 0; --i) {
            const float code = rounded_quotient<USUAL>(source_item(tile, w * HALF + i), by, reciprocal);
            word = (word << 4) + __float_as_uint(code);
        }
        // Eight times the bits of 2^23 were added, each shifted by 4 bits more.
        codes.word[w] = (word - MAGIC_BITS * 0x11111111u) | sign_bits(tile.word + w * HALF / 2);
    }
    return codes;
}

__device__ __forceinline__ Quantized quantized(const Tile& tile, float global_scale) {
    float amax = tile_amax<true>(tile);
    const bool has_nan = amax != amax;
    if (has_nan) amax = tile_amax<false>(tile);
    const float least = __fdiv_rn(amax, __fmul_rn(global_scale, 6.0f));
    // Of two infinities the quotient is NaN.
    const uint32_t scale = __float_as_uint(amax) == INFINITY_BITS ? LARGEST_SCALE : fp8x2(least, 0.0f) & 0xFF;
    const float by = __fmul_rn(scale_number(scale), global_scale);
    const float reciprocal = __frcp_rn(by);
    Quantized made;
    made.scale = scale;
    if (!has_nan && by >= 0x1p-60f && by <= 0x1p60f && __fmul_rn(amax, reciprocal) <= 6.5f) {
        made.codes = codes_of<true>(tile, by, reciprocal);
    } else if (scale) {
        made.codes = codes_of<false>(tile, by, reciprocal);
    } else {
        made.codes = {sign_bits(tile.word), sign_bits(tile.word + 4)};
    }
    return made;
}

extern "C" __global__ void __launch_bounds__(THREADS)
nvfp4(const uint8_t* __restrict__ key, const uint8_t* __restrict__ value, uint8_t* __restrict__ kv_cache,
      const int64_t* __restrict__ slot_mapping, const float* __restrict__ k_scale, const float* __restrict__ v_scale,
      int64_t num_tiles, int64_t num_slots) {
    const index_t first = flat_index<UNROLL>();
    if (first >= index_t(num_tiles)) return;
    int64_t slot[UNROLL];
    float scale[UNROLL];
    Tile tile[UNROLL];
    Quantized made[UNROLL];
    uint32_t in_row[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const index_t own = first + u * THREADS;
        const index_t index = own < index_t(num_tiles) ? own : first;
        const int64_t token = index / (2 * ROW_TILES);
        in_row[u] = uint32_t(index % (2 * ROW_TILES));
        const bool is_value = in_row[u] >= ROW_TILES;
        const int64_t item = token * (is_value ? VALUE_STRIDE : KEY_STRIDE) + (in_row[u] - is_value * ROW_TILES) * ITEMS;
        slot[u] = slot_mapping[token];
        scale[u] = load_scale(is_value ? v_scale : k_scale, 0);
        tile[u] = load<ITEMS * SOURCE_BYTES, SOURCE_ACCESS>((is_value ? value : key) + item * SOURCE_BYTES);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        made[u] = quantized(tile[u], scale[u]);
        // See converted_now in convert.cuh.
        asm volatile("" : "+r"(made[u].codes.word[0]), "+r"(made[u].codes.word[1]), "+r"(made[u].scale));
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (u && first + u * THREADS >= index_t(num_tiles)) return;
        const bool is_valid = scale[u] > 0.0f && scale[u] < __uint_as_float(INFINITY_BITS);
        if (!is_slot(slot[u], num_slots) || !is_valid) continue;
        const uint64_t at = uint64_t(slot[u]);
        const bool is_value = in_row[u] >= ROW_TILES;
        const uint32_t in_side = in_row[u] - is_value * ROW_TILES;
        const int64_t row = int64_t(at % BLOCK_SIZE) * SLOT_ROWS + int64_t(in_side / HEAD_TILES) * HEAD_ROWS;
        const int64_t place = row * HEAD_TILES + in_side % HEAD_TILES;
        uint8_t* side = kv_cache + int64_t(at / BLOCK_SIZE) * BLOCK_STRIDE + is_value * SIDE_BYTES;
        store<CODES_ACCESS>(side + place * CODE_BYTES, made[u].codes);
        side[PAGE_TILES * CODE_BYTES + place] = uint8_t(made[u].scale);
    }
}
