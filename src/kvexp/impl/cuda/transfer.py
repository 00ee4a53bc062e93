"""transfer: the specialisation of its kernel for the distances of two caches."""

import math
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from kvexp.errors import Unsupported
from kvexp.impl.cuda.launcher import MOST_THREADS, SM_THREADS, Fitted, Macros, Spec
from kvexp.impl.cuda.options import Options
from kvexp.layout.pieces import BLOCK_DIM, Dim, find_block_pieces

VECTOR_BYTES = 16
"""The widest access of one thread."""
DIMS = 4
"""Dims of the pieces of a block: layers, planes, slots and heads, of which some may be one piece."""
UNROLL = 4
"""Vectors that a thread copies where all threads have some."""
SM_CTA_THREADS = 1024
"""Threads of the CTAs of which each takes one multiprocessor, with `impl.sms`."""


@dataclass(frozen=True, kw_only=True)
class Blocks(Spec):
    """The constants of a transfer; see `Spec`.

    Attributes:
        dims: The dims of the pieces of a block, the outermost first.
        piece_vectors: Vectors of a piece.
        vec: Bytes of a vector.
        source_block: Bytes from one block of the source to the next.
        destination_block: The same of the destination.
        sms: CTAs that copy in turns, one for each multiprocessor; None for as many as there is work for.
    """

    dims: tuple[Dim, ...]
    piece_vectors: int
    vec: int
    source_block: int
    destination_block: int
    sms: int | None = None

    kernel = "transfer"
    num_addresses = 4
    has_loop = True

    @property
    def block_vectors(self) -> int:
        """Vectors that are copied of a block."""
        return self.piece_vectors * math.prod(size for size, _, _ in self.dims)

    def threads(self, num_tokens: int) -> int:
        """See `Spec.threads`; what is counted are blocks."""
        needed = -(-num_tokens * self.block_vectors // self.unroll)
        return min(needed, self.sms * self.cta_threads) if self.sms else needed

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """See `Spec.sizes`."""
        return (num_tokens * self.block_vectors,)

    @property
    def macros(self) -> Macros:
        """The constants as macros of the source."""
        dims = [*[(1, 0, 0)] * (DIMS - len(self.dims)), *self.dims]
        sizes = ((f"SIZE_{i}", f"{size}u") for i, (size, _, _) in enumerate(dims))
        distances = (
            (f"{name}_{i}", f"{dim[at]}ll")
            for i, dim in enumerate(dims)
            for at, name in ((1, "FROM"), (2, "TO"))
        )
        return (
            *sizes,
            *distances,
            ("PIECE_VECTORS", f"{self.piece_vectors}u"),
            ("VEC", self.vec),
            ("SOURCE_BLOCK", f"{self.source_block}ll"),
            ("DESTINATION_BLOCK", f"{self.destination_block}ll"),
            ("UNROLL", self.unroll),
            ("WIDE_INDEX", int(self.wide_index)),
            ("THREADS", self.cta_threads),
            ("LOOP", int(self.sms is not None)),
        )

    def tuned(self, options: Options, num_tokens: int, sm_count: int) -> Self:
        """See `Spec.tuned`."""
        if self.block_vectors >= 2**32:
            raise Unsupported(f"impl=cuda transfers blocks of fewer than {2**32 * self.vec} bytes")
        fills = num_tokens * self.block_vectors >= UNROLL * sm_count * SM_THREADS
        unroll = options.unroll or (UNROLL if fills else 1)
        tuned = replace(self, unroll=unroll).with_ctas(options, num_tokens)
        if not options.sms:
            return tuned
        cta_threads = options.cta_threads or SM_CTA_THREADS
        # The last turn of the loop counts beyond the end.
        most = num_tokens * self.block_vectors + options.sms * cta_threads * unroll
        return replace(tuned, sms=options.sms, cta_threads=cta_threads, wide_index=most > MOST_THREADS)


def fit(
    source: Tensor,
    source_blocks: Tensor,
    destination: Tensor,
    destination_blocks: Tensor,
    *,
    options: Options,
) -> Fitted:
    """Return the specialisation for two caches, and the number of blocks."""
    number, (piece, dims) = source_blocks.shape[0], find_block_pieces(source, destination)
    blocks = tuple(each.stride(BLOCK_DIM) * each.itemsize for each in (source, destination))
    places = [source.data_ptr(), destination.data_ptr(), *blocks, *(at for dim in dims for at in dim[1:])]
    vec = math.gcd(VECTOR_BYTES, piece, *places)
    spec = Blocks(
        dims=dims,
        piece_vectors=piece // vec,
        vec=vec,
        source_block=blocks[0],
        destination_block=blocks[1],
    )
    return Fitted(spec, (), number)
