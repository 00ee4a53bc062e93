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
// whole sectors of 32 bytes, and its chunks of K one run, wherever in a block the run begins. With BOTH a thread moves
// the same chunk of K and of V, else one chunk of either. A thread reads in pieces of SOURCE_VEC items; it writes K in
// pieces of KEY_VEC and V item by item. Loads do not wait for the slot; stores come last.
// As many threads as groups * TOKEN_CHUNKS << group_shift, THREADS in a CTA.
//
// Semantics: docs/semantics.md.

#include "convert.cuh"
#include "types.cuh"

constexpr int X = 16 / CACHE_BYTES;
constexpr uint32_t HEAD_CHUNKS = HEAD_SIZE / X;
constexpr uint32_t CHUNKS = NUM_HEADS * HEAD_CHUNKS;
constexpr uint32_t TOKEN_CHUNKS = BOTH ? CHUNKS : 2 * CHUNKS;

static_assert(HEAD_SIZE % X == 0, "a chunk must not cross a head");
static_assert(X % SOURCE_VEC == 0 && X % KEY_VEC == 0, "a chunk is whole pieces");

constexpr int SOURCE_ACCESS = SOURCE_VEC * SOURCE_BYTES < 16 ? SOURCE_VEC * SOURCE_BYTES : 16;
using SourceChunk = Chunk<X * SOURCE_BYTES>;
using CacheChunk = Chunk<X * CACHE_BYTES>;

__device__ __forceinline__ SourceChunk load_row(const uint8_t* rows, index_t token, int64_t stride, uint32_t chunk) {
    const int64_t item = int64_t(token) * stride + int64_t(chunk) * X;
    return load<X * SOURCE_BYTES, SOURCE_ACCESS>(rows + item * SOURCE_BYTES);
}

__device__ __forceinline__ void store_key(uint8_t* key_cache, uint64_t slot, uint32_t chunk, const CacheChunk& codes) {
    const int64_t item = int64_t(slot / BLOCK_SIZE) * KEY_BLOCK_STRIDE +
                         (int64_t(chunk) * BLOCK_SIZE + int64_t(slot % BLOCK_SIZE)) * X;
    store<KEY_VEC * CACHE_BYTES>(key_cache + item * CACHE_BYTES, codes);
}

__device__ __forceinline__ void store_value(uint8_t* value_cache, uint64_t slot, uint32_t chunk,
                                            const CacheChunk& codes) {
    const int64_t item = int64_t(slot / BLOCK_SIZE) * VALUE_BLOCK_STRIDE + int64_t(chunk) * X * BLOCK_SIZE +
                         int64_t(slot % BLOCK_SIZE);
    uint8_t* to = value_cache + item * CACHE_BYTES;
    using Item = Chunk<CACHE_BYTES>;
#pragma unroll
    for (int i = 0; i < X; ++i) {
        const Item code = {typename Item::word_t(bits_of<CACHE_BYTES>(codes, i * CACHE_BYTES))};
        *reinterpret_cast<Item*>(to + int64_t(i) * BLOCK_SIZE * CACHE_BYTES) = code;
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
    // Ends the lanes past the last token of the last group, and the threads past the last group as well.
    if (token >= index_t(num_tokens)) return;
    const int64_t slot = slot_mapping[token];
    if constexpr (BOTH) {
        const SourceChunk k = load_row(key, token, KEY_STRIDE, chunk);
        const SourceChunk v = load_row(value, token, VALUE_STRIDE, chunk);
        const float own_k_scale = load_scale(k_scale, chunk / HEAD_CHUNKS);
        const float own_v_scale = load_scale(v_scale, chunk / HEAD_CHUNKS);
        if (!is_slot(slot, num_slots)) return;
        store_key(key_cache, uint64_t(slot), chunk, converted<X>(k, own_k_scale));
        store_value(value_cache, uint64_t(slot), chunk, converted<X>(v, own_v_scale));
    } else {
        const bool is_key = chunk < CHUNKS;
        const uint32_t own = is_key ? chunk : chunk - CHUNKS;
        const SourceChunk row = load_row(is_key ? key : value, token, is_key ? KEY_STRIDE : VALUE_STRIDE, own);
        const float scale = load_scale(is_key ? k_scale : v_scale, own / HEAD_CHUNKS);
        if (!is_slot(slot, num_slots)) return;
        const CacheChunk codes = converted<X>(row, scale);
        if (is_key) {
            store_key(key_cache, uint64_t(slot), own, codes);
        } else {
            store_value(value_cache, uint64_t(slot), own, codes);
        }
    }
}
