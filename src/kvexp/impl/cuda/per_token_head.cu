// per_token_head: write K and V of each token as 8-bit codes, behind each head its own scale.
//
//   key, value    [>= num_tokens, NUM_HEADS, HEAD_SIZE and HEAD_SIZE_V], items of SOURCE_BYTES; rows are KEY_STRIDE and
//                 VALUE_STRIDE items apart, the heads of a row adjacent
//   kv_cache      bytes [num_blocks, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE + 4 + HEAD_SIZE_V + 4], with the strides
//                 BLOCK_STRIDE, TOKEN_STRIDE, HEAD_STRIDE in bytes: codes of K, a float, codes of V, a float
//   slot_mapping  int64 [num_tokens]; slot = block * BLOCK_SIZE + offset; a slot outside [0, num_slots) writes nothing
//   total         num_tokens * NUM_HEADS
//
// LANES neighbouring threads write a cell: K and V of one head of a token. A lane has every LANES-th chunk of VEC items
// of either, in registers, and shuffles find the largest magnitudes, so that a row is read once and no load waits for
// the slot. SOURCE_ACCESS divides the addresses of all chunks, CACHE_ACCESS those of all cells.
// A lane has chunks of UNROLL cells, those of a CTA's other cells apart. A CTA has THREADS threads, whole warps.
//
// Semantics: docs/semantics.md.

#define BOUNDED_QUOTIENTS
#include "convert.cuh"
#include "types.cuh"

constexpr uint32_t ALL_LANES = 0xFFFFFFFF;
constexpr int SCALE_BYTES = 4;
constexpr uint32_t CHUNKS = HEAD_SIZE / VEC;
constexpr uint32_t CHUNKS_V = HEAD_SIZE_V / VEC;
constexpr int EACH = (CHUNKS + LANES - 1) / LANES;
constexpr int EACH_V = (CHUNKS_V + LANES - 1) / LANES;
constexpr float LARGEST_CODE = CACHE_FORMAT == INT8 ? 127.0f : 448.0f;
constexpr float LEAST_SCALE = 1e-6f;

static_assert(HEAD_SIZE % VEC == 0 && HEAD_SIZE_V % VEC == 0, "a chunk must not cross a head");
static_assert(LANES <= 32 && (LANES & (LANES - 1)) == 0, "shuffles are of warps");

// Bytes from the start of a cell.
constexpr int KEY_SCALE_AT = HEAD_SIZE;
constexpr int VALUE_AT = HEAD_SIZE + SCALE_BYTES;
constexpr int VALUE_SCALE_AT = VALUE_AT + HEAD_SIZE_V;

// V's codes begin one word behind a multiple of 8 bytes. Where cells are aligned to 8, what follows K's codes is stored
// in pieces of 8 bytes: K's scale and the first word of V's codes, the next two words, ..., the last and V's scale.
constexpr bool SHIFTED = VEC == 8 && CACHE_ACCESS >= 8;
constexpr uint32_t LAST_LANE = (CHUNKS_V - 1) % LANES;

using Items = Chunk<VEC * SOURCE_BYTES>;
using Codes = Chunk<VEC>;
using Scale = Chunk<SCALE_BYTES>;
using Piece = Chunk<8>;

// Returns the bytes of the widest store at a distance from the start of a cell, at most `most`.
__device__ constexpr int access_at(int distance, int most) {
    int bytes = most < CACHE_ACCESS ? most : CACHE_ACCESS;
    while (distance % bytes) bytes /= 2;
    return bytes;
}

// Loads this lane's chunks of a head; what is behind the last chunk is zeros.
template <uint32_t NUM_CHUNKS, int N>
__device__ __forceinline__ void load_head(const uint8_t* head, uint32_t lane, Items (&items)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const uint32_t chunk = i * LANES + lane;
        items[i] = Items{};
        if (NUM_CHUNKS % LANES == 0 || chunk < NUM_CHUNKS) {
            items[i] = load<VEC * SOURCE_BYTES, SOURCE_ACCESS>(head + chunk * (VEC * SOURCE_BYTES));
        }
    }
}

// Returns the scale of the head that these chunks and those of the other lanes are of. fmaxf ignores NaN.
template <int N>
__device__ __forceinline__ float scale_of(const Items (&items)[N]) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int item = 0; item < VEC; ++item) amax = fmaxf(amax, fabsf(source_item(items[i], item)));
    }
#pragma unroll
    for (int apart = LANES / 2; apart; apart /= 2) amax = fmaxf(amax, __shfl_xor_sync(ALL_LANES, amax, apart));
    return fmaxf(__fdiv_rn(amax, LARGEST_CODE), LEAST_SCALE);
}

