// reshape_and_cache: write K and V of each token to its slot of a head-major paged cache, where the offset in the block
// is an inner dim.
//
//   key, value    [>= num_tokens, NUM_HEADS, HEAD_SIZE], items of SOURCE_BYTES; rows are KEY_STRIDE and VALUE_STRIDE
//                 items apart, the heads of a row adjacent
//   key_cache     [num_blocks, NUM_HEADS, HEAD_SIZE / X, BLOCK_SIZE, X]; X items fill 16 bytes; blocks are
//                 KEY_BLOCK_STRIDE items apart, each contiguous
//   value_cache   [num_blocks, NUM_HEADS, HEAD_SIZE, BLOCK_SIZE]; blocks are VALUE_BLOCK_STRIDE items apart, each
//                 contiguous
//   slot_mapping  int64 [num_tokens]; slot = block * BLOCK_SIZE + offset; a slot outside [0, num_slots) writes nothing
//   k_scale, v_scale  float [NUM_HEADS] when SCALE_PER_HEAD, else one float; read when CACHE_FORMAT is not COPIED
//   group_shift   a group is 2^group_shift tokens
//
// A row consists of CHUNKS chunks of X items. Neighbouring lanes take the same chunk of a group's tokens; then come the
// next chunks, then the next group. Where slots are consecutive, a group's items of V at one place of the head are
// contiguous, and so are its chunks of K. Where they are not, every item of V is in a different sector of 32 bytes; a
// warp then transposes its chunks first, so that neighbouring lanes write neighbouring items of one token: four sectors
// of a line at once instead of one. With BOTH a thread moves the same chunk of K and of V, otherwise one chunk of
// either. A thread reads in pieces of SOURCE_VEC items; it writes K in pieces of KEY_VEC items and V item by item.
// Stores come last. There are groups * TOKEN_CHUNKS << group_shift threads, THREADS in a CTA.
//
// Loads of rows do not wait for the slot, except with SLOT_FIRST, which saves the rows of padding.
//
// With EXCHANGE groups exchange tokens. A span is an aligned run of as many slots as a group has tokens; its items of V
// fill whole sectors. If a run of slots began inside a span, every group would write parts of two spans. So a group
// takes the first tokens of the next group, as long as they continue from its last slot inside that span, and gives its
// own first ones away by the same rule. A group has all tokens from one such border to the next, so each token belongs
// to exactly one group, whatever the slots are. A lane that gets another token reads that token's row instead.
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
constexpr int64_t PADDING = -1;
constexpr uint32_t LANES = 32;
constexpr uint32_t WARP = 0xffffffff;
// CTAs for which a multiprocessor has threads and must have registers. By default the compiler uses up to 96 registers
// per thread, to keep values that it could recompute in the rare case that a group has more tokens than lanes.
constexpr int SM_CTAS = 2048 / THREADS;

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

// Returns the byte of the chunk's first item in the value cache; its items are ITEM_STRIDE apart.
__device__ __forceinline__ int64_t value_place(uint64_t slot, uint32_t chunk) {
    const int64_t item = int64_t(slot / BLOCK_SIZE) * VALUE_BLOCK_STRIDE + int64_t(chunk) * X * BLOCK_SIZE +
                         int64_t(slot % BLOCK_SIZE);
    return item * CACHE_BYTES;
}

// Returns the token, or the last one if it is past the last, so that its slot and row can be read.
__device__ __forceinline__ index_t known(index_t token, int64_t num_tokens) {
    return token < index_t(num_tokens) ? token : index_t(num_tokens) - 1;
}

// Returns the slot of a token; PADDING past the last one. The load is unconditional, so that loads overlap.
__device__ __forceinline__ int64_t slot_of(const int64_t* slot_mapping, index_t token, int64_t num_tokens) {
    const int64_t slot = slot_mapping[known(token, num_tokens)];
    return token < index_t(num_tokens) ? slot : PADDING;
}

// A thread's chunks of one token: of K and of V with BOTH, otherwise k is the chunk of either; the same for scales.
struct Chunks {
    SourceChunk k, v;
};
struct Scales {
    float k, v;
};

__device__ __forceinline__ Chunks load_chunks(const uint8_t* key, const uint8_t* value, index_t token,
                                              uint32_t chunk) {
    Chunks chunks;
    if constexpr (BOTH) {
        chunks.k = load_row(key, token, KEY_STRIDE, chunk);
        chunks.v = load_row(value, token, VALUE_STRIDE, chunk);
    } else {
        const bool is_key = chunk < CHUNKS;
        chunks.k = load_row(is_key ? key : value, token, is_key ? KEY_STRIDE : VALUE_STRIDE,
                            is_key ? chunk : chunk - CHUNKS);
    }
    return chunks;
}

__device__ __forceinline__ Scales load_scales(const float* k_scale, const float* v_scale, uint32_t chunk) {
    if constexpr (BOTH) return {load_scale(k_scale, chunk / HEAD_CHUNKS), load_scale(v_scale, chunk / HEAD_CHUNKS)};
    const bool is_key = chunk < CHUNKS;
    return {load_scale(is_key ? k_scale : v_scale, (is_key ? chunk : chunk - CHUNKS) / HEAD_CHUNKS), 1.0f};
}

