// reshape_and_cache_flash: write K and V of each token to its slot of a paged cache with contiguous heads.
//
//   key, value              [>= num_tokens, NUM_HEADS, HEAD_SIZE and HEAD_SIZE_V], items of SOURCE_BYTES; rows are
//                           KEY_STRIDE and VALUE_STRIDE items apart, the heads of a row adjacent
//   key_cache, value_cache  [num_blocks, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE and HEAD_SIZE_V], both with the strides
//                           BLOCK_STRIDE, TOKEN_STRIDE, HEAD_STRIDE in items, the last dim contiguous
//   slot_mapping            int64 [num_tokens]; slot = block * BLOCK_SIZE + offset; a slot outside
//                           [0, num_slots) writes nothing
//   k_scale, v_scale        float [NUM_HEADS] when SCALE_PER_HEAD, else one float; read when CACHE_FORMAT is not COPIED
//   total                   num_tokens * TOKEN_CHUNKS
//
// A row consists of chunks of VEC items. A chunk never crosses a head, so one flat index serves every number of heads
// and every layout; layouts differ in the place of a chunk. With BOTH a thread moves the same chunk of K and of V,
// otherwise one chunk of either. Loads of rows do not wait for the slot, except with SLOT_FIRST, which saves the rows
// of padding. Stores come last.
// A thread has UNROLL chunks, THREADS apart. It loads all their slots, then all their rows, converts the rows while the
// slots arrive, then stores all.
// A CTA has THREADS threads, and the grid as many CTAs as `total` needs.
//
// Semantics: docs/semantics.md.

#include "convert.cuh"
#include "types.cuh"

constexpr uint32_t HEAD_CHUNKS = HEAD_SIZE / VEC;
constexpr uint32_t HEAD_CHUNKS_V = HEAD_SIZE_V / VEC;
constexpr uint32_t KEY_CHUNKS = NUM_HEADS * HEAD_CHUNKS;
constexpr uint32_t VALUE_CHUNKS = NUM_HEADS * HEAD_CHUNKS_V;
constexpr uint32_t TOKEN_CHUNKS = BOTH ? KEY_CHUNKS : KEY_CHUNKS + VALUE_CHUNKS;

static_assert(HEAD_SIZE % VEC == 0 && HEAD_SIZE_V % VEC == 0, "a chunk must not cross a head");
static_assert(!BOTH || HEAD_SIZE == HEAD_SIZE_V, "the same chunk of K and of V");

constexpr int SOURCE_ACCESS = VEC * SOURCE_BYTES < 16 ? VEC * SOURCE_BYTES : 16;
constexpr int CACHE_ACCESS = VEC * CACHE_BYTES;
using SourceChunk = Chunk<VEC * SOURCE_BYTES>;
using CacheChunk = Chunk<VEC * CACHE_BYTES>;

__device__ __forceinline__ SourceChunk load_row(const uint8_t* rows, index_t token, int64_t stride, uint32_t chunk) {
    const int64_t item = int64_t(token) * stride + int64_t(chunk) * VEC;
    return load<VEC * SOURCE_BYTES, SOURCE_ACCESS>(rows + item * SOURCE_BYTES);
}

// A chunk of K or of V, counted inside its head.
struct Part {
    bool is_key;
    uint32_t head;
    uint32_t chunk;
};

// Returns the part for a token's chunk, with K and V of a head in turn: in a packed cache they are adjacent.
__device__ __forceinline__ Part part_of(uint32_t chunk) {
    const uint32_t in_head = chunk % (HEAD_CHUNKS + HEAD_CHUNKS_V);
    const bool is_key = in_head < HEAD_CHUNKS;
    return {is_key, chunk / (HEAD_CHUNKS + HEAD_CHUNKS_V), is_key ? in_head : in_head - HEAD_CHUNKS};
}

// Returns the bytes from the start of a plane to a chunk of a head, counted inside the head.
__device__ __forceinline__ int64_t place(int64_t slot, uint32_t head, uint32_t chunk) {
    const uint64_t at = uint64_t(slot);
    const int64_t item = int64_t(at / BLOCK_SIZE) * BLOCK_STRIDE + int64_t(at % BLOCK_SIZE) * TOKEN_STRIDE +
                         int64_t(head) * HEAD_STRIDE + int64_t(chunk) * VEC;
    return item * CACHE_BYTES;
}

// Returns the index, at most the last one; what a thread loads for an index beyond is never stored.
__device__ __forceinline__ index_t known(index_t flat, int64_t total) {
    return UNROLL == 1 || flat < index_t(total) ? flat : index_t(total) - 1;
}

extern "C" __global__ void __launch_bounds__(THREADS)
reshape_and_cache_flash(const uint8_t* __restrict__ key, const uint8_t* __restrict__ value,
                        uint8_t* __restrict__ key_cache, uint8_t* __restrict__ value_cache,
                        const int64_t* __restrict__ slot_mapping, const float* __restrict__ k_scale,
                        const float* __restrict__ v_scale, int64_t total, int64_t num_slots) {
    const index_t first = flat_index<UNROLL>();
    if (first >= index_t(total)) return;
    int64_t slot[UNROLL];
    SourceChunk k[UNROLL], v[UNROLL];  // without BOTH, k is the chunk of K or of V
    CacheChunk k_codes[UNROLL], v_codes[UNROLL];
    float own_k_scale[UNROLL], own_v_scale[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) slot[u] = slot_mapping[known(first + u * THREADS, total) / TOKEN_CHUNKS];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (SLOT_FIRST && !is_slot(slot[u], num_slots)) continue;
        const index_t flat = known(first + u * THREADS, total);
        const index_t token = flat / TOKEN_CHUNKS;
        const uint32_t chunk = uint32_t(flat % TOKEN_CHUNKS);
        if constexpr (BOTH) {
            k[u] = load_row(key, token, KEY_STRIDE, chunk);
            v[u] = load_row(value, token, VALUE_STRIDE, chunk);
            own_k_scale[u] = load_scale(k_scale, chunk / HEAD_CHUNKS);
            own_v_scale[u] = load_scale(v_scale, chunk / HEAD_CHUNKS);
        } else {
            const Part part = part_of(chunk);
            const uint32_t in_row = part.head * (part.is_key ? HEAD_CHUNKS : HEAD_CHUNKS_V) + part.chunk;
            k[u] = load_row(part.is_key ? key : value, token, part.is_key ? KEY_STRIDE : VALUE_STRIDE, in_row);
            own_k_scale[u] = load_scale(part.is_key ? k_scale : v_scale, part.head);
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (CACHE_FORMAT != COPIED && SLOT_FIRST && !is_slot(slot[u], num_slots)) continue;
        k_codes[u] = converted_now<VEC>(k[u], own_k_scale[u]);
        if constexpr (BOTH) v_codes[u] = converted_now<VEC>(v[u], own_v_scale[u]);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const index_t flat = first + u * THREADS;
        if (u && flat >= index_t(total)) return;
        if (!is_slot(slot[u], num_slots)) continue;
        const uint32_t chunk = uint32_t(flat % TOKEN_CHUNKS);
        if constexpr (BOTH) {
            const int64_t at = place(slot[u], chunk / HEAD_CHUNKS, chunk % HEAD_CHUNKS);
            store<CACHE_ACCESS>(key_cache + at, k_codes[u]);
            store<CACHE_ACCESS>(value_cache + at, v_codes[u]);
        } else {
            const Part part = part_of(chunk);
            const int64_t at = place(slot[u], part.head, part.chunk);
            store<CACHE_ACCESS>((part.is_key ? key_cache : value_cache) + at, k_codes[u]);
        }
    }
}
