import json
import os
import re
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch

from kvexp.errors import Unsupported
from kvexp.impl.triton import Triton
from tests.helpers import compose, nvfp4, oracle, own_scales

KINDS = ("fp8_e4m3", "fp8_e5m2")


PAIRS = compose.pairs()
FLASH, PAGED = {"op": oracle.FLASH}, {"op": oracle.PAGED}
# One value of each goes by turns: every pair of values is there, and triples repeat only the code of pairs.
ALIGNED = [
    {"arch": arch, **op, "dtype": dtype, "kv_cache_dtype": "auto"}
    for arch, op, dtype in zip(
        [80, 89, 90, 100], [FLASH, PAGED] * 2, ["bfloat16"] * 2 + ["float"] * 2, strict=True
    )
]
FP8_SOURCES = [
    {"arch": 80, **op, "dtype": kind, "kv_cache_dtype": kind}
    for op, kind in zip([FLASH, PAGED], KINDS, strict=True)
]
CONVERTING = [
    {"arch": (90, 100)[(i + j) % 2], **op, "dtype": dtype, "kv_cache_dtype": KINDS[j % 2]}
    for (i, op), (j, dtype) in product(enumerate([FLASH, PAGED]), enumerate(oracle.WIDE))
]
PER_HEAD = [
    {"arch": 90, **op, "dtype": "bfloat16", "kv_cache_dtype": "fp8_e4m3", "per_head": True}
    for op in (FLASH, PAGED)
]
ANY_SIZE = [
    {"arch": 90, **FLASH, "dtype": dtype, "kv_cache_dtype": kind, "head_size": size, "head_size_v": size_v,
     "per_head": per_head}
    for dtype, kind, size, size_v, per_head in [
        ("bfloat16", "fp8_e4m3", 1, 1, False), ("bfloat16", "fp8_e5m2", 46, 33, True),
        ("float", "fp8_e5m2", 100, 100, False),
    ]
]  # fmt: skip
SHORT_V = {"arch": 90, **FLASH, "dtype": "bfloat16", "kv_cache_dtype": "auto", "head_size_v": 64}
MISALIGNED = [{**SHORT_V, "head_size_v": 128, "off": off} for off in (1, 4)]
OWN_SCALES = [
    {"arch": arch, "op": own_scales.OP, "dtype": dtype, "kv_cache_dtype": kind}
    for arch, dtype, kind in [(80, "float", own_scales.INT8), (90, "bfloat16", own_scales.TO_FP8)]
]
FOUR_BITS = [
    {"arch": arch, "op": nvfp4.NVFP4_OP, "dtype": dtype, "kv_cache_dtype": "nvfp4"}
    for arch, dtype in [(80, "half"), (90, "bfloat16")]
]
STAGED = [
    {**next(one for one in (*ALIGNED, *CONVERTING) if (one["op"], one["kv_cache_dtype"]) == (op["op"], kind)),
     "num_stages": num_stages}
    for op, kind, num_stages in [(FLASH, "auto", 1), (PAGED, "fp8_e4m3", 10)]
]  # fmt: skip
DECODES = [
    {"arch": arch, "kernel": "attend", "dtype": dtype, "kv_cache_dtype": kind, "parts": parts}
    for arch, dtype, kind, parts in [
        (90, "bfloat16", "auto", 1), (90, "half", "fp8_e4m3", 8), (90, "float", "auto", 8),
        (100, "bfloat16", "fp8_e5m2", 8),
    ]
]  # fmt: skip
SUMS = {"arch": 90, "kernel": "add_parts", "dtype": "bfloat16", "kv_cache_dtype": "fp8_e4m3", "parts": 8}
EVERY = [
    *ALIGNED,
    *FP8_SOURCES,
    *CONVERTING,
    *PER_HEAD,
    *ANY_SIZE,
    SHORT_V,
    *MISALIGNED,
    *OWN_SCALES,
    *FOUR_BITS,
    *STAGED,
    *DECODES,
    SUMS,
]
NARROW = r"(?:ld|st)\.global\S*\.(?:b8|b16|v2\.b16|v4\.b8)\b"
"""Accesses of fewer than 8 bytes by a thread, of cache or source items."""