// Returns how many tokens the previous group takes from the group that begins with `first`: not all, and the same
// number in all lanes of both groups.
__device__ __forceinline__ int taken(const int64_t* slot_mapping, index_t first, int64_t num_tokens,
                                     uint32_t group_shift) {
    const uint32_t last_of_span = (1u << group_shift) - 1;
    const uint32_t in_group = threadIdx.x & last_of_span;
    const int64_t slot = slot_of(slot_mapping, first + in_group, num_tokens);
    const int64_t before = slot_of(slot_mapping, first - 1, num_tokens);  // the token before 0 counts as past the last
    const bool goes_on = in_group < (~uint32_t(before) & last_of_span) && slot == before + 1 + in_group;
    const uint32_t group_s = __ballot_sync(WARP, goes_on) >> (threadIdx.x % LANES - in_group);
    return __ffs(~group_s) - 1;
}

// Returns whether there are at most half as many runs of consecutive slots as written tokens; the same in all lanes.
__device__ __forceinline__ bool slots_follow(int64_t slot, bool written, uint32_t group_shift) {
    const int64_t before = __shfl_up_sync(WARP, slot, 1);
    const uint32_t in_group = threadIdx.x & ((1u << group_shift) - 1);
    const uint32_t runs = __popc(__ballot_sync(WARP, written && (in_group == 0 || slot != before + 1)));
    return 2 * runs <= __popc(__ballot_sync(WARP, written));
}

// Stores each lane's chunk of V at its place, unless that is NOWHERE. All lanes of a warp must take part.
__device__ __forceinline__ void store_values(uint8_t* value_cache, int64_t slot, int64_t place,
                                             const CacheChunk& codes, uint32_t group_shift) {
    if (slots_follow(slot, place != NOWHERE, group_shift)) {
        if (place == NOWHERE) return;
#pragma unroll
        for (int i = 0; i < X; ++i) {
            const Item code = {Item::word_t(bits_of<CACHE_BYTES>(codes, i * CACHE_BYTES))};
            *reinterpret_cast<Item*>(value_cache + place + i * ITEM_STRIDE) = code;
        }
        return;
    }
    __shared__ CacheChunk turned[THREADS];
    const uint32_t lane = threadIdx.x % LANES;
    CacheChunk* const chunks = turned + (threadIdx.x - lane);
    __syncwarp();  // all reads of an earlier call have finished
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

extern "C" __global__ void __launch_bounds__(THREADS, SM_CTAS)
reshape_and_cache(const uint8_t* __restrict__ key, const uint8_t* __restrict__ value, uint8_t* __restrict__ key_cache,
                  uint8_t* __restrict__ value_cache, const int64_t* __restrict__ slot_mapping,
                  const float* __restrict__ k_scale, const float* __restrict__ v_scale, int64_t num_tokens,
                  int64_t group_shift, int64_t num_slots) {
    const uint32_t shift = uint32_t(group_shift);
    const int group = 1 << shift;
    const index_t flat = flat_index();
    const uint32_t chunk = uint32_t((flat >> shift) % TOKEN_CHUNKS);
    const index_t first = (flat >> shift) / TOKEN_CHUNKS << shift;
    const int in_group = int(uint32_t(flat) & (group - 1));
    Chunks chunks;
    if (!SLOT_FIRST) chunks = load_chunks(key, value, known(first + in_group, num_tokens), chunk);
    const Scales scales = load_scales(k_scale, v_scale, chunk);
    // Relative to `first`: the start of the group's tokens, and this lane's token.
    int begin = 0;
    int place = in_group;
    if constexpr (EXCHANGE) {
        // A group that fills a span exactly exchanges no tokens, which its own slots show.
        const uint32_t in_span = uint32_t(slot_of(slot_mapping, first + in_group, num_tokens)) & (group - 1);
        const bool at_border = in_group == 0 || in_group == group - 1;
        if (__any_sync(WARP, at_border && in_span != in_group)) {
            begin = taken(slot_mapping, first, num_tokens, shift);
            place += taken(slot_mapping, first + group, num_tokens, shift);
        }
    }
    // The first pass takes the group's last tokens, one per lane: a whole span, where slots are consecutive. Further
    // passes take what remains where a run begins.
    do {
        const index_t token = first + index_t(place);
        const int64_t slot = place < begin ? PADDING : slot_of(slot_mapping, token, num_tokens);
        const bool written = is_slot(slot, num_slots);
        if (written && (SLOT_FIRST || place != in_group)) chunks = load_chunks(key, value, token, chunk);
        if constexpr (BOTH) {
            if (written) store_key(key_cache, uint64_t(slot), chunk, converted<X>(chunks.k, scales.k));
            const int64_t at = written ? value_place(uint64_t(slot), chunk) : NOWHERE;
            store_values(value_cache, slot, at, converted<X>(chunks.v, scales.v), shift);
        } else {
            const bool is_key = chunk < CHUNKS;
            const CacheChunk codes = converted<X>(chunks.k, scales.k);
            if (is_key && written) store_key(key_cache, uint64_t(slot), chunk, codes);
            const int64_t at = !is_key && written ? value_place(uint64_t(slot), chunk - CHUNKS) : NOWHERE;
            store_values(value_cache, slot, at, codes, shift);
        }
        place -= group;
    } while (EXCHANGE && __any_sync(WARP, place >= begin));
}
