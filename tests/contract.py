"""The contract of docs/semantics.md as tests, for whatever implementation and device a module asks for.

A test module subclasses `Contract` and gives the fixtures `impl` and `device`.
"""

import pytest
import torch

from kvexp.errors import Unsupported
from tests import composed, law

# num_tokens, num_heads, head_size, block_size: each number of the contract's list at least once.
SIZES = [
    (1, 1, 64, 1),
    (2, 2, 80, 8),
    (7, 3, 96, 16),
    (31, 5, 112, 32),
    (32, 8, 120, 64),
    (33, 13, 128, 128),
    (42, 2, 192, 256),
    (5, 1, 256, 16),
    (9, 3, 46, 16),
    (6, 1, 45, 3),
    (4, 32, 128, 16),
    (3, 40, 64, 16),
    (2, 64, 128, 16),
    (2, 128, 128, 16),
]


class Contract:
    @pytest.mark.parametrize("kv_cache_dtype", composed.options("kv_cache_dtype"))
    @pytest.mark.parametrize("dtype", composed.options("dtype"))
    @pytest.mark.parametrize("layout", composed.options("layout"))
    def test_every_layout_and_type_holds_the_law(self, impl, device, layout, dtype, kv_cache_dtype):
        slots = law.shuffled(19, 8 * 16)
        posed = law.problem(device, slots, layout=layout, dtype=dtype, kv_cache_dtype=kv_cache_dtype)
        if impl == "triton" and device == "cpu" and kv_cache_dtype != "auto":
            with pytest.raises(Unsupported, match="interpreter"):
                posed.bind(law.implementation(impl, device))
        else:
            law.assert_writes(impl, posed)

    @pytest.mark.parametrize("layout", composed.options("layout"))
    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_every_size_holds_the_law(self, impl, device, layout, sizes):
        num_tokens, num_heads, head_size, block_size = sizes
        num_blocks = -(-num_tokens // block_size) + 2
        posed = law.problem(
            device,
            law.shuffled(num_tokens, num_blocks * block_size),
            layout=layout,
            num_heads=num_heads,
            head_size=head_size,
            block_size=block_size,
            num_blocks=num_blocks,
        )
        law.assert_writes(impl, posed)

    @pytest.mark.parametrize("layout", composed.options("layout"))
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
    def test_padding_slots_write_nothing(self, impl, device, layout, slots):
        law.assert_writes(impl, law.problem(device, slots, layout=layout))

    def test_a_slot_beyond_the_cache_writes_nothing(self, impl, device):
        law.assert_writes(impl, law.problem(device, [3, 8 * 16, 5, 8 * 16 + 7, 2**40]))

    def test_the_first_and_the_last_slot_are_written(self, impl, device):
        law.assert_writes(impl, law.problem(device, [8 * 16 - 1, 0]))

    def test_no_tokens_write_nothing(self, impl, device):
        law.assert_writes(impl, law.problem(device, []))

    def test_the_slot_mapping_gives_the_number_of_tokens(self, impl, device):
        key = torch.randn(9, 2, 64, device=device).bfloat16()
        law.assert_writes(impl, law.problem(device, [40, 3, 17], key=key, value=key + 1))

    @pytest.mark.parametrize("head_size", [46, 64])
    def test_rows_may_be_views_of_a_fused_qkv_tensor(self, impl, device, head_size):
        qkv = torch.randn(5, 4 + 2 + 2, head_size, device=device).bfloat16()
        key, value = qkv[:, 4:6], qkv[:, 6:8]
        posed = law.problem(device, law.shuffled(5, 128), head_size=head_size, key=key, value=value)
        law.assert_writes(impl, posed)

    def test_key_and_value_rows_may_have_different_strides(self, impl, device):
        key = torch.randn(5, 3, 64, device=device).bfloat16()[:, :2]
        value = torch.randn(5, 2, 64, device=device).bfloat16()
        law.assert_writes(impl, law.problem(device, law.shuffled(5, 128), key=key, value=value))

    @pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
    def test_a_misaligned_base_is_only_slower(self, impl, device, kv_cache_dtype):
        if impl == "triton" and device == "cpu" and kv_cache_dtype == "fp8":
            kv_cache_dtype = "auto"
        flat = torch.randn(1 + 5 * 2 * 64, device=device).bfloat16()
        rows = flat[1:].view(5, 2, 64)
        slots = law.shuffled(5, 128)
        posed = law.problem(device, slots, key=rows, value=rows, kv_cache_dtype=kv_cache_dtype)
        law.assert_writes(impl, posed)

    @pytest.mark.parametrize("layout", composed.options("layout"))
    def test_heads_of_distinct_constants_land_in_their_places(self, impl, device, layout):
        heads = torch.arange(1, 6, device=device).bfloat16().view(1, 5, 1).expand(17, 5, 64).contiguous()
        slots = law.shuffled(17, 128)
        posed = law.problem(device, slots, layout=layout, num_heads=5, key=heads, value=-heads)
        law.assert_writes(impl, posed)
        block, offset = slots[3] // 16, slots[3] % 16
        assert posed.key_cache[block, offset, :, 0].tolist() == [1, 2, 3, 4, 5]
        assert posed.value_cache[block, offset, :, 63].tolist() == [-1, -2, -3, -4, -5]
