// Define integers, the flat index, and chunks of a row in registers, for every kernel here.
//
// Macros: THREADS of a CTA; WIDE_INDEX, whether the grid has more than 2^32 - 1 threads.
// NVRTC compiles this without any other headers.

#pragma once

using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;

// Tokens times chunks can exceed 2^32; 32 bits divide faster.
#if WIDE_INDEX
using index_t = uint64_t;
#else
using index_t = uint32_t;
#endif

// Returns this thread's first index, where each CTA has EACH * THREADS consecutive indices; the thread's other indices
// follow at distances of THREADS.
template <int EACH = 1>
__device__ __forceinline__ index_t flat_index() {
#if WIDE_INDEX
    // grid.x is at most 2^31 - 1; further CTAs are further rows of grid.y.
    return (index_t(blockIdx.y) * gridDim.x + blockIdx.x) * (EACH * THREADS) + threadIdx.x;
#else
    return blockIdx.x * (EACH * THREADS) + threadIdx.x;
#endif
}

template <bool condition, typename A, typename B>
struct choose {
    using type = A;
};
template <typename A, typename B>
struct choose<false, A, B> {
    using type = B;
};

// N bytes of a row. They are words, not bytes: the compiler splits a byte array, which costs instructions and makes
// each load wait for the one before.
template <int N>
struct alignas(N < 16 ? N : 16) Chunk {
    using word_t = typename choose<N >= 4, uint32_t, typename choose<N == 2, uint16_t, uint8_t>::type>::type;
    static constexpr int WORD_BYTES = sizeof(word_t);
    static constexpr int WORDS = N / WORD_BYTES;
    word_t word[WORDS];
};

// Returns `BYTES` bytes of the chunk from byte `at` on, in the low bits. They lie in one word.
template <int BYTES, int N>
__device__ __forceinline__ uint32_t bits_of(const Chunk<N>& chunk, int at) {
    static_assert(BYTES <= Chunk<N>::WORD_BYTES, "an item lies in one word");
    const uint32_t word = chunk.word[at / Chunk<N>::WORD_BYTES];
    return BYTES == 4 ? word : (word >> (at % Chunk<N>::WORD_BYTES * 8)) & ((1u << (8 * BYTES % 32)) - 1);
}

// Loads here are relaxed. The hardware treats them as plain loads, but the assembler would move a plain load behind the
// test of the slot, and the kernel would wait for two memory accesses in sequence instead of at once. Their scope is
// the CTA, so that L1 may serve them: a thread reads 32 bytes in two halves, and with a wider scope L2 would send each
// sector twice.
template <int BYTES>
__device__ __forceinline__ uint32_t load_bits(const uint8_t* from) {
    static_assert(BYTES == 1 || BYTES == 2, "wider ones are words");
    uint16_t bits;
    if constexpr (BYTES == 1) {
        asm volatile("ld.relaxed.cta.global.u8 %0, [%1];" : "=h"(bits) : "l"(from));
    } else {
        asm volatile("ld.relaxed.cta.global.u16 %0, [%1];" : "=h"(bits) : "l"(from));
    }
    return bits;
}

// Loads N bytes from an address that ACCESS divides, in accesses of ACCESS bytes.
template <int N, int ACCESS>
__device__ __forceinline__ Chunk<N> load(const uint8_t* from) {
    Chunk<N> chunk;
    auto* word = chunk.word;
    if constexpr (ACCESS == 16) {
#pragma unroll
        for (int w = 0; w < N / 4; w += 4) {
            asm volatile("ld.relaxed.cta.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(word[w]), "=r"(word[w + 1]), "=r"(word[w + 2]), "=r"(word[w + 3])
                         : "l"(from + 4 * w));
        }
    } else if constexpr (ACCESS == 8) {
#pragma unroll
        for (int w = 0; w < N / 4; w += 2) {
            asm volatile("ld.relaxed.cta.global.v2.u32 {%0, %1}, [%2];"
                         : "=r"(word[w]), "=r"(word[w + 1]) : "l"(from + 4 * w));
        }
    } else if constexpr (ACCESS == 4) {
#pragma unroll
        for (int w = 0; w < N / 4; ++w) {
            asm volatile("ld.relaxed.cta.global.u32 %0, [%1];" : "=r"(word[w]) : "l"(from + 4 * w));
        }
    } else {
        constexpr int PER_WORD = Chunk<N>::WORD_BYTES / ACCESS;
#pragma unroll
        for (int w = 0; w < Chunk<N>::WORDS; ++w) {
            uint32_t bits = 0;
#pragma unroll
            for (int p = 0; p < PER_WORD; ++p) {
                bits |= load_bits<ACCESS>(from + (w * PER_WORD + p) * ACCESS) << (8 * ACCESS * p);
            }
            word[w] = typename Chunk<N>::word_t(bits);
        }
    }
    return chunk;
}

// Stores the chunk to an address that ACCESS divides, in accesses of ACCESS bytes.
template <int ACCESS, int N>
__device__ __forceinline__ void store(uint8_t* to, const Chunk<N>& chunk) {
    using Piece = Chunk<ACCESS>;
#pragma unroll
    for (int at = 0; at < N; at += ACCESS) {
        Piece piece;
        if constexpr (ACCESS >= 4) {
#pragma unroll
            for (int w = 0; w < Piece::WORDS; ++w) piece.word[w] = chunk.word[at / 4 + w];
        } else {
            piece.word[0] = typename Piece::word_t(bits_of<ACCESS>(chunk, at));
        }
        *reinterpret_cast<Piece*>(to + at) = piece;
    }
}

// Returns whether the slot is in the cache. Any other is padding, for which nothing is written.
__device__ __forceinline__ bool is_slot(int64_t slot, int64_t num_slots) {
    return slot >= 0 && slot < num_slots;
}
