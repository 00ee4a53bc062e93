import functools

import pytest
import torch
import triton

from kvexp.errors import ConfigError, Unsupported
from kvexp.impl.triton import source
from kvexp.impl.triton.launch import make_compiler_options
from tests.helpers import oracle

KERNELS = ("flash", "head_major")


def plan(op=oracle.FLASH, key_at=0, value_at=0, cache_at=0, num_tokens=3, **asked):
    """The plan of a problem whose tensors begin so many items past an aligned address."""
    posed = oracle.problem("cpu", [0] * num_tokens, op=op, num_heads=8, head_size=128, **asked)
    key, value = (moved(t, at) for t, at in ((posed.key, key_at), (posed.value, value_at)))
    caches = (moved(cache, cache_at) for cache in (posed.key_cache, posed.value_cache))
    make = source.plan_head_major if op == oracle.PAGED else source.plan_flash
    return make(key, value, *caches, posed.kv_cache_dtype, posed.k_scale)


def moved(tensor, at):
    """A tensor of the same strides, `at` items past an address that 64 divides."""
    items = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    flat = torch.empty(at + items + 64, dtype=tensor.dtype)
    start = -(flat.data_ptr() % -64) // tensor.element_size() + at
    return flat.as_strided(tensor.shape, tensor.stride(), start)


class TestWhatALauncherCompiles:
    @pytest.mark.parametrize("op", [oracle.FLASH, oracle.PAGED])
    def test_num_tokens_and_addresses_of_one_class_change_nothing(self, op):
        made = plan(op)
        assert plan(op, num_tokens=500) == made
        assert plan(op, key_at=16, value_at=8, cache_at=24) == made

    @pytest.mark.parametrize("op", [oracle.FLASH, oracle.PAGED])
    def test_key_and_value_may_swap_their_alignment_within_a_class(self, op):
        assert plan(op, key_at=4) == plan(op, value_at=4) == plan(op, key_at=4, value_at=4)

    @pytest.mark.parametrize(("off", "divisor"), [(0, 16), (8, 16), (4, 8), (2, 4), (1, 2), (3, 2), (6, 4)])
    def test_pointers_are_as_aligned_as_the_least_aligned_of_their_class(self, off, divisor):
        assert plan(key_at=off).kernel.divisors[:4] == (divisor, divisor, 16, 16)
        assert plan(cache_at=off).kernel.divisors[:4] == (16, 16, divisor, divisor)

    @pytest.mark.parametrize("op", [oracle.FLASH, oracle.PAGED])
    def test_nothing_is_assumed_of_counts(self, op):
        """The numbers of tokens and of slots, which differ from call to call and from cache to cache."""
        assert plan(op, num_tokens=16).kernel.divisors[7:9] == (1, 1)

    @pytest.mark.parametrize("op", [oracle.FLASH, oracle.PAGED])
    def test_num_blocks_is_no_part_of_the_kernel(self, op):
        small, large = plan(op, num_blocks=8), plan(op, num_blocks=11)
        assert small.kernel == large.kernel
        assert (small.sizes[0], large.sizes[0]) == (8 * 16, 11 * 16)

    def test_strides_say_what_divides_them(self):
        narrow = plan(layout="NHD").kernel.divisors[9:]
        assert narrow == (16,) * 5
        posed = oracle.problem("cpu", [0, 1], num_heads=3, head_size=46)
        odd = source.plan_flash(posed.key, posed.value, posed.key_cache, posed.value_cache, "auto", None)
        assert odd.sizes[1:] == (138, 138, 2 * 16 * 138, 138, 46)
        assert odd.kernel.divisors[9:] == (2, 2, 16, 2, 2)

    def test_heads_may_lie_farther_apart_than_blocks(self):
        apart = plan(layout="LHBNC", num_blocks=9)
        row = 128 + 128
        assert apart.sizes[-3:] == (16 * row, row, 9 * 16 * row)
        assert apart.kernel == plan(layout="LHBNC").kernel
        assert source.make_source(apart.kernel, 1, 1024).signature["head_stride"] == "i64"

    def test_the_stride_of_a_dim_of_one_says_nothing(self):
        posed = oracle.problem("cpu", [0, 1], num_heads=1, head_size=64)
        strange = [
            cache.as_strided(cache.shape, (*cache.stride()[:2], 7, 1))
            for cache in (posed.key_cache, posed.value_cache)
        ]
        plans = [
            source.plan_flash(posed.key, posed.value, *caches, "auto", None)
            for caches in (strange, (posed.key_cache, posed.value_cache))
        ]
        assert plans[0] == plans[1]

    def test_a_copy_depends_on_the_width_of_an_item_alone(self):
        assert plan(dtype="half") == plan(dtype="bfloat16")
        assert plan(dtype="half") != plan(dtype="float")
        e4m3, e5m2 = (plan(dtype=kind, kv_cache_dtype=kind) for kind in ("fp8_e4m3", "fp8_e5m2"))
        assert e4m3 == e5m2
        assert e4m3.kernel.pointers[:4] == ("*i8",) * 4

    def test_a_conversion_depends_on_both_types_and_on_the_scale_s_shape(self):
        asked = [
            {"dtype": dtype, "kv_cache_dtype": kind, "scale": scale}
            for dtype in oracle.WIDE
            for kind in ("fp8_e4m3", "fp8_e5m2")
            for scale in ("per_tensor", "per_head")
        ]
        assert len({plan(**one) for one in asked}) == len(asked)

    @pytest.mark.parametrize("op", [oracle.FLASH, oracle.PAGED])
    def test_each_parameter_of_the_kernel_gets_a_type_and_each_constant_a_value(self, op):
        made = plan(op).kernel
        code = source.make_source(made, 32, 128)
        assert list(code.signature) == code.fn.arg_names
        constant = [name for name, word in code.signature.items() if word == "constexpr"]
        assert constant == list(source.make_constants(made, 32, 128))
        assert len(code.signature) == len(made.divisors) + len(constant)
        assert code.attrs[(0,)] == [["tt.divisibility", 16]]


