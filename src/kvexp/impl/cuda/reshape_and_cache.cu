// reshape_and_cache: K and V of each token into its slot of a head-major paged cache, where the offset in the block is
// an inner dim.
//
//   key, value    [>= num_tokens, NUM_HEADS, HEAD_SIZE], items of SOURCE_BYTES; rows are KEY_STRIDE and VALUE_STRIDE
//                 items apart, the heads of a row adjacent
//   key_cache     [num_blocks, NUM_HEADS, HEAD_SIZE / X, BLOCK_SIZE, X]; X items fill 16 bytes; blocks are
//                 KEY_BLOCK_STRIDE items apart, each in one piece
//   value_cache   [num_blocks, NUM_HEADS, HEAD_SIZE, BLOCK_SIZE]; blocks are VALUE_BLOCK_STRIDE items apart, each in
//                 one piece
//   slot_mapping  int64 [num_tokens]; slot = block * BLOCK_SIZE + offset; a slot outside [0, num_slots) writes nothing
//   k_scale, v_scale  float [NUM_HEADS] when SCALE_PER_HEAD, else one float; read when CACHE_FORMAT is not COPIED
//   group_shift   a group is 2^group_shift tokens
//
// A row is CHUNKS chunks of X items. Neighbouring lanes take the same chunk of a group's tokens, then come the next
// chunks, then the next group: where slots follow one another, a group's items of V for one place of the head fill
// whole sectors of 32 bytes, and its chunks of K one run, wherever in a block the run begins. Where they do not, every
// item of V has a sector of its own, and a warp turns its chunks first, so that neighbouring lanes write neighbouring
// items of one token: four sectors of a line at once instead of one. With BOTH a thread moves the same chunk of K and
// of V, else one chunk of either. A thread reads in pieces of SOURCE_VEC items; it writes K in pieces of KEY_VEC and V
// item by item. Loads do not wait for the slot, unless SLOT_FIRST says so; stores come last.
// As many threads as groups * TOKEN_CHUNKS << group_shift, THREADS in a CTA.
//
// Semantics: docs/semantics.md.

#include "convert.cuh"
#include "types.cuh"

constexpr int X = 16 / CACHE_BYTES;
constexpr uint32_t HEAD_CHUNKS = HEAD_SIZE / X;
constexpr uint32_t CHUNKS = NUM_HEADS * HEAD_CHUNKS;
constexpr uint32_t TOKEN_CHUNKS = BOTH ? CHUNKS : 2 * CHUNKS;
constexpr int64_t ITEM_STRIDE = int64_t(BLOCK_SIZE) * CACHE_BYTES;  // bytes from one item of V to the next of its token
constexpr int64_t NOWHERE = -1;
constexpr uint32_t LANES = 32;
constexpr uint32_t WARP = 0xffffffff;

static_assert(HEAD_SIZE % X == 0, "a chunk must not cross a head");
static_assert(THREADS % LANES == 0, "a CTA is whole warps");
static_assert(X % SOURCE_VEC == 0 && X % KEY_VEC == 0, "a chunk is whole pieces");

constexpr int SOURCE_ACCESS = SOURCE_VEC * SOURCE_BYTES < 16 ? SOURCE_VEC * SOURCE_BYTES : 16;
using SourceChunk = Chunk<X * SOURCE_BYTES>;
using CacheChunk = Chunk<X * CACHE_BYTES>;
using Item = Chunk<CACHE_BYTES>;

__device__ __forceinline__ SourceChunk load_row(const uint8_t* rows, index_t token, int64_t stride, uint32_t chunk) {
    const int64_t item = int64_t(token) * stride + int64_t(chunk) * X;
    return load<X * SOURCE_BYTES, SOURCE_ACCESS>(rows + item * SOURCE_BYTES);
}

__device__ __forceinline__ void store_key(uint8_t* key_cache, uint64_t slot, uint32_t chunk, const CacheChunk& codes) {
    const int64_t item = int64_t(slot / BLOCK_SIZE) * KEY_BLOCK_STRIDE +
                         (int64_t(chunk) * BLOCK_SIZE + int64_t(slot % BLOCK_SIZE)) * X;
    store<KEY_VEC * CACHE_BYTES>(key_cache + item * CACHE_BYTES, codes);
}

// Where the chunk's first item lies in the value cache, in bytes; the next ones are ITEM_STRIDE apart.
__device__ __forceinline__ int64_t value_place(uint64_t slot, uint32_t chunk) {
    const int64_t item = int64_t(slot / BLOCK_SIZE) * VALUE_BLOCK_STRIDE + int64_t(chunk) * X * BLOCK_SIZE +
                         int64_t(slot % BLOCK_SIZE);
    return item * CACHE_BYTES;
}

