"""Identify one measured point by every field that changes what is measured, as names and numbers."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any

from kvexp.column import INT64, Fraction, Name, Options, Text, Whole, Word, columns_of
from kvexp.errors import ConfigError

NO_SLOT = -1
"""The slot of a padding token."""
NUM_TOKENS = Whole("Length of `slot_mapping`.")
WAYS = ("device", "host", "peer", "from_host")
SLOTS = ("random", "contiguous", "reversed", "decode", "prefill")
BATCH = "batch"
"""The `slots` of a case whose tokens are those of `workload.batch`."""
_REQUESTS = re.compile(r"(\d{0,9})q(\d{1,9})(k?)(?:s(\d{1,9})(k?))?", re.ASCII)
_ROWS = ("contiguous", "qkv", "misaligned")


@dataclass(frozen=True)
class Requests:
    """Equal requests of a batch.

    Attributes:
        count: How many.
        new: New tokens of each, which are written.
        total: Tokens of each, the new ones included.
    """

    count: int
    new: int
    total: int

    def __str__(self) -> str:
        total = f"s{_format_number(self.total)}" if self.total != self.new else ""
        return f"{self.count if self.count > 1 else ''}q{_format_number(self.new)}{total}"


def parse_batch(text: str) -> tuple[Requests, ...]:
    """Parse a batch, such as `8q1s1k_2q2k`.

    That is 8 requests of 1 new token and 1024 in all, and 2 of 2048 new ones. The grammar is that of vLLM's
    benchmarks/attention_benchmarks: a count (1 if left out), `q` and the new tokens, `s` and the total (the
    new ones if left out); `k` is times 1024.

    Raises:
        ConfigError: It is no batch.
    """
    return tuple(map(_parse_requests, text.split("_")))


def format_batch(batch: Sequence[Requests]) -> str:
    """Write a batch in its shortest form, the same for all ways to write it."""
    return "_".join(map(str, batch))


@dataclass(frozen=True)
class Slots(Word):
    """A pattern of slots, BATCH, or the hash of recorded slots; typed, a pattern or a file."""

    words: tuple[str, ...] = SLOTS

    def _find_fault(self, value: object) -> str:
        if value == BATCH or (isinstance(value, str) and re.fullmatch(r"sha256:[0-9a-f]{16}", value)):
            return ""
        return "" if value in self.words else f"{', '.join(self.words)} or a file (FILE.npy or FILE.json)"


@dataclass(frozen=True)
class Choices:
    """What was chosen by name, and how many tokens one call writes.

    Names are those of the configuration's groups, resolved: never `auto` for `mode`, `timer` or `device`
    (unless the measuring process died before it could resolve them), and `fp8_e4m3` for the alias `fp8`.
    """

    op: Annotated[str, Name("The op, for example `reshape_and_cache_flash`.")]
    impl: Annotated[str, Name("The implementation.")]
    impl_options: Annotated[str, Options("The implementation's options as canonical JSON.")]
    layout: Annotated[str, Name("The cache's layout.")]
    dtype: Annotated[str, Name("The item type of key and value.")]
    kv_cache_dtype: Annotated[str, Name("`auto` (the cache holds the source's items) or the 8-bit format.")]
    scale: Annotated[
        str, Name("Scales that fp8 divides by: `per_tensor` (one for K, one for V) or `per_head`.")
    ]
    mode: Annotated[str, Name("`cudagraph` or `no_graph`.")]
    timer: Annotated[str, Name("The timer.")]
    timer_options: Annotated[str, Options("The timer's options as canonical JSON.")]
    device: Annotated[str, Name("`cuda:N` or `cpu`.")]
    num_tokens: Annotated[int, NUM_TOKENS]
    op_options: Annotated[str, Options("The op's options as canonical JSON.")] = "{}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The keys of a workload that are fixed along a curve.

    A default is what conf/config.yaml has for every workload.
    """

    num_heads: Annotated[int, Whole("KV heads of a token.")]
    head_size: Annotated[int, Whole("Elements of a key head.")]
    head_size_v: Annotated[int, Whole("Elements of a value head; 0 for none.", least=0)]
    block_size: Annotated[int, Whole("Slots of a cache block.")]
    num_blocks: Annotated[int, Whole("Blocks of the cache.", most=INT64)]
    num_layers: Annotated[
        int, Whole("Layers that share the storage; a transfer copies all, other calls write one of them.")
    ] = 1
    slots: Annotated[
        str, Slots("Pattern of the slots; `batch`, or the hash of those of a file (`sha256:...`).")
    ] = "random"
    batch: Annotated[str, Text("Requests of `slots=batch` in vLLM's grammar; empty for none.")] = ""
    padding: Annotated[float, Fraction("The fraction of the tokens whose slot is -1.")] = 0.0
    padding_at: Annotated[str, Word("Place of the padding.", words=("end", "scattered"))] = "end"
    rows: Annotated[str, Word("Memory layout of key and value.", words=_ROWS)] = "contiguous"
    num_query_heads: Annotated[int, Whole("Query heads before K and V in a row; used for `rows=qkv`.")]
    extra_tokens: Annotated[int, Whole("Rows of key and value beyond those of `slot_mapping`.", least=0)] = 0
    tp_from: Annotated[int, Whole("Of a transfer: tensor-parallel ranks of the source.")] = 1
    tp_to: Annotated[int, Whole("Of a transfer: tensor-parallel ranks of the destination.")] = 2
    to: Annotated[
        str, Word("Of a transfer: where the destination is; with `from_host` the source.", words=WAYS)
    ] = "device"
    context: Annotated[int, Whole("Of a decode: tokens of each sequence's past.")] = 4096
    seed: Annotated[int, Whole("Seed of inputs and slots.", least=0, most=INT64)] = 0