def kernel(name):
    return source.Kernel(name, ("*i16",), (), (("FP8", 0), *([("X", 8)] if name == "head_major" else [])))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("row_items", [16, 45, 92, 1024, 1920, 16384])
def test_a_tile_is_a_power_of_two_within_a_row(name, row_items, large):
    tokens, columns = source.choose_tile(kernel(name), row_items, large)
    assert tokens.bit_count() == columns.bit_count() == 1
    assert columns < 2 * row_items
    items = {"flash": 2048, "head_major": 4096}[name] if large else 1024
    assert tokens * columns == items


@pytest.mark.parametrize(
    ("pointer", "fp8", "items"), [("*i8", 0, 2048), ("*i32", 0, 512), ("*bf16", 1, 1024), ("*fp32", 1, 1024)]
)
def test_a_thread_of_flash_has_sixteen_bytes_or_eight_items_that_become_fp8(pointer, fp8, items):
    made = source.Kernel("flash", (pointer,), (), (("FP8", fp8),))
    tokens, columns = source.choose_tile(made, 128, large=False)
    assert (tokens * columns, columns) == (items, 128)


@pytest.mark.parametrize("large", [False, True])
def test_a_tile_of_head_major_holds_whole_accesses_both_ways(large):
    tokens, columns = source.choose_tile(kernel("head_major"), 1024, large)
    assert tokens % 16 == columns % 16 == 0


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("sm_count", [1, 108, 132, 148])
@pytest.mark.parametrize("row_items", [1, 45, 1024, 16384])
def test_large_tiles_come_when_they_fill_the_gpu_four_times(name, row_items, sm_count):
    gpu = source.Gpu(sm_count, l2_bytes=1 << 40)
    first = -(-4 * sm_count * 4096 // row_items)
    assert [source.is_large(kernel(name), row_items, n, gpu) for n in (first - 1, first)] == [False, True]


def test_flash_has_large_tiles_only_where_the_l2_takes_what_it_writes():
    gpu, flash = source.Gpu(132, l2_bytes=60 << 20), kernel("flash")
    # K and V of 1024 items of 2 bytes.
    last = (30 << 20) // 4096
    assert [source.is_large(flash, 1024, n, gpu) for n in (last, last + 1)] == [True, False]
    assert source.is_large(kernel("head_major"), 1024, last + 1, gpu)


def test_what_becomes_fp8_has_large_tiles_from_a_quarter_of_a_filling_on():
    gpu, to_fp8 = source.Gpu(132, l2_bytes=60 << 20), source.Kernel("flash", ("*bf16",), (), (("FP8", 1),))
    first = 132 * 2048 * 8 // 4 // 1024
    found = [source.is_large(to_fp8, 1024, n, gpu) for n in (first - 1, first, 1 << 20)]
    assert found == [False, True, True]
    assert source.choose_tile(to_fp8, 1024, large=True) == (2, 1024)


def test_rows_wait_for_their_slots_where_accesses_fill_the_gpu_three_times():
    gpu = source.Gpu(132, 60 << 20)
    filled = 3 * 132 * 2048 * 8 // 1024
    found = [source.waits_for_slots(kernel("flash"), 1024, n, gpu) for n in (filled - 1, filled)]
    assert found == [False, True]
    assert not source.waits_for_slots(kernel("head_major"), 1024, filled, gpu)


def test_small_tiles_make_more_programs_than_the_gpu_has_multiprocessors():
    gpu = source.Gpu(132, 60 << 20)
    for name in KERNELS:
        assert not source.is_large(kernel(name), 1024, 512, gpu)
        tokens, columns = source.choose_tile(kernel(name), 1024, large=False)
        assert triton.cdiv(512, tokens) * triton.cdiv(1024, columns) > 132


class TestOptions:
    def test_say_the_tile_or_a_part_of_it(self):
        tile = functools.partial(source.choose_tile, kernel("flash"), 1024, False)
        assert tile(source.Options(tile_tokens=2, tile_columns=64)) == (2, 64)
        assert tile(source.Options(tile_columns=64)) == (1024 // 64, 64)
        assert tile(source.Options(tile_tokens=8)) == (8, 1024)
        assert tile(source.Options(tile_columns=4096, tile_tokens=1)) == (1, 4096)

    @pytest.mark.parametrize("name", ["num_warps", "tile_tokens", "tile_columns"])
    @pytest.mark.parametrize("value", [0, -1, 3, 8192, 1.0, True, "4"])
    def test_that_are_not_powers_of_two_are_refused(self, name, value):
        with pytest.raises(
            ConfigError, match=rf"impl\.{name} must be a power of two up to .*, not {value!r}"
        ):
            source.Options(**{name: value})

    @pytest.mark.parametrize("value", [0, 1, "true"])
    def test_that_is_not_a_boolean_is_refused(self, value):
        with pytest.raises(
            ConfigError, match=rf"impl\.slot_first must be true, false or null, not {value!r}"
        ):
            source.Options(slot_first=value)

    @pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
    def test_of_fewer_stages_than_one_are_refused(self, value):
        with pytest.raises(
            ConfigError, match=rf"impl\.num_stages must be a whole number from 1 on, not {value!r}"
        ):
            source.Options(num_stages=value)

    @pytest.mark.parametrize("value", [1, 3, 10])
    def test_of_any_other_number_of_stages_reach_triton(self, value):
        assert source.Options(num_stages=value).num_stages == value
        assert make_compiler_options(4, value) == {"num_warps": 4, "num_stages": value}

    def test_of_no_number_of_stages_leave_it_to_triton(self):
        assert make_compiler_options(8, source.Options().num_stages) == {"num_warps": 8}

    def test_that_make_too_large_a_tile_are_refused(self):
        with pytest.raises(ConfigError, match=r"tile_tokens times impl\.tile_columns must be at most 65536"):
            source.Options(tile_tokens=4096, tile_columns=32)

    def test_that_make_too_large_a_tile_of_the_kernel_s_own_columns_are_refused(self):
        with pytest.raises(Unsupported, match="a tile of 128 x 1024 items is more than 65536"):
            source.choose_tile(kernel("flash"), 1024, True, source.Options(tile_tokens=128))

    def test_that_split_a_run_are_refused(self):
        with pytest.raises(Unsupported, match="must hold whole runs of 8 items, and 4 do not"):
            source.choose_tile(kernel("head_major"), 1024, True, source.Options(tile_columns=4))
