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
// chunks, then the next group: where slots follow one another, a group's items of V for one place of the head are one
// run, and its chunks of K another. Where they do not, every item of V has a sector of 32 bytes of its own, and a warp
// turns its chunks first, so that neighbouring lanes write neighbouring items of one token: four sectors of a line at
// once instead of one. With BOTH a thread moves the same chunk of K and of V, else one chunk of either. A thread reads
// in pieces of SOURCE_VEC items; it writes K in pieces of KEY_VEC and V item by item. Stores come last.
// As many threads as groups * TOKEN_CHUNKS << group_shift, THREADS in a CTA.
//
// Loads do not wait for the slot, unless SLOT_FIRST says so, which spares the rows of padding.
//
// With EXCHANGE groups exchange tokens. A span is as many slots as a group has tokens, aligned, which V's items fill
// whole sectors of. Slots in a row that begin inside a span would have every group write parts of two. So a group takes
// the first tokens of the next one, as long as they go on from its last slot and in that span, and gives its own first
// ones away by the same rule. It has all tokens from one such border to the next, so each token is one group's,
// whatever the slots are. A lane whose token is another then reads that one's row instead.
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
// CTAs that a multiprocessor has threads for, and must have registers for. Left alone, the compiler takes up to 96 a
// thread, to keep what it can compute again where a group has more tokens than its lanes, which is seldom.
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

// Where the chunk's first item lies in the value cache, in bytes; the next ones are ITEM_STRIDE apart.
__device__ __forceinline__ int64_t value_place(uint64_t slot, uint32_t chunk) {
    const int64_t item = int64_t(slot / BLOCK_SIZE) * VALUE_BLOCK_STRIDE + int64_t(chunk) * X * BLOCK_SIZE +
                         int64_t(slot % BLOCK_SIZE);
    return item * CACHE_BYTES;
}

// The token, or for any past it the last one, whose slot and row can be read.
__device__ __forceinline__ index_t known(index_t token, int64_t num_tokens) {
    return token < index_t(num_tokens) ? token : index_t(num_tokens) - 1;
}

// The slot of a token; PADDING past the last one. The load is not behind a test, so that several run together.
__device__ __forceinline__ int64_t slot_of(const int64_t* slot_mapping, index_t token, int64_t num_tokens) {
    const int64_t slot = slot_mapping[known(token, num_tokens)];
    return token < index_t(num_tokens) ? slot : PADDING;
}

// A thread's chunks of one token: of K and of V with BOTH, else k is the chunk of either. The scales alike.
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

// How many tokens of the group that begins with `first` the group before it takes, fewer than all: the same for all
// lanes of a group, and for both groups.
__device__ __forceinline__ int taken(const int64_t* slot_mapping, index_t first, int64_t num_tokens,
                                     uint32_t group_shift) {
    const uint32_t last_of_span = (1u << group_shift) - 1;
    const uint32_t in_group = threadIdx.x & last_of_span;
    const int64_t slot = slot_of(slot_mapping, first + in_group, num_tokens);
    const int64_t before = slot_of(slot_mapping, first - 1, num_tokens);  // the one before 0 is past the last, too
    const bool goes_on = in_group < (~uint32_t(before) & last_of_span) && slot == before + 1 + in_group;
    const uint32_t group_s = __ballot_sync(WARP, goes_on) >> (threadIdx.x % LANES - in_group);
    return __ffs(~group_s) - 1;
}

// Whether runs of following slots are half as many as the warp's written tokens, or fewer; the same for all its lanes.
__device__ __forceinline__ bool slots_follow(int64_t slot, bool written, uint32_t group_shift) {
    const int64_t before = __shfl_up_sync(WARP, slot, 1);
    const uint32_t in_group = threadIdx.x & ((1u << group_shift) - 1);
    const uint32_t runs = __popc(__ballot_sync(WARP, written && (in_group == 0 || slot != before + 1)));
    return 2 * runs <= __popc(__ballot_sync(WARP, written));
}

// Each lane's chunk of V to its place; none where that is NOWHERE. All lanes of a warp take part.
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
    __syncwarp();  // whoever reads from an earlier turn has done so
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
    // Counted from `first`: where the group's tokens begin, and this lane's token.
    int begin = 0;
    int place = in_group;
    if constexpr (EXCHANGE) {
        // A group from a span's first slot to its last takes nothing and gives nothing, which its own slots tell.
        const uint32_t in_span = uint32_t(slot_of(slot_mapping, first + in_group, num_tokens)) & (group - 1);
        const bool at_border = in_group == 0 || in_group == group - 1;
        if (__any_sync(WARP, at_border && in_span != in_group)) {
            begin = taken(slot_mapping, first, num_tokens, shift);
            place += taken(slot_mapping, first + group, num_tokens, shift);
        }
    }
    // First as many as a group's lanes, the last ones: a span, where slots follow one another. Where those begin, the
    // group has some more.
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
