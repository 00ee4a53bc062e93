// reshape_and_cache_flash: K and V of each token into its slot of a paged cache.
//
//   key, value              [>= num_tokens, NUM_HEADS, HEAD_SIZE], SOURCE_BITS wide floats; rows key_stride and
//                           value_stride items apart, heads of a row adjacent
//   key_cache, value_cache  [num_blocks, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE] with the strides block_stride,
//                           token_stride, head_stride in items, last dim contiguous
//   slot_mapping            int64 [num_tokens]; slot = block * BLOCK_SIZE + offset; a slot outside
//                           [0, num_slots) writes nothing
//   k_scale, v_scale        one float each, read when CACHE_FP8
//
// A token is 2 * CHUNKS chunks of VEC items: K's, then V's. A chunk never crosses a head, so the same flat index
// works for every layout: it differs in where a chunk goes. A thread moves UNROLL chunks, THREADS apart. All
// loads are issued before the slots are known, stores come last. A CTA holds TOKENS_PER_CTA whole tokens, or,
// where a row is longer than what a CTA moves, one of CTAS_PER_TOKEN parts of one token.
// grid.x = ceil(num_tokens / TOKENS_PER_CTA) * CTAS_PER_TOKEN, block.x = THREADS.
//
// Semantics: docs/semantics.md. Compiled by NVRTC with no headers.

using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;

constexpr int HEAD_CHUNKS = HEAD_SIZE / VEC;
constexpr int CHUNKS = NUM_HEADS * HEAD_CHUNKS;
constexpr int TOKEN_CHUNKS = 2 * CHUNKS;
constexpr int CTA_CHUNKS = THREADS * UNROLL;
constexpr int TOKENS_PER_CTA = CTA_CHUNKS >= TOKEN_CHUNKS ? CTA_CHUNKS / TOKEN_CHUNKS : 1;
constexpr int CTAS_PER_TOKEN = (TOKEN_CHUNKS + CTA_CHUNKS - 1) / CTA_CHUNKS;

constexpr int SOURCE_BYTES = SOURCE_BITS / 8;
constexpr int CACHE_BYTES = CACHE_FP8 ? 1 : SOURCE_BYTES;

static_assert(HEAD_SIZE % VEC == 0, "a chunk must not cross a head");

// N bytes that one thread loads or stores at once, in pieces of at most 16 bytes.
template <int N>
struct alignas(N < 16 ? N : 16) Bytes {
    uint8_t at[N];
};

using SourceChunk = Bytes<VEC * SOURCE_BYTES>;
using CacheChunk = Bytes<VEC * CACHE_BYTES>;

template <typename T>
__device__ __forceinline__ T bits_at(const uint8_t* from) {
    T value;
    memcpy(&value, from, sizeof(T));
    return value;
}

__device__ __forceinline__ float source_item(const SourceChunk& chunk, int i) {
    if constexpr (SOURCE_BITS == 32) {
        return __uint_as_float(bits_at<uint32_t>(&chunk.at[4 * i]));
    } else if constexpr (SOURCE_IS_BFLOAT16) {
        return __uint_as_float(uint32_t(bits_at<uint16_t>(&chunk.at[2 * i])) << 16);
    } else {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits_at<uint16_t>(&chunk.at[2 * i])));
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

__device__ __forceinline__ CacheChunk converted(const SourceChunk& chunk, float scale) {
    CacheChunk out;
    if constexpr (CACHE_FP8 && VEC == 1) {
        out.at[0] = uint8_t(e4m3x2(__fdiv_rn(source_item(chunk, 0), scale), 0.0f));
    } else if constexpr (CACHE_FP8) {
#pragma unroll
        for (int i = 0; i < VEC; i += 2) {
            const uint16_t codes = e4m3x2(__fdiv_rn(source_item(chunk, i), scale),
                                          __fdiv_rn(source_item(chunk, i + 1), scale));
            memcpy(&out.at[i], &codes, 2);
        }
    } else {
        memcpy(&out, &chunk, sizeof(out));
    }
    return out;
}

extern "C" __global__ void __launch_bounds__(THREADS)
reshape_and_cache_flash(const uint8_t* __restrict__ key, const uint8_t* __restrict__ value,
                        uint8_t* __restrict__ key_cache, uint8_t* __restrict__ value_cache,
                        const int64_t* __restrict__ slot_mapping, const float* __restrict__ k_scale,
                        const float* __restrict__ v_scale, int64_t num_tokens, int64_t num_slots,
                        int64_t key_stride, int64_t value_stride, int64_t block_stride,
                        int64_t token_stride, int64_t head_stride) {
    const int64_t first_token = int64_t(blockIdx.x / CTAS_PER_TOKEN) * TOKENS_PER_CTA;
    const int first_chunk = int(blockIdx.x % CTAS_PER_TOKEN) * CTA_CHUNKS + int(threadIdx.x);

    SourceChunk loaded[UNROLL];
    int64_t slot[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        const int flat = first_chunk + u * THREADS;
        const int64_t token = first_token + flat / TOKEN_CHUNKS;
        const int chunk = flat % TOKEN_CHUNKS;
        slot[u] = -1;
        if (flat < TOKENS_PER_CTA * TOKEN_CHUNKS && token < num_tokens) {
            const uint8_t* row = chunk < CHUNKS ? key + token * key_stride * SOURCE_BYTES
                                                : value + token * value_stride * SOURCE_BYTES;
            loaded[u] = reinterpret_cast<const SourceChunk*>(row)[chunk % CHUNKS];
            slot[u] = slot_mapping[token];
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        if (slot[u] < 0 || slot[u] >= num_slots) continue;
        const int chunk = (first_chunk + u * THREADS) % TOKEN_CHUNKS;
        const bool is_key = chunk < CHUNKS;
        const int head = chunk % CHUNKS / HEAD_CHUNKS;
        const int item = chunk % HEAD_CHUNKS * VEC;
        const uint64_t at = uint64_t(slot[u]);
        const int64_t place = int64_t(at / BLOCK_SIZE) * block_stride + int64_t(at % BLOCK_SIZE) * token_stride +
                              head * head_stride + item;
        float scale = 1.0f;
        if constexpr (CACHE_FP8) scale = *(is_key ? k_scale : v_scale);
        uint8_t* to = (is_key ? key_cache : value_cache) + place * CACHE_BYTES;
        *reinterpret_cast<CacheChunk*>(to) = converted(loaded[u], scale);
    }
}