SLOTS = {
    "random": [-1, *oracle.shuffled(19, 128), 10**6],
    "blocks": list(range(16, 56)),
    "shifted": list(range(21, 61)),
    "from -8": list(range(-8, 40)),
    "to 144": [*range(112, 144), 5],
    "past 2^63": [*range(2**63 - 8, 2**63), *range(-(2**63), 8 - 2**63), 4],
    "one astray": [*range(16, 23), 99, *range(24, 64)],
}
"""Slots of a cache of 128: some are consecutive and begin, or do not, where an access of 16 bytes does."""


@cache
def _all(folder: Path) -> dict[str, dict[str, object]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.ptx", json.dumps(EVERY)],
        cwd=Path(__file__).parents[2],
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    return {json.dumps(one): found for one, found in zip(EVERY, made, strict=True)}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """PTX and the cubin's size of one specialisation."""
    folder = tmp_path_factory.mktemp("triton")
    return lambda asked: _all(folder)[json.dumps(asked)]


@pytest.fixture
def ptx(compiled):
    """PTX of one specialisation."""
    return lambda asked: compiled(asked)["ptx"]


class TestCompiledWithoutAGpu:
    def test_every_architecture_and_type_gives_machine_code(self, compiled):
        for asked in EVERY:
            assert compiled(asked)["cubin_bytes"] > 0
            assert f".target sm_{asked['arch']}" in compiled(asked)["ptx"]

    def test_stages_make_no_other_code_since_there_is_no_loop_to_pipeline(self, ptx):
        for asked in STAGED:
            usual = {name: value for name, value in asked.items() if name != "num_stages"}
            assert ptx(asked) == ptx(usual)

    def test_a_decode_multiplies_by_tensor_cores_and_reads_sixteen_bytes_at_once(self, ptx):
        for asked in DECODES:
            found = ptx(asked)
            if asked["dtype"] != "float":
                assert re.search(r"\b(?:wgmma|mma|tcgen05)\.", found), asked
            assert re.search(
                r"(?:ld\.global|cp\.async)\S*(?:v4\.b32|\[ %r\d+ \+ 0 \], \[ %rd\d+ \+ 0 \], 0x10)", found
            ), asked

    def test_fp8_divides_exactly_and_converts_once(self, ptx):
        for asked in (*CONVERTING, *PER_HEAD, *ANY_SIZE):
            found = ptx(asked)
            kind = asked["kv_cache_dtype"].removeprefix("fp8_")
            assert set(re.findall(r"\bdiv\.\S*f\d+", found)) == {"div.rn.f32"}
            assert set(re.findall(r"\bcvt\.\S*e[45]m[23]\S*", found)) == {f"cvt.rn.satfinite.{kind}x2.f32"}
            assert not re.search(r"\bcvt\.(?:rz\S*|\S*f16(?:x2)?\.f32)\b", found)

    def test_a_copy_converts_nothing(self, ptx):
        for asked in (*ALIGNED, *FP8_SOURCES, SHORT_V):
            assert re.findall(r"\b(?:div|cvt)\.\S*(?:f16|f32|e4m3|e5m2)\S*", ptx(asked)) == []

    def test_aligned_rows_move_in_accesses_of_sixteen_bytes(self, ptx):
        for asked in (*ALIGNED, *FP8_SOURCES, SHORT_V):
            found = ptx(asked)
            assert re.search(r"ld\.global\S*\.v4\.b32", found)
            assert re.search(r"st\.global\S*\.v4\.b32", found)
            if asked["op"] == oracle.FLASH:
                assert not re.search(NARROW, found)

    def test_aligned_rows_are_read_by_sixteen_bytes_and_written_by_eight_as_fp8(self, ptx):
        for asked in (*CONVERTING, *PER_HEAD):
            found = ptx(asked)
            assert re.search(r"ld\.global\S*\.v4\.b32", found)
            assert re.search(r"st\.global\S*\.v[24]\.b32", found)
            if asked["op"] == oracle.FLASH:
                assert not re.search(NARROW, found)

    def test_heads_with_their_own_scales_are_written_by_eight_bytes_and_by_four_behind_a_scale(self, ptx):
        for asked in OWN_SCALES:
            found = ptx(asked)
            assert re.search(r"ld\.global\S*\.v4\.b32", found)
            assert re.search(r"st\.global\S*\.v2\.b32", found)
            assert not re.search(NARROW, found)
            assert set(re.findall(r"\bdiv\.\S*f\d+", found)) == {"div.rn.f32"}
            converted = (
                {"cvt.rn.satfinite.e4m3x2.f32"} if asked["kv_cache_dtype"] == own_scales.TO_FP8 else set()
            )
            assert set(re.findall(r"\bcvt\.\S*e[45]m[23]\S*", found)) == converted

    def test_items_of_four_bits_are_read_wide_and_keep_subnormals(self, ptx):
        for asked in FOUR_BITS:
            found = ptx(asked)
            assert re.search(r"ld\.global\S*\.v4\.b32", found)
            assert re.search(r"st\.global\S*\.b32", found)
            assert set(re.findall(r"\bdiv\.\S*f\d+", found)) == {"div.rn.f32"}
            assert "fma.rn.f32" in found
            assert ".ftz" not in found

    def test_head_major_reads_wide_and_writes_narrowly_only_where_slots_are_scattered(self, ptx):
        for asked in ALIGNED:
            if asked["op"] != oracle.PAGED or asked["dtype"] != "bfloat16":
                continue
            found = ptx(asked)
            assert not re.search(r"ld\.global\S*\.b16", found)
            # 4096 items of K and of V for 128 threads, by eight: K, and V where its slots are
            # consecutive. One by one: V along tokens, and V along columns.
            assert len(re.findall(r"st\.global\S*\.v4\.b32", found)) == 2 * 4096 // 128 // 8
            assert len(re.findall(r"st\.global\S*\.b16", found)) == 2 * 4096 // 128

    def test_accesses_are_as_wide_as_the_alignment_allows(self, ptx):
        by_item, by_four = map(ptx, MISALIGNED)
        assert not re.search(r"(?:ld|st)\.global\S*\.v[24]", by_item)
        assert re.search(r"st\.global\S*\.v2\.b32", by_four)
        assert not re.search(r"(?:ld|st)\.global\S*\.v4", by_four)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets where there is no GPU")
class TestInterpreted:
    @pytest.mark.parametrize(("pair", "slots"), compose.by_turns(PAIRS, SLOTS, 3))
    def test_a_copy_keeps_every_bit_of_nan_too(self, pair, slots):
        op, layout = pair
        posed = oracle.problem("cpu", SLOTS[slots], op=op, layout=layout, dtype="half", num_heads=3)
        for rows in (posed.key, posed.value):
            rows.view(torch.int16).random_(-(2**15), 2**15, generator=torch.Generator().manual_seed(2))
        assert posed.key.isnan().any()
        oracle.assert_writes("triton", posed)

    @pytest.mark.parametrize(("pair", "kind"), compose.by_turns(PAIRS, KINDS, 2))
    def test_fp8_sources_are_copied_into_either_type_of_cache(self, pair, kind):
        op, layout = pair
        posed = oracle.problem(
            "cpu", oracle.shuffled(19, 128), op=op, layout=layout, dtype=kind, kv_cache_dtype=kind
        )
        oracle.assert_writes("triton", oracle.without_scales(posed))
        oracle.assert_writes("triton", oracle.without_scales(as_fp8(posed)))

    @pytest.mark.parametrize(
        ("pair", "types"),
        compose.by_turns(PAIRS, list(product(oracle.WIDE, KINDS, ("per_tensor", "per_head"))), 5),
    )
    def test_fp8_codes_land_in_their_places(self, monkeypatch, pair, types):
        (op, layout), (dtype, kind, scale) = pair, types
        monkeypatch.setattr(Triton, "_check_fp8", lambda self: None)
        oracle.assert_writes("triton", exact(kind, scale, op=op, layout=layout, dtype=dtype))

    @pytest.mark.parametrize(
        ("pair", "sizes"),
        compose.by_turns(
            [pair for pair in PAIRS if pair[0] != oracle.PAGED],
            list(
                product([(1, 1), (7, 7), (24, 24), (46, 33), (100, 8), (3, 80)], ("per_tensor", "per_head"))
            ),
            5,
        ),
    )
    def test_fp8_codes_of_heads_of_any_size_land_in_their_places(self, monkeypatch, pair, sizes):
        (op, layout), (head_sizes, scale) = pair, sizes
        monkeypatch.setattr(Triton, "_check_fp8", lambda self: None)
        head_size, head_size_v = head_sizes if op == oracle.DIFFKV else (head_sizes[0], head_sizes[0])
        sizes = {"head_size": head_size, "head_size_v": head_size_v}
        oracle.assert_writes("triton", exact("fp8_e4m3", scale, op=op, layout=layout, **sizes))

    def test_there_is_no_launcher(self):
        posed = oracle.problem("cpu", [1])
        with pytest.raises(Unsupported, match="interpreter takes no addresses"):
            Triton("cpu").launcher(posed.op, *posed.arguments)

    def test_an_op_without_a_file_has_no_launcher(self):
        impl = Triton("cpu")
        impl.interpreted = False
        with pytest.raises(Unsupported, match="impl=triton has no copy_blocks"):
            impl.launcher("copy_blocks")

    def test_it_needs_triton_s_environment_variable(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(Unsupported, match="needs TRITON_INTERPRET=1"):
            Triton("cpu")

    @pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9)])
    def test_fp8_is_refused_where_the_gpu_s_conversion_is_not_exact(self, capability):
        impl = Triton("cpu")
        impl.interpreted, impl.capability = False, capability
        posed = oracle.problem("cpu", [1], kv_cache_dtype="fp8")
        with pytest.raises(Unsupported, match=rf"needs compute capability 9\.0.*has {capability[0]}\."):
            impl.launcher(posed.op, *posed.arguments)


