import functools
import math

import pytest
import triton

from kvexp.errors import ConfigError, Unsupported
from kvexp.impl.triton import (
    reshape_and_cache,
    reshape_and_cache_flash,
    reshape_and_cache_flash_diffkv,
    source,
)
from kvexp.impl.triton.launch import make_compiler_options
from tests.helpers import oracle

FILES = {oracle.FLASH: reshape_and_cache_flash, oracle.PAGED: reshape_and_cache}
OPS = tuple(FILES)
GPU = source.Gpu(132, l2_bytes=60 << 20)
ANY_L2 = 1 << 40
TO_FP8 = ("*bf16", "*fp8e4nv")


def plan(op=oracle.FLASH, key_at=0, value_at=0, cache_at=0, num_tokens=3, **asked):
    """The plan of a problem whose tensors begin so many items past an aligned address."""
    posed = oracle.problem("cpu", [0] * num_tokens, op=op, num_heads=8, head_size=128, **asked)
    key, value = (oracle.moved(t, at) for t, at in ((posed.key, key_at), (posed.value, value_at)))
    caches = (oracle.moved(cache, cache_at) for cache in (posed.key_cache, posed.value_cache))
    others = (posed.slot_mapping, posed.kv_cache_dtype, posed.k_scale, posed.v_scale)
    return FILES[op].fit(key, value, *caches, *others)[0]


class TestWhatALauncherCompiles:
    @pytest.mark.parametrize("op", OPS)
    def test_num_tokens_and_addresses_of_one_class_change_nothing(self, op):
        made = plan(op)
        assert plan(op, num_tokens=500) == made
        assert plan(op, key_at=16, value_at=8, cache_at=24) == made

    @pytest.mark.parametrize("op", OPS)
    def test_key_and_value_may_swap_their_alignment_within_a_class(self, op):
        assert plan(op, key_at=4) == plan(op, value_at=4) == plan(op, key_at=4, value_at=4)

    @pytest.mark.parametrize(("off", "divisor"), [(0, 16), (8, 16), (4, 8), (2, 4), (1, 2), (3, 2), (6, 4)])
    def test_pointers_are_as_aligned_as_the_least_aligned_of_their_class(self, off, divisor):
        assert plan(key_at=off).kernel.divisors[:4] == (divisor, divisor, 16, 16)
        assert plan(cache_at=off).kernel.divisors[:4] == (16, 16, divisor, divisor)

    @pytest.mark.parametrize("op", OPS)
    def test_nothing_is_assumed_of_counts(self, op):
        """The numbers of tokens and of slots, which differ from call to call and from cache to cache."""
        assert plan(op, num_tokens=16).kernel.divisors[7:9] == (1, 1)

    @pytest.mark.parametrize("op", OPS)
    def test_num_blocks_is_no_part_of_the_kernel(self, op):
        small, large = plan(op, num_blocks=8), plan(op, num_blocks=11)
        assert small.kernel == large.kernel
        assert (small.sizes[0], large.sizes[0]) == (8 * 16, 11 * 16)

    def test_strides_say_what_divides_them(self):
        narrow = plan(layout="NHD").kernel.divisors[9:]
        assert narrow == (16,) * 5
        posed = oracle.problem("cpu", [0, 1], num_heads=3, head_size=46)
        odd, _, _ = reshape_and_cache_flash.fit(*posed.arguments)
        assert odd.sizes[1:] == (138, 138, 2 * 16 * 138, 138, 46)
        assert odd.kernel.divisors[9:] == (2, 2, 16, 2, 2)

    def test_heads_may_lie_farther_apart_than_blocks(self):
        apart = plan(layout="LHBNC", num_blocks=9)
        row = 128 + 128
        assert apart.sizes[-3:] == (16 * row, row, 9 * 16 * row)
        assert apart.kernel == plan(layout="LHBNC").kernel
        assert source.make_source(apart.kernel, tile(apart, 1)).signature["head_stride"] == "i64"

    def test_the_stride_of_a_dim_of_one_says_nothing(self):
        posed = oracle.problem("cpu", [0, 1], num_heads=1, head_size=64)
        key, value, *caches, slots, kv_cache_dtype, k_scale, v_scale = posed.arguments
        strange = [cache.as_strided(cache.shape, (*cache.stride()[:2], 7, 1)) for cache in caches]
        found, expected = (
            reshape_and_cache_flash.fit(key, value, *both, slots, kv_cache_dtype, k_scale, v_scale)[0]
            for both in (strange, caches)
        )
        assert found == expected

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

    def test_one_cache_of_k_and_v_is_launched_as_two(self):
        posed = oracle.problem("cpu", [0], op=oracle.DIFFKV, head_size=46, head_size_v=33)
        made, (key, value, key_cache, value_cache, *_), _ = reshape_and_cache_flash_diffkv.fit(
            *posed.arguments
        )
        launched = []
        made.adapt(lambda *addresses: launched.append(addresses))(1, 2, key_cache.data_ptr(), 4, 5, 6)
        assert launched == [(1, 2, key_cache.data_ptr(), value_cache.data_ptr(), 4, 5, 6)]
        assert (key.shape[2], value.shape[2]) == (key_cache.shape[3], value_cache.shape[3])

    @pytest.mark.parametrize("op", OPS)
    def test_each_parameter_of_the_kernel_gets_a_type_and_each_constant_a_value(self, op):
        made = plan(op)
        chosen = tile(made, 1)
        code = source.make_source(made.kernel, chosen)
        assert list(code.signature) == code.fn.arg_names
        constant = [name for name, word in code.signature.items() if word == "constexpr"]
        assert constant == [name for name, _ in (*made.kernel.constants, *chosen.constants)]
        assert len(code.signature) == len(made.kernel.divisors) + len(constant)
        assert code.attrs[(0,)] == [["tt.divisibility", 16]]


