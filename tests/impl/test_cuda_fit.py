"""The specialisation that a call's tensors lead to."""

import importlib
from itertools import product

import pytest
import torch

from kvexp.errors import Unsupported
from kvexp.impl.cuda import concat_and_cache_mla
from kvexp.impl.cuda.options import Options
from kvexp.op import FP8
from tests.helpers import compose, latent, oracle

FLASH_LAYOUTS = [layout for op, layout in compose.pairs() if op == oracle.FLASH]
TYPES = list(product(oracle.DTYPES, FP8))
ODD = 1 + 2 * 2 * 64


def specialised(posed):
    """The specialisation of a problem, and the slots of its cache."""
    file = importlib.import_module(f"kvexp.impl.cuda.{posed.op}")
    fitted = file.fit(*posed.arguments, options=Options())
    assert fitted.num_tokens == len(posed.slot_mapping)
    (num_slots,) = fitted.sizes
    return fitted.spec, num_slots


def rows_at_an_odd_element():
    rows = torch.randn(ODD).bfloat16()[1:].view(2, 2, 64)
    assert rows.data_ptr() % 4 == 2
    return rows


class TestFlash:
    @pytest.mark.parametrize("kv_cache_dtype", compose.formats())
    @pytest.mark.parametrize("dtype", oracle.WIDE)
    @pytest.mark.parametrize("layout", FLASH_LAYOUTS)
    def test_moves_sixteen_bytes_at_once_where_everything_is_aligned(self, layout, dtype, kv_cache_dtype):
        posed = oracle.problem("cpu", [5, 1], layout=layout, dtype=dtype, kv_cache_dtype=kv_cache_dtype)
        spec, _ = specialised(posed)
        assert spec.vec * posed.key_cache.element_size() == 16

    @pytest.mark.parametrize(("layout", "types"), compose.by_turns(FLASH_LAYOUTS, TYPES, 3))
    @pytest.mark.parametrize(
        ("head_size", "vec"), [(1, 1), (7, 1), (45, 1), (46, 2), (100, 4), (120, 8), (80, 16), (96, 16)]
    )
    def test_of_fp8_heads_of_any_size_moves_the_largest_power_of_two_that_divides_them(
        self, layout, types, head_size, vec
    ):
        dtype, kv_cache_dtype = types
        posed = oracle.problem(
            "cpu", [5, 1], layout=layout, dtype=dtype, kv_cache_dtype=kv_cache_dtype, num_heads=4,
            head_size=head_size,
        )  # fmt: skip
        assert specialised(posed)[0].vec == vec

    @pytest.mark.parametrize(
        ("kv_cache_dtype", "num_tokens", "items", "unroll"),
        [
            ("auto", 64, 8, 1),
            ("auto", 3754, 8, 1),
            ("auto", 4096, 8, 2),
            ("auto", 15018, 8, 2),
            ("auto", 32768, 8, 1),
            ("fp8_e4m3", 64, 4, 1),
            ("fp8_e4m3", 512, 16, 1),
            ("fp8_e4m3", 7509, 16, 1),
            ("fp8_e4m3", 8192, 16, 2),
            ("fp8_e4m3", 12288, 16, 1),
        ],
    )
    def test_of_latent_rows_gives_a_thread_what_an_h200_does_soonest(
        self, kv_cache_dtype, num_tokens, items, unroll
    ):
        posed = latent.problem("cpu", [1, 5, 3], kv_cache_dtype=kv_cache_dtype, sizes=(512, 64))
        spec = concat_and_cache_mla.fit(*posed.arguments, options=Options()).spec
        tuned = spec.tuned(Options(), num_tokens, 132)
        assert (tuned.vec, tuned.unroll) == (items, unroll)

    def test_takes_the_items_of_a_chunk_that_are_asked_for(self):
        spec, _ = specialised(oracle.problem("cpu", [5, 1], num_heads=4, head_size=100))
        assert spec.tuned(Options(chunk_items=2), 3, 132).vec == 2
        words = "impl.chunk_items=8 is more than the 4 items that heads, rows and their addresses allow"
        with pytest.raises(Unsupported, match=words):
            spec.tuned(Options(chunk_items=8), 3, 132)

    def test_of_a_row_that_starts_at_an_odd_element_moves_one(self):
        rows = rows_at_an_odd_element()
        assert specialised(oracle.problem("cpu", [5, 1], key=rows))[0].vec == 1
        assert specialised(oracle.problem("cpu", [5, 1], value=rows))[0].vec == 1

    def test_of_rows_an_odd_stride_apart_moves_one(self):
        rows = torch.randn(2, 2 * 64 + 1).bfloat16()[:, :128].unflatten(1, (2, 64))
        assert specialised(oracle.problem("cpu", [5, 1], value=rows))[0].vec == 1

    @pytest.mark.parametrize("layout", FLASH_LAYOUTS)
    def test_has_the_strides_of_its_tensors(self, layout):
        qkv = torch.randn(3, 8, 64).bfloat16()
        posed = oracle.problem("cpu", [5, 1, 9], layout=layout, key=qkv[:, 4:6])
        spec, num_slots = specialised(posed)
        assert spec.row_strides == (512, 128)
        assert spec.cache_strides == posed.key_cache.stride()[:3]
        assert (spec.num_heads, spec.head_size, spec.head_size_v, spec.block_size) == (2, 64, 64, 16)
        assert num_slots == 8 * 16

    def test_does_not_care_for_the_stride_of_a_lone_index(self):
        posed = oracle.problem("cpu", [5, 1], num_heads=1, block_size=1, num_blocks=1)
        usual = specialised(posed)
        shape = posed.key_cache.shape
        posed.key_cache = posed.key_cache.as_strided(shape, (3, 5, 7, 1))
        assert specialised(posed) == usual

    def test_is_one_for_all_addresses_of_an_alignment(self):
        storage = torch.zeros(4 * 128 + 64, dtype=torch.bfloat16)
        found = [
            specialised(oracle.problem("cpu", [5, 1], key=storage[start : start + 256].view(2, 2, 64)))[0]
            for start in (1, 9, 17, 33)
        ]
        assert found == [found[0]] * 4


