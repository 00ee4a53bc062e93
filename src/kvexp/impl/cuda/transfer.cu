// transfer: copy blocks of one paged cache to blocks of another.
//
//   source, destination     the first byte of what is copied of block 0; blocks are SOURCE_BLOCK and
//                           DESTINATION_BLOCK bytes apart
//   source_blocks,
//   destination_blocks      int64 [blocks]
//   total                   blocks * BLOCK_VECTORS
//
// What is copied of a block is SIZE_0 x SIZE_1 x SIZE_2 x SIZE_3 pieces of PIECE_VECTORS vectors of VEC bytes; a piece
// is contiguous in both caches. Pieces of dim i lie FROM_i bytes apart in the source and TO_i in the destination.
// Neighbouring threads copy neighbouring vectors. A thread has UNROLL of them, THREADS apart: it reads all, then writes
// all. With LOOP the grid, one row of CTAs, goes on until all are copied.
//
// Semantics: docs/semantics.md.

#include "types.cuh"

constexpr uint32_t BLOCK_VECTORS = uint32_t(PIECE_VECTORS) * SIZE_0 * SIZE_1 * SIZE_2 * SIZE_3;

struct Place {
    int64_t from;
    int64_t to;
};

// Returns the bytes from the start of a block to a vector of it.
__device__ __forceinline__ Place place_in_block(uint32_t vector) {
    Place place{int64_t(vector % PIECE_VECTORS) * VEC, int64_t(vector % PIECE_VECTORS) * VEC};
    uint32_t piece = vector / PIECE_VECTORS;
    place.from += int64_t(piece % SIZE_3) * FROM_3;
    place.to += int64_t(piece % SIZE_3) * TO_3;
    piece /= SIZE_3;
    place.from += int64_t(piece % SIZE_2) * FROM_2;
    place.to += int64_t(piece % SIZE_2) * TO_2;
    piece /= SIZE_2;
    place.from += int64_t(piece % SIZE_1) * FROM_1;
    place.to += int64_t(piece % SIZE_1) * TO_1;
    piece /= SIZE_1;
    place.from += int64_t(piece) * FROM_0;
    place.to += int64_t(piece) * TO_0;
    return place;
}

extern "C" __global__ void __launch_bounds__(THREADS)
transfer(const uint8_t* __restrict__ source, const int64_t* __restrict__ source_blocks,
         uint8_t* __restrict__ destination, const int64_t* __restrict__ destination_blocks, int64_t total) {
    index_t first = flat_index<UNROLL>();
    do {
        Chunk<VEC> vectors[UNROLL];
        int64_t to[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const index_t flat = first + u * THREADS;
            if (flat >= index_t(total)) break;
            const Place place = place_in_block(uint32_t(flat % BLOCK_VECTORS));
            const index_t block = flat / BLOCK_VECTORS;
            vectors[u] = load<VEC, VEC>(source + source_blocks[block] * SOURCE_BLOCK + place.from);
            to[u] = destination_blocks[block] * DESTINATION_BLOCK + place.to;
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            if (first + u * THREADS >= index_t(total)) return;
            store<VEC>(destination + to[u], vectors[u]);
        }
        first += index_t(gridDim.x) * (THREADS * UNROLL);
    } while (LOOP && first < index_t(total));
}
