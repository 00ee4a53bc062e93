// Convert source items to cache items: copy them, or divide by the scale and round to fp8 or int8.
//
// Macros: SOURCE_BYTES of a source item; SOURCE_IS_BFLOAT16, whether two bytes are a bfloat16 or a float16;
// CACHE_FORMAT, one of Format; SCALE_PER_HEAD, whether a scale tensor holds one scale for each head; SOFTWARE_FP8,
// defined to convert without the hardware's instruction; BOUNDED_QUOTIENTS, defined where a scale is made of its items,
// so that no quotient is infinite.
//
// Semantics: docs/semantics.md.

#pragma once

#include "types.cuh"

enum Format { COPIED, E4M3, E5M2, INT8 };

constexpr int CACHE_BYTES = CACHE_FORMAT == COPIED ? SOURCE_BYTES : 1;

static_assert(CACHE_FORMAT == COPIED || SOURCE_BYTES > 1, "an fp8 source is copied");

template <int N>
__device__ __forceinline__ float source_item(const Chunk<N>& chunk, int i) {
    const uint32_t bits = bits_of<SOURCE_BYTES>(chunk, i * SOURCE_BYTES);
    if constexpr (SOURCE_BYTES == 4) return __uint_as_float(bits);
    if constexpr (SOURCE_IS_BFLOAT16) return __uint_as_float(bits << 16);
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(uint16_t(bits)));
    return value;
}

// Returns two floats as fp8 codes, `low` in the low byte: to nearest even, saturating, NaN as 0x7F.
#if __CUDA_ARCH__ >= 890 && !defined(SOFTWARE_FP8)
__device__ __forceinline__ uint16_t fp8x2(float low, float high) {
    uint16_t codes;
    if constexpr (CACHE_FORMAT == E4M3) {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    }
    return codes;
}
#else
// Before compute capability 8.9 there is no such instruction. Adding a power of two whose last bit has the weight of
// the code's last bit at x's exponent makes the float adder round to nearest even at that bit.
__device__ __forceinline__ uint32_t fp8(float x) {
    constexpr int MANTISSA = CACHE_FORMAT == E4M3 ? 3 : 2;
    constexpr int BIAS = CACHE_FORMAT == E4M3 ? 7 : 15;
    constexpr float MAX = CACHE_FORMAT == E4M3 ? 448.0f : 57344.0f;
    constexpr uint32_t MAX_CODE = CACHE_FORMAT == E4M3 ? 0x7E : 0x7B;
    constexpr int LEAST = 1 - BIAS;  // the exponent of the smallest normal number, and of every subnormal
    const uint32_t sign = (__float_as_uint(x) >> 24) & 0x80;
    const float magnitude = fabsf(x);
    if (!(magnitude == magnitude)) return 0x7F;
    if (magnitude >= MAX) return sign | MAX_CODE;
    const int exponent = max(int(__float_as_uint(magnitude) >> 23) - 127, LEAST);
    const float magic = __uint_as_float(uint32_t(exponent - MANTISSA + 23 + 127) << 23);
    const float rounded = __fsub_rn(__fadd_rn(magnitude, magic), magic);
    // Exact from here on: subnormals in units of the smallest one, otherwise exponent and mantissa bits.
    if (rounded < __uint_as_float(uint32_t(LEAST + 127) << 23)) {
        return sign | uint32_t(rounded * float(1 << (MANTISSA - LEAST)));
    }
    return sign | ((__float_as_uint(rounded) >> (23 - MANTISSA)) - ((127 - BIAS) << MANTISSA));
}

__device__ __forceinline__ uint16_t fp8x2(float low, float high) { return uint16_t(fp8(low) | (fp8(high) << 8)); }
#endif

// Returns a float as an int8 code: half away from zero by a sum that is rounded to a float, NaN as -128. With a scale of
// its items a magnitude is below 127.5, so that no sum reaches 128.
__device__ __forceinline__ int int8(float x) {
    return int(fmaxf(__fadd_rn(x, copysignf(0.5f, x)), -128.0f));  // fmaxf ignores NaN
}

// Returns two floats as codes of the cache, `low` in the low byte.
__device__ __forceinline__ uint16_t codes_of_two(float low, float high) {
    if constexpr (CACHE_FORMAT == INT8) return uint16_t((int8(low) & 0xFF) | (int8(high) << 8));
    return fp8x2(low, high);
}

// Loads the scale of a head's items; copies read none. Like a row's load it is relaxed, so that it is not moved behind
// the test of the slot, and of CTA scope, so that L1 may serve it: all threads of the grid load the same few scales,
// which one slice of L2 would serve one after the other.
__device__ __forceinline__ float load_scale(const float* scales, uint32_t head) {
    float scale = 1.0f;
    if constexpr (CACHE_FORMAT != COPIED) {
        const float* from = SCALE_PER_HEAD ? scales + head : scales;
        asm volatile("ld.relaxed.cta.global.f32 %0, [%1];" : "=f"(scale) : "l"(from));
    }
    return scale;
}

