// reshape_and_cache_flash: K and V of each token into its slot of a paged cache.
//
//   key, value              [>= num_tokens, NUM_HEADS, HEAD_SIZE], floats of SOURCE_BITS; rows are KEY_STRIDE and
//                           VALUE_STRIDE items apart, the heads of a row adjacent
//   key_cache, value_cache  [num_blocks, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE] with the strides BLOCK_STRIDE,
//                           TOKEN_STRIDE, HEAD_STRIDE in items, the last dim contiguous
//   slot_mapping            int64 [num_tokens]; slot = block * BLOCK_SIZE + offset; a slot outside
//                           [0, num_slots) writes nothing
//   k_scale, v_scale        one float each, read when CACHE_FP8
//   total                   num_tokens * TOKEN_CHUNKS
//
// A row is CHUNKS chunks of VEC items. A chunk never crosses a head, so one flat index serves every head count
// and every layout; layouts differ in where a chunk goes. With BOTH a thread moves the same chunk of K and of V,
// else one chunk of either. Loads do not wait for the slot; stores come last.
// grid.x = ceil(total / THREADS), block.x = THREADS.
//
// Semantics: docs/semantics.md. Compiled by NVRTC with no headers.

using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;

// Tokens times chunks can pass 2^32; 32 bits divide faster.
#if WIDE_INDEX
using index_t = uint64_t;
#else
using index_t = uint32_t;
#endif

constexpr uint32_t HEAD_CHUNKS = HEAD_SIZE / VEC;
constexpr uint32_t CHUNKS = NUM_HEADS * HEAD_CHUNKS;
constexpr uint32_t TOKEN_CHUNKS = BOTH ? CHUNKS : 2 * CHUNKS;

constexpr int SOURCE_BYTES = SOURCE_BITS / 8;
constexpr int CACHE_BYTES = CACHE_FP8 ? 1 : SOURCE_BYTES;

static_assert(HEAD_SIZE % VEC == 0, "a chunk must not cross a head");

template <bool condition, typename A, typename B>
struct choose {
    using type = A;
};
template <typename A, typename B>
struct choose<false, A, B> {
    using type = B;
};

// N bytes that one thread loads or stores at once, in pieces of at most 16 bytes. Words, not bytes: the compiler
// takes a byte array apart, which costs instructions and makes it wait for the load before it issues the next.
template <int N>
struct alignas(N < 16 ? N : 16) Chunk {
    using word_t = typename choose<N >= 4, uint32_t, typename choose<N == 2, uint16_t, uint8_t>::type>::type;
    static constexpr int WORD_BYTES = sizeof(word_t);
    word_t word[N / WORD_BYTES];
};

using SourceChunk = Chunk<VEC * SOURCE_BYTES>;
using CacheChunk = Chunk<VEC * CACHE_BYTES>;

__device__ __forceinline__ float source_item(const SourceChunk& chunk, int i) {
    if constexpr (SOURCE_BITS == 32) {
        return __uint_as_float(chunk.word[i]);
    } else {
        constexpr int PER_WORD = SourceChunk::WORD_BYTES / 2;
        const uint32_t bits = (uint32_t(chunk.word[i / PER_WORD]) >> (i % PER_WORD * 16)) & 0xFFFF;
        if constexpr (SOURCE_IS_BFLOAT16) return __uint_as_float(bits << 16);
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(uint16_t(bits)));
        return value;
    }
}

// Two floats as e4m3 codes, `low` in the low byte: to nearest even, saturating, NaN is 0x7F.
#if __CUDA_ARCH__ >= 890 && !defined(SOFTWARE_FP8)
__device__ __forceinline__ uint16_t e4m3x2(float low, float high) {
    uint16_t codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    return codes;
}
#else
// Before compute capability 8.9 there is no such instruction. Adding a power of two whose last bit weighs what
// e4m3's last bit weighs at x's exponent makes the float adder round to nearest even at that place.
__device__ __forceinline__ uint8_t e4m3(float x) {
    const uint32_t sign = (__float_as_uint(x) >> 24) & 0x80;
    const float magnitude = fabsf(x);
    if (!(magnitude == magnitude)) return 0x7F;
    if (magnitude >= 448.0f) return uint8_t(sign | 0x7E);
    // Exponent of the last place: 3 bits below x's own, and at least 2^-9, the smallest subnormal.
    const int exponent = max(int(__float_as_uint(magnitude) >> 23) - 127, -6);
    const float magic = __uint_as_float(uint32_t(exponent - 3 + 23 + 127) << 23);
    const float rounded = __fsub_rn(__fadd_rn(magnitude, magic), magic);
    // Exact from here: in units of 2^-9 for subnormals, else exponent and three bits of mantissa.
    if (rounded < 0.015625f) return uint8_t(sign | uint32_t(rounded * 512.0f));
    return uint8_t(sign | ((__float_as_uint(rounded) >> 20) - ((127 - 7) << 3)));
}

