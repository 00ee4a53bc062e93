// reshape_and_cache_flash: K and V of each token into its slot of a paged cache whose rows are in one piece a head.
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
// A row is chunks of VEC items. A chunk never crosses a head, so one flat index serves every head count and every
// layout; layouts differ in where a chunk goes. With BOTH a thread moves the same chunk of K and of V, else one chunk
// of either. Loads do not wait for the slot, unless SLOT_FIRST says so, which spares the rows of padding; stores come
// last.
// A thread has UNROLL chunks, THREADS apart: all their slots are asked for, then all their rows, which are converted
// while the slots are on their way; then all are stored.
// THREADS in a CTA, and as many CTAs as `total` needs.
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

// The part that a token's chunk is, K and V of a head in turn: in one cache of both they are neighbours.
__device__ __forceinline__ Part part_of(uint32_t chunk) {
    const uint32_t in_head = chunk % (HEAD_CHUNKS + HEAD_CHUNKS_V);
    const bool is_key = in_head < HEAD_CHUNKS;
    return {is_key, chunk / (HEAD_CHUNKS + HEAD_CHUNKS_V), is_key ? in_head : in_head - HEAD_CHUNKS};
}

// Bytes from a plane's begin to where a chunk of a head lives, the chunk counted inside the head.
__device__ __forceinline__ int64_t place(int64_t slot, uint32_t head, uint32_t chunk) {
    const uint64_t at = uint64_t(slot);
    const int64_t item = int64_t(at / BLOCK_SIZE) * BLOCK_STRIDE + int64_t(at % BLOCK_SIZE) * TOKEN_STRIDE +
                         int64_t(head) * HEAD_STRIDE + int64_t(chunk) * VEC;
    return item * CACHE_BYTES;
}

// The place, or the last one instead of any that follows it: what is read for those is stored by nobody.
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
    SourceChunk k[UNROLL], v[UNROLL];  // without BOTH k is the chunk of either
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