// Clamps x to the range from -2^20 to 2^20; NaN stays NaN.
__device__ __forceinline__ float clamped(float x) {
    constexpr float MOST = 0x1p20f;
    float clamp;
#if __CUDA_ARCH__ >= 860
    asm("min.NaN.xorsign.abs.f32 %0, %1, %2;" : "=f"(clamp) : "f"(x), "f"(MOST));
#else
    clamp = x > MOST ? MOST : x < -MOST ? -MOST : x;
#endif
    return clamp;
}

// Divides by a scale. CUDA's own division takes about ten instructions and a call for rare cases. Where the scale is
// positive and its exponent moderate, a reciprocal that all items of a chunk share and corrections by the exact
// remainder, two instructions each, give the same quotient.
//
// One correction is enough for sources of 16 bits: tests/gpu/test_division_on_gpu.py tests all their significands with
// all of the scale's. Two are enough for any source: the first leaves an error below one ulp, from which the second
// rounds correctly (P. Markstein, IBM Journal of Research and Development 34, 1990).
//
// The remainder of an infinite quotient would be NaN, so each quotient is clamped before its correction, which adds the
// part that was cut off. The remainder is computed with its sign negated, so that a quotient of -0 keeps its sign.
struct Divisor {
    float scale;
    float reciprocal;
    bool mild;  // whether the remainders of all quotients that a code distinguishes from 0 are normal

    __device__ __forceinline__ explicit Divisor(float by)
        : scale(by), reciprocal(__frcp_rn(by)), mild(by >= 0x1p-60f && by <= 0x1p60f) {}

    template <bool MILD>
    __device__ __forceinline__ float quotient(float x) const {
        if constexpr (!MILD) return __fdiv_rn(x, scale);
        float quotient = __fmul_rn(x, reciprocal);
#pragma unroll
        for (int correction = 0; correction < (SOURCE_BYTES == 2 ? 1 : 2); ++correction) {
#ifndef BOUNDED_QUOTIENTS
            quotient = clamped(quotient);
#endif
            quotient = __fmaf_rn(-__fmaf_rn(quotient, scale, -x), reciprocal, quotient);
        }
        return quotient;
    }
};

template <bool MILD, int ITEMS>
__device__ __forceinline__ Chunk<ITEMS> codes_by(const Chunk<ITEMS * SOURCE_BYTES>& chunk, const Divisor& by) {
    if constexpr (ITEMS == 1) {
        return {uint8_t(codes_of_two(by.quotient<MILD>(source_item(chunk, 0)), 0.0f))};
    } else {
        Chunk<ITEMS> out;
        constexpr int PAIRS = Chunk<ITEMS>::WORD_BYTES / 2;
#pragma unroll
        for (int w = 0; w < Chunk<ITEMS>::WORDS; ++w) {
            uint32_t codes = 0;
#pragma unroll
            for (int p = 0; p < PAIRS; ++p) {
                const int item = (w * PAIRS + p) * 2;
                const float low = by.quotient<MILD>(source_item(chunk, item));
                const float high = by.quotient<MILD>(source_item(chunk, item + 1));
                codes |= uint32_t(codes_of_two(low, high)) << (16 * p);
            }
            out.word[w] = typename Chunk<ITEMS>::word_t(codes);
        }
        return out;
    }
}

// Returns the cache's bytes for ITEMS source items of one head.
template <int ITEMS>
__device__ __forceinline__ Chunk<ITEMS * CACHE_BYTES> converted(const Chunk<ITEMS * SOURCE_BYTES>& chunk, float scale) {
    if constexpr (CACHE_FORMAT == COPIED) {
        return chunk;
    } else {
        const Divisor by(scale);
        return by.mild ? codes_by<true, ITEMS>(chunk, by) : codes_by<false, ITEMS>(chunk, by);
    }
}

// The same, before the slot is known: an empty asm statement uses the result here. Without it the compiler would move
// the conversion behind the test of the slot, and so wait for the slot from memory.
template <int ITEMS>
__device__ __forceinline__ Chunk<ITEMS * CACHE_BYTES> converted_now(const Chunk<ITEMS * SOURCE_BYTES>& chunk,
                                                                    float scale) {
    auto codes = converted<ITEMS>(chunk, scale);
    if constexpr (CACHE_FORMAT != COPIED && ITEMS >= 4) {
#pragma unroll
        for (int w = 0; w < codes.WORDS; ++w) asm volatile("" : "+r"(codes.word[w]));
    }
    return codes;
}