def rows(op, items, pointers=("*i16",), x=1):
    """A plan for rows of so many items, of a head-major cache in runs of `x`."""
    kernel = source.Kernel(None, pointers, (), (("X", x),))
    return source.Plan(kernel, (), items, FILES[op].choose_tile)


def tile(plan, num_tokens, gpu=GPU, **options):
    return plan.choose_tile(plan, num_tokens, gpu, source.Options(**options))


def sides(plan, num_tokens, gpu=GPU, **options):
    """Tokens and columns of a tile."""
    constants = dict(tile(plan, num_tokens, gpu, **options).constants)
    return constants["TOKENS"], constants["COLUMNS"]


def is_large(plan, num_tokens, gpu):
    """Whether the tile has more items than the one of a single token."""
    return math.prod(sides(plan, num_tokens, gpu)) > math.prod(sides(plan, 1, source.Gpu(1 << 20, 0)))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("row_items", [16, 45, 92, 1024, 1920, 16384])
def test_a_tile_is_a_power_of_two_within_a_row(op, row_items, large):
    num_tokens, gpu = (1 << 20, source.Gpu(132, ANY_L2)) if large else (1, GPU)
    made = tile(rows(op, row_items), num_tokens, gpu)
    tokens, columns = sides(rows(op, row_items), num_tokens, gpu)
    assert tokens.bit_count() == columns.bit_count() == 1
    assert columns < 2 * row_items
    items = {oracle.FLASH: 2048, oracle.PAGED: 4096}[op] if large else 1024
    assert tokens * columns == items
    assert (made.tokens, made.programs) == (tokens, triton.cdiv(row_items, columns))


@pytest.mark.parametrize(
    ("pointers", "items"),
    [(("*i8",), 2048), (("*i32",), 512), (TO_FP8, 1024), (("*fp32", "*fp8e5"), 1024)],
)
def test_a_thread_of_flash_has_sixteen_bytes_or_eight_items_that_become_fp8(pointers, items):
    tokens, columns = sides(rows(oracle.FLASH, 128, pointers), 1)
    assert (tokens * columns, columns) == (items, 128)


@pytest.mark.parametrize("num_tokens", [1, 1 << 20])
def test_a_tile_of_head_major_holds_whole_accesses_both_ways(num_tokens):
    tokens, columns = sides(rows(oracle.PAGED, 1024), num_tokens)
    assert tokens % 16 == columns % 16 == 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sm_count", [1, 108, 132, 148])
@pytest.mark.parametrize("row_items", [1, 45, 1024, 16384])
def test_large_tiles_come_when_they_fill_the_gpu_four_times(op, row_items, sm_count):
    gpu = source.Gpu(sm_count, ANY_L2)
    first = -(-4 * sm_count * 4096 // row_items)
    assert [is_large(rows(op, row_items), n, gpu) for n in (first - 1, first)] == [False, True]


def test_flash_has_large_tiles_only_where_the_l2_takes_what_it_writes():
    # K and V of 1024 items of 2 bytes.
    last = (30 << 20) // 4096
    assert [is_large(rows(oracle.FLASH, 1024), n, GPU) for n in (last, last + 1)] == [True, False]
    assert is_large(rows(oracle.PAGED, 1024), last + 1, GPU)


def test_what_becomes_fp8_has_large_tiles_from_a_quarter_of_a_filling_on():
    to_fp8 = rows(oracle.FLASH, 1024, TO_FP8)
    first = 132 * 2048 * 8 // 4 // 1024
    assert [is_large(to_fp8, n, GPU) for n in (first - 1, first, 1 << 20)] == [False, True, True]
    assert sides(to_fp8, first) == (2, 1024)


def test_rows_wait_for_their_slots_where_accesses_fill_the_gpu_three_times():
    filled = 3 * 132 * 2048 * 8 // 1024

    def waits(op, num_tokens, **asked):
        return dict(tile(rows(op, 1024, **asked), num_tokens).constants).get("SLOT_FIRST")

    assert [waits(oracle.FLASH, n) for n in (filled - 1, filled)] == [0, 1]
    assert waits(oracle.FLASH, filled, pointers=TO_FP8) == 0
    assert waits(oracle.PAGED, filled) is None


@pytest.mark.parametrize("op", OPS)
def test_small_tiles_make_more_programs_than_the_gpu_has_multiprocessors(op):
    assert not is_large(rows(op, 1024), 512, GPU)
    made = tile(rows(op, 1024), 512)
    assert triton.cdiv(512, made.tokens) * made.programs > 132


class TestOptions:
    def test_say_the_tile_or_a_part_of_it(self):
        of = functools.partial(sides, rows(oracle.FLASH, 1024), 1)
        assert of(tile_tokens=2, tile_columns=64) == (2, 64)
        assert of(tile_columns=64) == (1024 // 64, 64)
        assert of(tile_tokens=8) == (8, 1024)
        assert of(tile_columns=4096, tile_tokens=1) == (1, 4096)

    @pytest.mark.parametrize("slot_first", [False, True])
    def test_say_whether_rows_wait_for_their_slots(self, slot_first):
        for num_tokens in (1, 1 << 20):
            made = tile(rows(oracle.FLASH, 1024), num_tokens, slot_first=slot_first)
            assert dict(made.constants)["SLOT_FIRST"] == slot_first

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
            tile(rows(oracle.FLASH, 1024), 1, tile_tokens=128)

    def test_that_split_a_run_are_refused(self):
        with pytest.raises(Unsupported, match="must hold whole runs of 8 items, and 4 do not"):
            tile(rows(oracle.PAGED, 1024, x=8), 1, tile_columns=4)
