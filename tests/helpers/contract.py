"""The contract of docs/semantics.md as tests, for the implementation and device that a module chooses.

A test module subclasses `Contract` and gives the fixtures `impl` and `device`. The parameters are each op
with each of its layouts, and one other list at a time: types (all that the op takes), sizes (each number of
the contract's list at least once), slots. On a GPU tests/gpu crosses all numbers and sizes of heads.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch

from kvexp.errors import Unsupported
from tests.helpers import compose, oracle
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

PAIRS = compose.pairs()
LAYOUTS = sorted({layout for _, layout in PAIRS})
IDS = ["-".join(pair) for pair in PAIRS]

# Head sizes that 16 does not divide, and their source, cache and scale.
ANY_SIZE = [
    (op, layout, sizes)
    for op, layout in PAIRS
    for sizes in [(1, 1), (7, 7), (46, 46), (100, 100), (120, 120), (46, 33), (8, 100)]
    if op == DIFFKV or (op == FLASH and sizes[0] == sizes[1])
]
ANY_SIZE_TYPES = [
    ("bfloat16", "fp8_e4m3", "per_head"),
    ("half", "fp8_e5m2", "per_tensor"),
    ("float", "fp8_e4m3", "per_tensor"),
    ("float", "fp8_e5m2", "per_head"),
    ("fp8_e5m2", "fp8_e5m2", "per_tensor"),
]
# num_tokens, num_heads, head_size, block_size: each number of the contract's list at least once. Many heads
# are short, since an interpreter takes seconds for more.
SIZES = [
    (1, 1, 64, 1),
    (2, 2, 80, 8),
    (7, 3, 96, 16),
    (31, 5, 112, 32),
    (32, 2, 120, 64),
    (33, 1, 128, 128),
    (42, 2, 192, 256),
    (5, 1, 256, 16),
    (9, 8, 46, 16),
    (6, 1, 45, 3),
    (4, 32, 16, 16),
    (3, 40, 16, 16),
    (2, 64, 16, 16),
    (2, 128, 16, 16),
    (4, 13, 16, 16),
]
# Each op and each layout with each size. Of a layout that two ops of one kernel take, each op has every other
# size: left out are the other op's same sizes, which are the same strides for the same code.
SIZES_BY_TURNS = [
    (op, layout, sizes)
    for op, layout in PAIRS
    for number, sizes in enumerate(SIZES)
    if (DIFFKV, layout) not in PAIRS or (number + LAYOUTS.index(layout) + (op == DIFFKV)) % 2
]
# Each op, layout and size of heads with each list of types, left out is every other triple.
ANY_SIZE_BY_TURNS = [
    (*one, types)
    for (i, one), (j, types) in product(enumerate(ANY_SIZE), enumerate(ANY_SIZE_TYPES))
    if (i + j) % 2
]
# Each list of types once with each other: source, cache, scale. Without a GPU tests/test_support.py verifies
# each of them in each op and layout, so there are fewer here.
TYPES = [
    *((dtype, "auto", "per_tensor") for dtype in oracle.WIDE),
    *((dtype, fp8, scale) for dtype in oracle.WIDE for fp8 in ("fp8_e4m3", "fp8_e5m2")
      for scale in ("per_tensor", "per_head")),
    *((fp8, fp8, "per_tensor") for fp8 in ("fp8_e4m3", "fp8_e5m2")),
]  # fmt: skip


PAIRS_AND_TYPES = compose.by_turns(PAIRS, TYPES, 1 if torch.cuda.is_available() else 3)


def skip_refused_sizes(op, sizes):
    if op == PAGED and sizes[2] % 8:
        pytest.skip("reshape_and_cache takes only heads of a multiple of 16 bytes")


def assert_writes(impl, device, posed, dtype):
    """The call writes right bytes, or refuses where only Triton's interpreter would convert."""
    converts = posed.kv_cache_dtype != "auto" and dtype in oracle.WIDE
    if impl == "triton" and device == "cpu" and converts:
        with pytest.raises(Unsupported, match="interpreter"):
            posed.bind(oracle.implementation(impl, device))
        return
    oracle.assert_writes(impl, posed if converts else oracle.without_scales(posed))