// Stores this lane's chunks of codes from a distance on.
template <int AT, uint32_t NUM_CHUNKS, int N>
__device__ __forceinline__ void store_codes(uint8_t* cell, uint32_t lane, const Codes (&codes)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const uint32_t chunk = i * LANES + lane;
        if (NUM_CHUNKS % LANES == 0 || chunk < NUM_CHUNKS) {
            store<access_at(AT, VEC)>(cell + AT + chunk * VEC, codes[i]);
        }
    }
}

template <int AT>
__device__ __forceinline__ void store_scale(uint8_t* cell, float scale) {
    store<access_at(AT, SCALE_BYTES)>(cell + AT, Scale{__float_as_uint(scale)});
}

// Moves the codes of V by one word, behind the scale of K: each chunk takes the last word of the one before. Returns the
// last word of all, which LAST_LANE has.
__device__ __forceinline__ uint32_t shift(Codes (&codes)[EACH_V], float key_scale, uint32_t lane) {
    uint32_t before = __float_as_uint(key_scale);  // of lane 0
    uint32_t last = 0;
#pragma unroll
    for (int i = 0; i < EACH_V; ++i) {
        last = codes[i].word[Codes::WORDS - 1];
        const uint32_t neighbour = __shfl_sync(ALL_LANES, last, (lane + LANES - 1) % LANES, LANES);
#pragma unroll
        for (int w = Codes::WORDS - 1; w; --w) codes[i].word[w] = codes[i].word[w - 1];
        codes[i].word[0] = typename Codes::word_t(lane ? neighbour : before);
        before = neighbour;
    }
    return last;
}

extern "C" __global__ void __launch_bounds__(THREADS)
per_token_head(const uint8_t* __restrict__ key, const uint8_t* __restrict__ value, uint8_t* __restrict__ kv_cache,
               const int64_t* __restrict__ slot_mapping, int64_t total, int64_t num_slots) {
    constexpr uint32_t CTA_CELLS = THREADS / LANES;
    const index_t first = flat_index<UNROLL>() / LANES;  // counts CTAs of UNROLL times their cells
    const uint32_t lane = threadIdx.x % LANES;
    int64_t slot[UNROLL];
    uint32_t head[UNROLL];
    Items k[UNROLL][EACH], v[UNROLL][EACH_V];
    Codes k_codes[UNROLL][EACH], v_codes[UNROLL][EACH_V];
    float k_scale[UNROLL], v_scale[UNROLL];
    uint32_t last[UNROLL];
    // Every lane has a cell, since shuffles need all; one behind the last repeats it and stores nothing.
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const index_t own = first + u * CTA_CELLS;
        const index_t cell = own < index_t(total) ? own : index_t(total) - 1;
        const int64_t token = int64_t(cell / NUM_HEADS);
        head[u] = uint32_t(cell % NUM_HEADS);
        slot[u] = slot_mapping[token];
        load_head<CHUNKS>(key + (token * KEY_STRIDE + int64_t(head[u]) * HEAD_SIZE) * SOURCE_BYTES, lane, k[u]);
        load_head<CHUNKS_V>(value + (token * VALUE_STRIDE + int64_t(head[u]) * HEAD_SIZE_V) * SOURCE_BYTES, lane, v[u]);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        k_scale[u] = scale_of(k[u]);
        v_scale[u] = scale_of(v[u]);
#pragma unroll
        for (int i = 0; i < EACH; ++i) k_codes[u][i] = converted_now<VEC>(k[u][i], k_scale[u]);
#pragma unroll
        for (int i = 0; i < EACH_V; ++i) v_codes[u][i] = converted_now<VEC>(v[u][i], v_scale[u]);
        if constexpr (SHIFTED) last[u] = shift(v_codes[u], k_scale[u], lane);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (first + u * CTA_CELLS >= index_t(total)) return;
        if (!is_slot(slot[u], num_slots)) continue;
        const uint64_t at = uint64_t(slot[u]);
        uint8_t* cell = kv_cache + int64_t(at / BLOCK_SIZE) * BLOCK_STRIDE + int64_t(at % BLOCK_SIZE) * TOKEN_STRIDE +
                        int64_t(head[u]) * HEAD_STRIDE;
        store_codes<0, CHUNKS>(cell, lane, k_codes[u]);
        if constexpr (SHIFTED) {
            store_codes<KEY_SCALE_AT, CHUNKS_V>(cell, lane, v_codes[u]);
            if (lane == LAST_LANE) {
                store<8>(cell + VALUE_SCALE_AT - 4, Piece{last[u], __float_as_uint(v_scale[u])});
            }
        } else {
            store_codes<VALUE_AT, CHUNKS_V>(cell, lane, v_codes[u]);
            if (lane == 0) {
                store_scale<KEY_SCALE_AT>(cell, k_scale[u]);
                store_scale<VALUE_SCALE_AT>(cell, v_scale[u]);
            }
        }
    }
}