class TestDiffkv:
    @pytest.mark.parametrize("layout", [layout for op, layout in compose.pairs() if op == oracle.DIFFKV])
    def test_is_flash_on_the_cache_s_halves(self, layout):
        posed = oracle.problem("cpu", [5, 1], op=oracle.DIFFKV, layout=layout, head_size=192, head_size_v=128)
        spec, num_slots = specialised(posed)
        assert (spec.head_size, spec.head_size_v, spec.both) == (192, 128, False)
        assert spec.row_strides == (2 * 192, 2 * 128)
        assert spec.cache_strides == posed.kv_cache.stride()[:3]
        assert (spec.vec, num_slots) == (8, 128)

    @pytest.mark.parametrize("kv_cache_dtype", compose.formats())
    @pytest.mark.parametrize(
        ("head_size", "head_size_v", "vec"), [(64, 60, 4), (64, 62, 2), (63, 64, 1), (46, 33, 1), (8, 4, 4)]
    )
    def test_splits_neither_half_s_heads(self, head_size, head_size_v, vec, kv_cache_dtype):
        sizes = {"head_size": head_size, "head_size_v": head_size_v}
        posed = oracle.problem("cpu", [5], op=oracle.DIFFKV, kv_cache_dtype=kv_cache_dtype, **sizes)
        assert specialised(posed)[0].vec == vec

    @pytest.mark.parametrize("kv_cache_dtype", compose.formats())
    def test_splits_no_head_of_a_lone_slot_whose_strides_say_nothing(self, kv_cache_dtype):
        rows = {
            name: torch.randn(64).bfloat16().as_strided((1, 1, size), (64, size, 1))
            for name, size in (("key", 46), ("value", 33))
        }
        posed = oracle.problem(
            "cpu", [0], op=oracle.DIFFKV, num_heads=1, num_blocks=1, block_size=1,
            head_size=46, head_size_v=33,
            kv_cache_dtype=kv_cache_dtype, **rows,
        )  # fmt: skip
        assert specialised(posed)[0].vec == 1


class TestHeadMajor:
    @pytest.mark.parametrize("kv_cache_dtype", compose.formats())
    @pytest.mark.parametrize("dtype", oracle.WIDE)
    def test_loads_and_stores_whole_chunks_where_everything_is_aligned(self, dtype, kv_cache_dtype):
        posed = oracle.problem("cpu", [5, 1], op=oracle.PAGED, dtype=dtype, kv_cache_dtype=kv_cache_dtype)
        spec, num_slots = specialised(posed)
        chunk = 16 // posed.key_cache.element_size()
        assert (spec.source_vec, spec.key_vec, num_slots) == (chunk, chunk, 128)
        assert (spec.num_heads, spec.head_size, spec.block_size) == (2, 64, 16)

    def test_of_a_row_that_starts_at_an_odd_element_loads_one(self):
        rows = rows_at_an_odd_element()
        for name in ("key", "value"):
            spec, _ = specialised(oracle.problem("cpu", [5, 1], op=oracle.PAGED, **{name: rows}))
            assert (spec.source_vec, spec.key_vec) == (1, 8)

    def test_of_a_key_cache_at_an_odd_element_stores_one(self):
        posed = oracle.problem("cpu", [5, 1], op=oracle.PAGED)
        shape = posed.key_cache.shape
        posed.key_cache = torch.zeros(posed.key_cache.numel() + 1, dtype=torch.bfloat16)[1:].view(shape)
        spec, _ = specialised(posed)
        assert (spec.source_vec, spec.key_vec) == (8, 1)

    def test_has_the_block_strides_of_both_caches(self):
        posed = oracle.problem("cpu", [5, 1], op=oracle.PAGED)
        block = 2 * 64 * 16
        shape = posed.value_cache.shape
        posed.value_cache = torch.zeros(8, 3 * block, dtype=torch.bfloat16)[:, :block].view(shape)
        assert posed.value_cache.stride(0) == 3 * block
        spec, _ = specialised(posed)
        assert spec.block_strides == (posed.key_cache.stride(0), 3 * block)
        assert spec.row_strides == (128, 128)

    @pytest.mark.parametrize(("dtype", "chunk"), [("bfloat16", 8), ("float", 4), ("fp8_e5m2", 16)])
    def test_of_items_of_any_width_has_chunks_of_sixteen_bytes(self, dtype, chunk):
        posed = oracle.problem("cpu", [5], op=oracle.PAGED, dtype=dtype)
        assert posed.key_cache.shape[4] == chunk
        assert specialised(posed)[0].source_vec == chunk
