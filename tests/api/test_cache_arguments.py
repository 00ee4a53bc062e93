"""What the library's functions refuse of caches, and what they take."""

from dataclasses import replace

import pytest
import torch

from tests.helpers import oracle
from tests.helpers.library_calls import SLOTS, assert_refused, called
from tests.helpers.oracle import DIFFKV, FLASH, PAGED


class TestCaches:
    def test_must_have_the_rows_heads(self):
        posed = oracle.problem("cpu", SLOTS)
        assert_refused(
            replace(posed, key_cache=posed.key_cache[:, :, :1]),
            ValueError,
            "key_cache must be [num_blocks, block_size, 2, 64] (num_heads, head_size), not [8, 16, 1, 64]",
        )
        posed = oracle.problem("cpu", SLOTS, op=DIFFKV)
        assert_refused(
            replace(posed, kv_cache=posed.kv_cache[..., :64]),
            ValueError,
            "kv_cache must be [num_blocks, block_size, 2, 128] (num_heads, head_size + head_size_v), "
            "not [8, 16, 2, 64]",
        )

    @pytest.mark.parametrize("function", [PAGED, FLASH])
    def test_must_have_the_rows_heads_where_they_are_head_major(self, function):
        posed = replace(oracle.problem("cpu", SLOTS, op=PAGED), op=function)
        assert_refused(
            replace(posed, value_cache=posed.value_cache[:, :1]),
            ValueError,
            "value_cache must be [num_blocks, 2, 64, block_size], not [8, 1, 64, 16]",
        )
        assert_refused(
            replace(posed, value_cache=torch.zeros(8, 16, 2, 64, dtype=torch.bfloat16)),
            ValueError,
            "value_cache must be [num_blocks, 2, 64, block_size], not [8, 16, 2, 64]",
        )
        assert_refused(
            replace(posed, key_cache=posed.key_cache[:4]),
            ValueError,
            "key_cache must be [8, 2, 8, 16, 8] to fit value_cache, not [4, 2, 8, 16, 8]",
        )

    def test_must_have_equal_sizes_and_strides(self):
        posed = oracle.problem("cpu", SLOTS)
        assert_refused(
            replace(posed, value_cache=posed.value_cache[:4]),
            ValueError,
            "value_cache must be [8, 16, 2, 64] as key_cache is, not [4, 16, 2, 64]",
        )
        assert_refused(
            replace(posed, value_cache=posed.value_cache.contiguous()),
            ValueError,
            "value_cache must have the strides of key_cache, (4096, 128, 64, 1), not (2048, 128, 64, 1)",
        )

    def test_must_be_contiguous_where_the_op_says_so(self):
        posed = oracle.problem("cpu", SLOTS)
        swapped = torch.zeros(8, 16, 64, 2, dtype=torch.bfloat16).transpose(2, 3)
        assert_refused(
            replace(posed, key_cache=swapped),
            ValueError,
            "key_cache must have a contiguous last dim, not the strides (2048, 128, 1, 2)",
        )
        posed = oracle.problem("cpu", SLOTS, op=PAGED)
        assert_refused(
            replace(posed, value_cache=torch.zeros(8, 2, 16, 64, dtype=torch.bfloat16).transpose(2, 3)),
            ValueError,
            "value_cache must be contiguous inside a block, not have the strides (2048, 1024, 1, 64)",
        )

    def test_must_have_memory_of_their_own(self):
        posed = oracle.problem("cpu", SLOTS)
        shared = torch.zeros(1, 16, 2, 64, dtype=torch.bfloat16).expand(8, 16, 2, 64)
        assert_refused(
            replace(posed, key_cache=shared),
            ValueError,
            "key_cache must have memory of its own for each element, not the strides (0, 128, 64, 1)",
        )

    def test_must_not_have_elements_that_overlap(self):
        posed = oracle.problem("cpu", [3, 7], num_blocks=4, num_heads=2, head_size=32)
        overlapping = torch.zeros(4096, dtype=torch.bfloat16).as_strided((4, 16, 2, 32), (8, 8, 8, 1))
        assert_refused(
            replace(posed, key_cache=overlapping, value_cache=overlapping.clone()),
            ValueError,
            "key_cache must have memory of its own for each element, not the strides (8, 8, 8, 1)",
        )

    @pytest.mark.parametrize("sizes", [{"num_blocks": 0}, {"block_size": 0, "num_blocks": 2}])
    def test_without_a_slot_are_not_written(self, op, sizes):
        posed = oracle.problem("cpu", [], op=op)
        shape = {"num_blocks": 8, "block_size": 16, **sizes}
        blocks, size = shape["num_blocks"], shape["block_size"]
        shapes = {
            FLASH: [(blocks, size, 2, 64)] * 2,
            DIFFKV: [(blocks, size, 2, 128)],
            PAGED: [(blocks, 2, 8, size, 8), (blocks, 2, 64, size)],
        }[op]
        caches = [torch.zeros(one, dtype=torch.bfloat16) for one in shapes]
        names = ("kv_cache",) if op == DIFFKV else ("key_cache", "value_cache")
        empty = dict(zip(names, caches, strict=True))
        called(replace(posed, **empty, slot_mapping=torch.tensor([0, 3]), key=torch.ones(2, 2, 64).bfloat16(),
                       value=torch.ones(2, 2, 64).bfloat16()))  # fmt: skip

    def test_must_have_the_items_of_their_kind(self, posed, op):
        name = "kv_cache" if op == DIFFKV else "key_cache"
        assert_refused(
            replace(posed, kv_cache_dtype="fp8_e5m2"),
            TypeError,
            f"{name} must be uint8 or float8_e5m2 for kv_cache_dtype=fp8_e5m2, not bfloat16",
        )
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8")
        assert_refused(
            replace(posed, kv_cache_dtype="auto"),
            TypeError,
            f"{name} must be bfloat16 for kv_cache_dtype=auto, not uint8",
        )

    def test_of_amd_s_own_fp8_are_refused(self, op):
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8")
        names = ("kv_cache",) if op == DIFFKV else ("key_cache", "value_cache")
        views = {name: getattr(posed, name).view(torch.float8_e4m3fnuz) for name in names}
        assert_refused(
            replace(posed, **views),
            TypeError,
            f"{names[0]} must be uint8 or float8_e4m3fn for kv_cache_dtype=fp8_e4m3, not float8_e4m3fnuz",
        )

    @pytest.mark.parametrize("kind", ["fp8_e4m3", "fp8_e5m2"])
    def test_of_torch_s_own_fp8_types_hold_the_same_codes(self, op, kind):
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype=kind)
        expected = posed.expected()
        caches = {name: getattr(posed, name) for name in ("key_cache", "value_cache", "kv_cache")}
        views = {name: cache.view(oracle.DTYPES[kind]) for name, cache in caches.items() if cache is not None}
        called(replace(posed, **views))
        assert torch.equal(posed.storage, expected)

    def test_of_one_block_may_have_any_stride_of_blocks(self):
        posed = oracle.problem("cpu", [3, 7], num_blocks=1)
        own = posed.value_cache.as_strided(posed.value_cache.shape, (7, *posed.value_cache.stride()[1:]))
        called(replace(posed, value_cache=own))
        assert torch.equal(posed.key_cache[0, 7], posed.key[1])