def as_fp8(posed):
    """The same call with caches of torch's float8 type."""
    item = oracle.DTYPES[posed.kv_cache_dtype]
    posed.key_cache, posed.value_cache = posed.key_cache.view(item), posed.value_cache.view(item)
    posed.kv_cache = None if posed.kv_cache is None else posed.kv_cache.view(item)
    return posed


def exact(kind, scale, **asked):
    """A call whose quotients fp8 holds exactly, which the interpreter converts exactly."""
    slots = [-1, *oracle.shuffled(19, 128), 10**6, *range(-3, 0)]
    posed = oracle.problem("cpu", slots, kv_cache_dtype=kind, scale=scale, num_heads=3, **asked)
    generator = torch.Generator().manual_seed(1)
    for rows in (posed.key, posed.value):
        rows.copy_(exact_values(rows.shape, kind, generator))
    scales = [1.0, 2.0, 4.0]
    posed.k_scale.copy_(torch.tensor(scales if scale == "per_head" else 2.0))
    posed.v_scale.copy_(torch.tensor(scales[::-1] if scale == "per_head" else 0.5))
    return posed


def exact_values(shape, kind, generator):
    """Normal numbers of the kind, whose quarters and doubles are normal too."""
    bits = 3 if kind == "fp8_e4m3" else 2
    mantissa = torch.randint(2**bits, 2 ** (bits + 1), shape, generator=generator)
    exponent = torch.randint(-6, 4, shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return sign * mantissa * 2.0**exponent