class Contract:
    @pytest.mark.parametrize(("pair", "types"), PAIRS_AND_TYPES, ids="-".join)
    def test_every_layout_and_type_holds_the_law(self, impl, device, pair, types):
        (op, layout), (dtype, kv_cache_dtype, scale) = pair, types
        posed = oracle.problem(
            device, oracle.shuffled(19, 8 * 16), op=op, layout=layout, dtype=dtype,
            kv_cache_dtype=kv_cache_dtype, scale=scale, num_heads=3,
        )  # fmt: skip
        assert_writes(impl, device, posed, dtype)

    @pytest.mark.parametrize(("op", "layout", "sizes"), SIZES_BY_TURNS, ids=str)
    def test_every_size_holds_the_law(self, impl, device, op, layout, sizes):
        skip_refused_sizes(op, sizes)
        num_tokens, num_heads, head_size, block_size = sizes
        num_blocks = -(-num_tokens // block_size) + 2
        posed = oracle.problem(
            device, oracle.shuffled(num_tokens, num_blocks * block_size), op=op, layout=layout,
            num_heads=num_heads, head_size=head_size, block_size=block_size, num_blocks=num_blocks,
        )  # fmt: skip
        oracle.assert_writes(impl, posed)

    @pytest.mark.parametrize(("op", "layout", "head_sizes", "types"), ANY_SIZE_BY_TURNS, ids=str)
    def test_fp8_heads_may_have_any_size(self, impl, device, op, layout, head_sizes, types):
        head_size, head_size_v = head_sizes
        dtype, kv_cache_dtype, scale = types
        posed = oracle.problem(
            device, oracle.shuffled(19, 8 * 16), op=op, layout=layout, dtype=dtype, scale=scale, num_heads=3,
            kv_cache_dtype=kv_cache_dtype, head_size=head_size, head_size_v=head_size_v,
        )  # fmt: skip
        assert_writes(impl, device, posed, dtype)

    @pytest.mark.parametrize("head_sizes", [(192, 128), (64, 128), (46, 33), (16, 256)], ids=str)
    @pytest.mark.parametrize("layout", [layout for op, layout in PAIRS if op == DIFFKV])
    def test_value_heads_may_have_a_size_of_their_own(self, impl, device, layout, head_sizes):
        head_size, head_size_v = head_sizes
        posed = oracle.problem(
            device, oracle.shuffled(11, 128), op=DIFFKV, layout=layout, num_heads=3, head_size=head_size,
            head_size_v=head_size_v,
        )  # fmt: skip
        oracle.assert_writes(impl, posed)

    @pytest.mark.parametrize("num_layers", [2, 3])
    @pytest.mark.parametrize(("op", "layout"), PAIRS, ids=IDS)
    def test_other_layers_of_a_block_stay_as_they_are(self, impl, device, op, layout, num_layers):
        posed = oracle.problem(device, oracle.shuffled(19, 128), op=op, layout=layout, num_layers=num_layers)
        oracle.assert_writes(impl, posed)

    @pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
    @pytest.mark.parametrize("apart", [(2, 2), (1, 3), (5, 1)], ids=str)
    def test_blocks_of_the_head_major_caches_may_lie_apart(self, impl, device, apart, kv_cache_dtype):
        if impl == "triton" and device == "cpu" and kv_cache_dtype == "fp8":
            kv_cache_dtype = "auto"
        posed = oracle.problem(
            device, oracle.shuffled(19, 128), op=PAGED, num_heads=3, kv_cache_dtype=kv_cache_dtype
        )
        oracle.assert_writes(impl, oracle.with_blocks_apart(posed, *apart))

    @pytest.mark.parametrize(("op", "layout"), PAIRS, ids=IDS)
    @pytest.mark.parametrize(
        "slots",
        [
            [-1, 5, 6, 7],
            [5, 6, 7, -1],
            [-1, 5, -1, 6, -1],
            [-1, -1, -1],
            [3, -2, -(2**62), 4],
        ],
        ids=["first", "last", "alternating", "all", "other negatives"],
    )
    def test_padding_slots_write_nothing(self, impl, device, op, layout, slots):
        oracle.assert_writes(impl, oracle.problem(device, slots, op=op, layout=layout))

    @pytest.mark.parametrize("op", compose.cache_writes())
    def test_a_slot_beyond_the_cache_writes_nothing(self, impl, device, op):
        oracle.assert_writes(impl, oracle.problem(device, [3, 8 * 16, 5, 8 * 16 + 7, 2**40], op=op))

    @pytest.mark.parametrize(
        "slots",
        [[4 * 16 - 1, 4 * 16, 8 * 16 - 1, 3], list(range(4 * 16 - 8, 8 * 16)), list(range(4 * 16, 8 * 16))],
        ids=["alone", "a run across the end", "a run behind it"],
    )
    @pytest.mark.parametrize(("op", "layout"), PAIRS, ids=IDS)
    def test_a_slot_beyond_the_cache_leaves_the_memory_behind_it(self, impl, device, op, layout, slots):
        """The caches are the first blocks of larger ones, where a byte that is written too far is seen."""
        posed = oracle.problem(device, slots, op=op, layout=layout, num_blocks=8)
        caches = {name: getattr(posed, name) for name in ("key_cache", "value_cache", "kv_cache")}
        first = {name: cache[:4] for name, cache in caches.items() if cache is not None}
        oracle.assert_writes(impl, replace(posed, **first))

    @pytest.mark.parametrize("op", compose.cache_writes())
    def test_the_first_and_the_last_slot_are_written(self, impl, device, op):
        oracle.assert_writes(impl, oracle.problem(device, [8 * 16 - 1, 0], op=op))

    @pytest.mark.parametrize("op", compose.cache_writes())
    @pytest.mark.parametrize(
        "slots",
        [list(range(21, 90)), list(range(89, 20, -1)), [16 * b + b % 16 for b in (5, 0, 7, 2)]],
        ids=["contiguous", "reversed", "a token in each block"],
    )
    def test_slots_in_runs_hold_the_law(self, impl, device, op, slots):
        oracle.assert_writes(impl, oracle.problem(device, slots, op=op))

    @pytest.mark.parametrize("op", compose.cache_writes())
    def test_no_tokens_write_nothing(self, impl, device, op):
        oracle.assert_writes(impl, oracle.problem(device, [], op=op))

    @pytest.mark.parametrize("op", compose.cache_writes())
    def test_the_slot_mapping_gives_the_number_of_tokens(self, impl, device, op):
        key = torch.randn(9, 2, 64, device=device).bfloat16()
        oracle.assert_writes(impl, oracle.problem(device, [40, 3, 17], op=op, key=key, value=key + 1))

    @pytest.mark.parametrize("op", compose.cache_writes())
    @pytest.mark.parametrize("head_size", [46, 64])
    def test_rows_may_be_views_of_a_fused_qkv_tensor(self, impl, device, op, head_size):
        skip_refused_sizes(op, (5, 2, head_size, 16))
        qkv = torch.randn(5, 4 + 2 + 2, head_size, device=device).bfloat16()
        key, value = qkv[:, 4:6], qkv[:, 6:8]
        posed = oracle.problem(
            device, oracle.shuffled(5, 128), op=op, head_size=head_size, key=key, value=value
        )
        oracle.assert_writes(impl, posed)

    @pytest.mark.parametrize("op", compose.cache_writes())
    def test_key_and_value_rows_may_have_different_strides(self, impl, device, op):
        key = torch.randn(5, 3, 64, device=device).bfloat16()[:, :2]
        value = torch.randn(5, 2, 64, device=device).bfloat16()
        oracle.assert_writes(
            impl, oracle.problem(device, oracle.shuffled(5, 128), op=op, key=key, value=value)
        )

    @pytest.mark.parametrize("op", compose.cache_writes())
    @pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
    def test_a_misaligned_base_is_only_slower(self, impl, device, op, kv_cache_dtype):
        if impl == "triton" and device == "cpu" and kv_cache_dtype == "fp8":
            kv_cache_dtype = "auto"
        flat = torch.randn(1 + 5 * 2 * 64, device=device).bfloat16()
        rows = flat[1:].view(5, 2, 64)
        slots = oracle.shuffled(5, 128)
        posed = oracle.problem(device, slots, op=op, key=rows, value=rows, kv_cache_dtype=kv_cache_dtype)
        oracle.assert_writes(impl, posed)

    @pytest.mark.parametrize("layout", [layout for op, layout in PAIRS if op == FLASH])
    def test_heads_of_distinct_constants_land_in_their_places(self, impl, device, layout):
        heads = torch.arange(1, 6, device=device).bfloat16().view(1, 5, 1).expand(17, 5, 64).contiguous()
        slots = oracle.shuffled(17, 128)
        posed = oracle.problem(device, slots, layout=layout, num_heads=5, key=heads, value=-heads)
        oracle.assert_writes(impl, posed)
        block, offset = slots[3] // 16, slots[3] % 16
        assert posed.key_cache[block, offset, :, 0].tolist() == [1, 2, 3, 4, 5]
        assert posed.value_cache[block, offset, :, 63].tolist() == [-1, -2, -3, -4, -5]

    def test_heads_of_distinct_constants_land_in_the_head_major_cache(self, impl, device):
        elements = torch.arange(64, device=device).bfloat16().view(1, 1, 64).expand(17, 5, 64).contiguous()
        slots = oracle.shuffled(17, 128)
        posed = oracle.problem(device, slots, op=PAGED, num_heads=5, key=elements, value=-elements)
        oracle.assert_writes(impl, posed)
        block, offset = slots[3] // 16, slots[3] % 16
        assert posed.key_cache[block, 4, :, offset].flatten().tolist() == list(range(64))
        assert posed.value_cache[block, 2, :, offset].tolist() == [-i for i in range(64)]