DEFAULTS = {key.name: key.default for key in (*fields(Sizes), *fields(Choices)) if key.default is not MISSING}
"""Values of the columns that have one: rows that were measured before there was a column have it, too."""


@dataclass(frozen=True)
class Case(Sizes, Choices):
    """One point of one curve: its choices, its sizes, and two columns that are not part of the identity."""

    layout_reason: Annotated[str, Text("Why `layout=auto` chose the layout; not part of the identity.")] = (
        field(default="", compare=False)
    )
    workload: Annotated[str, Name("The preset's name; not part of the identity.")] = field(
        default="", compare=False
    )
    recorded: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """The slots of a file, whose hash `slots` has; empty for others."""

    def columns(self) -> dict[str, Any]:
        """Return the columns of a row that say what was measured."""
        return {name: getattr(self, name) for name in columns_of(Case)}

    @property
    def num_slots(self) -> int:
        """Slots of the whole cache."""
        return self.num_blocks * self.block_size

    @property
    def written_tokens(self) -> int:
        """Tokens that have a slot; at least one."""
        return max(1, self.num_tokens - round(self.padding * self.num_tokens))

    def cache_item_bytes(self, item_bytes: int) -> int:
        """Return the bytes of a cache item: those of a source item for `auto`, one for the fp8 formats."""
        return item_bytes if self.kv_cache_dtype == "auto" else 1


def _parse_requests(text: str) -> Requests:
    match = _REQUESTS.fullmatch(text)
    if match is None:
        raise ConfigError(
            "workload.batch must be requests such as 8q1s1k_2q2k (8 of 1 new token and 1024 in all, "
            f"2 of 2048 new ones), not {text!r}"
        )
    count, new, new_k, total, total_k = match.groups()
    new_tokens = _read_number(new, new_k)
    requests = Requests(int(count or 1), new_tokens, _read_number(total, total_k) if total else new_tokens)
    if requests.count < 1 or requests.new < 1 or requests.total < requests.new:
        raise ConfigError(
            f"workload.batch has {text!r}: requests and new tokens (q) must be at least 1, "
            "and all tokens (s) at least the new ones"
        )
    return requests


def _read_number(digits: str, suffix: str) -> int:
    return int(digits) * (1024 if suffix else 1)


def _format_number(number: int) -> str:
    return f"{number // 1024}k" if number % 1024 == 0 else str(number)