__device__ __forceinline__ uint16_t e4m3x2(float low, float high) {
    return uint16_t(e4m3(low) | (e4m3(high) << 8));
}
#endif

__device__ __forceinline__ CacheChunk converted(const SourceChunk& chunk, const float* __restrict__ scale_at) {
    CacheChunk out;
    if constexpr (!CACHE_FP8) {
#pragma unroll
        for (int w = 0; w < int(sizeof(out)) / CacheChunk::WORD_BYTES; ++w) out.word[w] = chunk.word[w];
    } else if constexpr (VEC == 1) {
        out.word[0] = uint8_t(e4m3x2(__fdiv_rn(source_item(chunk, 0), *scale_at), 0.0f));
    } else {
        const float scale = *scale_at;
        constexpr int PAIRS = CacheChunk::WORD_BYTES / 2;
#pragma unroll
        for (int w = 0; w < VEC / CacheChunk::WORD_BYTES; ++w) {
            uint32_t codes = 0;
#pragma unroll
            for (int p = 0; p < PAIRS; ++p) {
                const int item = (w * PAIRS + p) * 2;
                const float low = __fdiv_rn(source_item(chunk, item), scale);
                const float high = __fdiv_rn(source_item(chunk, item + 1), scale);
                codes |= uint32_t(e4m3x2(low, high)) << (16 * p);
            }
            out.word[w] = typename CacheChunk::word_t(codes);
        }
    }
    return out;
}

// The chunk of a token's row. The loads are relaxed, which asks nothing of the hardware that a plain load does not,
// but holds the assembler: it would move a plain load behind the test of the slot, and the kernel would wait for
// two memory accesses one after the other instead of both at once.
template <typename Row = SourceChunk>
__device__ __forceinline__ Row load(const uint8_t* rows, index_t token, int64_t stride, uint32_t chunk) {
    constexpr int BYTES = sizeof(Row);
    const uint8_t* from = rows + int64_t(token) * stride * SOURCE_BYTES + int64_t(chunk) * BYTES;
    Row row;
    auto* word = row.word;
    if constexpr (BYTES >= 16) {
#pragma unroll
        for (int w = 0; w < BYTES / 4; w += 4) {
            asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(word[w]), "=r"(word[w + 1]), "=r"(word[w + 2]), "=r"(word[w + 3])
                         : "l"(from + 4 * w));
        }
    } else if constexpr (BYTES == 8) {
        asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(from));
    } else if constexpr (BYTES == 4) {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word[0]) : "l"(from));
    } else {
        static_assert(BYTES == 2, "source items have two bytes or four");
        asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(word[0]) : "l"(from));
    }
    return row;
}

// Bytes from a plane's begin to where the chunk of a slot's row lives.
__device__ __forceinline__ int64_t place(int64_t slot, uint32_t chunk) {
    const uint64_t at = uint64_t(slot);
    const int64_t items = int64_t(at / BLOCK_SIZE) * BLOCK_STRIDE + int64_t(at % BLOCK_SIZE) * TOKEN_STRIDE +
                          int64_t(chunk / HEAD_CHUNKS) * HEAD_STRIDE + chunk % HEAD_CHUNKS * VEC;
    return items * CACHE_BYTES;
}

__device__ __forceinline__ void store(uint8_t* to, const SourceChunk& row, const float* __restrict__ scale) {
    *reinterpret_cast<CacheChunk*>(to) = converted(row, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS)
reshape_and_cache_flash(const uint8_t* __restrict__ key, const uint8_t* __restrict__ value,
                        uint8_t* __restrict__ key_cache, uint8_t* __restrict__ value_cache,
                        const int64_t* __restrict__ slot_mapping, const float* __restrict__ k_scale,
                        const float* __restrict__ v_scale, int64_t total, int64_t num_slots) {
    const index_t flat = index_t(blockIdx.x) * THREADS + threadIdx.x;
    if (flat >= index_t(total)) return;
    const index_t token = flat / TOKEN_CHUNKS;
    const uint32_t chunk = uint32_t(flat % TOKEN_CHUNKS);
    const int64_t slot = slot_mapping[token];
    if constexpr (BOTH) {
        const SourceChunk k = load(key, token, KEY_STRIDE, chunk);
        const SourceChunk v = load(value, token, VALUE_STRIDE, chunk);
        if (slot < 0 || slot >= num_slots) return;
        const int64_t at = place(slot, chunk);
        store(key_cache + at, k, k_scale);
        store(value_cache + at, v, v_scale);
    } else {
        const bool is_key = chunk < CHUNKS;
        const uint32_t own = is_key ? chunk : chunk - CHUNKS;
        const SourceChunk row = load(is_key ? key : value, token, is_key ? KEY_STRIDE : VALUE_STRIDE, own);
        if (slot < 0 || slot >= num_slots) return;
        store((is_key ? key_cache : value_cache) + place(slot, own), row, is_key ? k_scale : v_scale);
    }
}