// Whether most of the warp's tokens have the slot after their neighbour's; the same for all its lanes.
__device__ __forceinline__ bool slots_follow(int64_t slot, uint32_t group_shift) {
    const int64_t before = __shfl_up_sync(WARP, slot, 1);
    const uint32_t in_group = threadIdx.x & ((1u << group_shift) - 1);
    const uint32_t follow = __popc(__ballot_sync(WARP, in_group != 0 && slot == before + 1));
    return 2 * follow > LANES - (LANES >> group_shift);
}

// Each lane's chunk of V to its place; none where that is NOWHERE. All lanes of a warp take part.
__device__ __forceinline__ void store_values(uint8_t* value_cache, int64_t place, const CacheChunk& codes,
                                             bool along_tokens, uint32_t group_shift) {
    if (along_tokens) {
        if (place == NOWHERE) return;
#pragma unroll
        for (int i = 0; i < X; ++i) {
            const Item code = {Item::word_t(bits_of<CACHE_BYTES>(codes, i * CACHE_BYTES))};
            *reinterpret_cast<Item*>(value_cache + place + i * ITEM_STRIDE) = code;
        }
        return;
    }
    if (!__any_sync(WARP, place != NOWHERE)) return;
    __shared__ CacheChunk turned[THREADS];
    const uint32_t lane = threadIdx.x % LANES;
    CacheChunk* const chunks = turned + (threadIdx.x - lane);
    chunks[lane] = codes;
    __syncwarp();
    const uint32_t token_items = (LANES * X) >> group_shift;  // of one token in this warp
#pragma unroll
    for (int pass = 0; pass < X; ++pass) {
        const uint32_t flat = pass * LANES + lane;
        const uint32_t token = (flat << group_shift) / (LANES * X);
        const uint32_t item = flat & (token_items - 1);
        const uint32_t owner = ((item / X) << group_shift) | token;
        const int64_t to = __shfl_sync(WARP, place, owner);
        if (to != NOWHERE) {
            const Item code = reinterpret_cast<const Item*>(chunks + owner)[item % X];
            *reinterpret_cast<Item*>(value_cache + to + int64_t(item % X) * ITEM_STRIDE) = code;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
reshape_and_cache(const uint8_t* __restrict__ key, const uint8_t* __restrict__ value, uint8_t* __restrict__ key_cache,
                  uint8_t* __restrict__ value_cache, const int64_t* __restrict__ slot_mapping,
                  const float* __restrict__ k_scale, const float* __restrict__ v_scale, int64_t num_tokens,
                  int64_t group_shift, int64_t num_slots) {
    const index_t flat = flat_index();
    const uint32_t shift = uint32_t(group_shift);
    const index_t group_chunk = flat >> shift;
    const index_t token = ((group_chunk / TOKEN_CHUNKS) << shift) | (flat & ((index_t(1) << shift) - 1));
    const uint32_t chunk = uint32_t(group_chunk % TOKEN_CHUNKS);
    // Past the last token there are lanes of the last group and threads of the last CTA: they read the last token's
    // row and write nothing.
    const bool known = token < index_t(num_tokens);
    const index_t row = known ? token : index_t(num_tokens) - 1;
    const int64_t slot = slot_mapping[row];
    if constexpr (SLOT_FIRST) {
        if (!__any_sync(WARP, is_slot(slot, num_slots))) return;
    }
    if constexpr (BOTH) {
        const SourceChunk k = load_row(key, row, KEY_STRIDE, chunk);
        const SourceChunk v = load_row(value, row, VALUE_STRIDE, chunk);
        const float own_k_scale = load_scale(k_scale, chunk / HEAD_CHUNKS);
        const float own_v_scale = load_scale(v_scale, chunk / HEAD_CHUNKS);
        const bool written = known && is_slot(slot, num_slots);
        if (written) store_key(key_cache, uint64_t(slot), chunk, converted<X>(k, own_k_scale));
        store_values(value_cache, written ? value_place(uint64_t(slot), chunk) : NOWHERE,
                     converted<X>(v, own_v_scale), slots_follow(slot, shift), shift);
    } else {
        const bool is_key = chunk < CHUNKS;
        const uint32_t own = is_key ? chunk : chunk - CHUNKS;
        const SourceChunk items = load_row(is_key ? key : value, row, is_key ? KEY_STRIDE : VALUE_STRIDE, own);
        const float scale = load_scale(is_key ? k_scale : v_scale, own / HEAD_CHUNKS);
        const bool written = known && is_slot(slot, num_slots);
        const CacheChunk codes = converted<X>(items, scale);
        if (is_key && written) store_key(key_cache, uint64_t(slot), own, codes);
        store_values(value_cache, !is_key && written ? value_place(uint64_t(slot), own) : NOWHERE, codes,
                     slots_follow(slot, shift), shift);
    }
}
