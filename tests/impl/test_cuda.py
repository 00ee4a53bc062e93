import re
from dataclasses import replace

import pytest
import torch

from kvexp.gpu import nvrtc
from kvexp.impl.cuda.items import VECTOR_BYTES, Items, choose_vector, fit_items
from kvexp.impl.cuda.launcher import SOURCES
from kvexp.impl.cuda.reshape_and_cache import SECTOR_BYTES, HeadMajor
from kvexp.impl.cuda.reshape_and_cache_flash import Flash
from tests.helpers import oracle, specialisations

COPIED = Items("bfloat16", "COPIED")
E4M3 = Items("bfloat16", "E4M3")
E5M2 = Items("float32", "E5M2", scale_per_head=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path))


def flash(**changed):
    sizes = {
        "num_heads": 8,
        "head_size": 128,
        "head_size_v": 128,
        "block_size": 16,
        "items": COPIED,
        "vec": 8,
        "row_strides": (1024, 1024),
        "cache_strides": (32768, 1024, 128),
    }
    return Flash(**sizes | changed)


def head_major(**changed):
    sizes = {
        "num_heads": 8,
        "head_size": 128,
        "block_size": 16,
        "items": COPIED,
        "source_vec": 8,
        "key_vec": 8,
        "row_strides": (1024, 1024),
        "block_strides": (16384, 49152),
    }
    return HeadMajor(**sizes | changed)


def compile_spec(spec, arch):
    return nvrtc.compile_cubin(SOURCES / f"{spec.kernel}.cu", dict(spec.macros), arch)


@pytest.mark.parametrize("kernel", specialisations.FACTORS)
def test_every_specialisation_of_the_covering_lists_compiles_without_a_gpu(kernel):
    for row in specialisations.covering(kernel):
        spec = specialisations.spec(kernel, row)
        code = compile_spec(spec, row["arch"])
        assert code[:4] == b"\x7fELF", row
        assert b"\0.text." + spec.kernel.encode() + b"\0" in code, row


@pytest.mark.parametrize("items", [E4M3, E5M2])
@pytest.mark.parametrize(
    "spec", [flash(vec=16), head_major(source_vec=16, key_vec=16)], ids=lambda s: s.kernel
)
def test_conversion_compiles_for_the_oldest_gpus_of_cuda_13(spec, items):
    assert compile_spec(replace(spec, items=items), "sm_75")


def test_the_covering_lists_hold_every_value_and_are_short():
    covering = {kernel: specialisations.covering(kernel) for kernel in specialisations.FACTORS}
    assert sum(map(len, covering.values())) <= 80
    for kernel, factors in specialisations.FACTORS.items():
        for factor, values in factors.items():
            assert {row[factor] for row in covering[kernel]} == set(values)


@pytest.mark.parametrize("items", [E4M3, E5M2])
@pytest.mark.parametrize(
    "spec", [flash(vec=16), head_major(source_vec=16, key_vec=16)], ids=lambda s: s.kernel
)
def test_conversion_without_the_instruction_is_other_code_where_there_is_the_instruction(spec, items):
    spec = replace(spec, items=items)
    software = replace(spec, items=replace(items, software_fp8=True))
    assert compile_spec(software, "sm_90") != compile_spec(spec, "sm_90")


def test_heads_farther_apart_than_blocks_and_than_32_bits_compile():
    """As in LHBNC, whose heads are all blocks apart."""
    spec = flash(cache_strides=(4096, 256, 2**33))
    assert dict(spec.macros)["HEAD_STRIDE"] == "8589934592ll"
    assert compile_spec(spec, "sm_90") != compile_spec(flash(cache_strides=(4096, 256, 2**32)), "sm_90")


def ptx(spec, arch):
    """The specialisation in PTX, whose parameters have numbers."""
    from cuda.bindings import nvrtc  # cuda.core asks a driver for its version before it gives PTX

    file = SOURCES / f"{spec.kernel}.cu"
    error, program = nvrtc.nvrtcCreateProgram(file.read_bytes(), file.name.encode(), 0, None, None)
    assert not error
    macros = [f"--define-macro={name}={value}" for name, value in spec.macros]
    options = [f"--gpu-architecture={arch}", "--std=c++17", f"--include-path={file.parent}", *macros]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    assert not error
    code = bytes(nvrtc.nvrtcGetPTXSize(program)[1])
    (error,) = nvrtc.nvrtcGetPTX(program, code)
    assert not error
    return code.decode()


@pytest.mark.parametrize("items", [COPIED, E4M3, E5M2], ids=lambda items: items.cache)
@pytest.mark.parametrize(
    "spec",
    [flash(vec=8), flash(vec=1, unroll=4), head_major(), head_major(exchange=True)],
    ids=lambda spec: f"{spec.kernel} {getattr(spec, 'unroll', '')}{getattr(spec, 'exchange', '')}",
)
def test_every_kernel_compares_slots_with_the_number_of_slots(spec, items):
    """The GPU's tests see what is written; without a GPU the code shows what a slot is compared with."""
    source = (SOURCES / f"{spec.kernel}.cu").read_text()
    (parameters,) = re.findall(rf"\b{spec.kernel}\(([^)]*)\) \{{", source)
    number = [parameter.split()[-1] for parameter in parameters.split(",")].index("num_slots")
    code = ptx(replace(spec, items=items), "compute_90")
    (register,) = re.findall(rf"ld\.param\.[bu]64\s+(%rd\d+), \[{spec.kernel}_param_{number}\];", code)
    compared = re.findall(rf"setp\.(?:ge|lt)\.s64\s+%p\d+, (%rd\d+), {register};", code)
    assert len(set(compared)) >= getattr(spec, "unroll", 1)


class TestMacros:
    @pytest.mark.parametrize("spec", [flash(), head_major()], ids=lambda spec: spec.kernel)
    def test_are_the_constants_that_the_sources_name(self, spec):
        text = "".join(file.read_text() for file in (SOURCES / f"{spec.kernel}.cu", *SOURCES.glob("*.cuh")))
        code = re.sub("//.*", "", text)
        used = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", code))
        spec = replace(spec, items=replace(E4M3, software_fp8=True))
        assert {name for name, _ in spec.macros} - used == set()

    @pytest.mark.parametrize("spec", [flash(), head_major()], ids=lambda spec: spec.kernel)
    def test_are_the_same_for_copies_of_one_width(self, spec):
        halves = replace(spec, items=Items("float16", "COPIED"))
        assert halves.macros == spec.macros
        assert replace(spec, items=Items("float32", "COPIED")).macros != spec.macros

    @pytest.mark.parametrize(
        ("source", "size", "is_bfloat16"), [("float16", 2, 0), ("bfloat16", 2, 1), ("float32", 4, 0)]
    )
    def test_tell_the_type_that_is_converted(self, source, size, is_bfloat16):
        macros = dict(flash(items=Items(source, "E5M2")).macros)
        assert (macros["SOURCE_BYTES"], macros["SOURCE_IS_BFLOAT16"]) == (size, is_bfloat16)
        assert macros["CACHE_FORMAT"] == "E5M2"

    def test_force_the_software_conversion_only_where_something_is_converted(self):
        forced = {"software_fp8": True}
        assert dict(flash(items=replace(E4M3, **forced)).macros)["SOFTWARE_FP8"] == 1
        assert "SOFTWARE_FP8" not in dict(flash(items=E4M3).macros)
        assert "SOFTWARE_FP8" not in dict(flash(items=replace(COPIED, **forced)).macros)

    def test_hold_offsets_in_64_bits(self):
        macros = dict(flash(row_strides=(2**33, 1024)).macros)
        assert (macros["KEY_STRIDE"], macros["VALUE_STRIDE"]) == ("8589934592ll", "1024ll")
        assert [macros[f"{name}_STRIDE"] for name in ("BLOCK", "TOKEN", "HEAD")] == [
            "32768ll",
            "1024ll",
            "128ll",
        ]
        macros = dict(head_major(row_strides=(7, 2**33)).macros)
        assert (macros["KEY_STRIDE"], macros["VALUE_STRIDE"]) == ("7ll", "8589934592ll")
        assert (macros["KEY_BLOCK_STRIDE"], macros["VALUE_BLOCK_STRIDE"]) == ("16384ll", "49152ll")


class TestThreads:
    """One for each chunk of a token, of K and V together or of either; a group's missing tokens count too."""

    @pytest.mark.parametrize("num_tokens", [1, 2, 7, 2**31 - 1])
    def test_of_a_copy_move_k_and_v_together(self, num_tokens):
        assert flash().threads(num_tokens) == num_tokens * 8 * 128 // 8
        assert flash(vec=1).threads(num_tokens) == num_tokens * 8 * 128

    @pytest.mark.parametrize("num_tokens", [1, 2, 7, 2**31 - 1])
    def test_of_a_conversion_move_either(self, num_tokens):
        assert flash(items=E4M3, vec=16).threads(num_tokens) == 2 * num_tokens * 8 * 128 // 16

    def test_of_different_head_sizes_move_either(self):
        spec = flash(head_size=192)
        assert not spec.both
        assert spec.threads(3) == 3 * 8 * (192 + 128) // 8

    @pytest.mark.parametrize("items", [COPIED, E4M3, E5M2, Items("float8_e5m2", "COPIED")])
    @pytest.mark.parametrize("num_tokens", [1, 2, 3, 7, 8, 9, 31, 32, 33, 42])
    @pytest.mark.parametrize(("num_heads", "head_size"), [(1, 64), (3, 80), (13, 16)])
    def test_of_a_head_major_cache_reach_each_chunk_of_each_token_once(
        self, items, num_tokens, num_heads, head_size
    ):
        """A flat index is taken apart as reshape_and_cache.cu says: token in group, chunk, group."""
        spec = head_major(items=items, num_heads=num_heads, head_size=head_size)
        chunks = (1 if spec.both else 2) * num_heads * head_size * items.cache_bytes // 16
        group = 1 << spec.group_shift(num_tokens)
        reached = []
        for flat in range(spec.threads(num_tokens)):
            rest, token = divmod(flat, group)
            token += rest // chunks * group
            if token < num_tokens:
                reached.append((token, rest % chunks))
        assert sorted(reached) == [(token, chunk) for token in range(num_tokens) for chunk in range(chunks)]

    @pytest.mark.parametrize("items", [COPIED, E4M3, Items("float32", "COPIED")])
    def test_of_a_full_group_fill_a_sector_with_v_s_items(self, items):
        spec = head_major(items=items)
        assert items.cache_bytes << spec.group_shift(1000) == SECTOR_BYTES
        assert [1 << spec.group_shift(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 8]


class TestWidestVector:
    SIZES = (1, 2, 6, 16, 45, 46, 64, 80, 96, 112, 120, 128, 192, 256)
    TYPES = ((1, 1), (2, 2), (4, 4), (2, 1), (4, 1))
    ALIGNED = (1, 2, 4, 8, 16)

    @pytest.mark.parametrize(("source", "cache"), TYPES)
    @pytest.mark.parametrize("run", SIZES)
    def test_splits_no_run_no_row_and_no_address_and_the_next_larger_one_would(self, run, source, cache):
        def fits(vec, source_align, cache_align):
            return (
                run % vec == 0
                and vec * cache <= VECTOR_BYTES
                and source_align % min(VECTOR_BYTES, vec * source) == 0
                and cache_align % min(VECTOR_BYTES, vec * cache) == 0
            )

        for source_align in (a * source for a in self.ALIGNED):
            for cache_align in (a * cache for a in self.ALIGNED):
                sides = (source, source_align), (cache, cache_align)
                found = choose_vector(VECTOR_BYTES // cache, run, *sides)
                assert found.bit_count() == 1
                assert fits(found, source_align, cache_align)
                assert not fits(2 * found, source_align, cache_align)

    def test_may_be_of_one_side_alone(self):
        assert choose_vector(8, 8, (2, 4)) == 2


class TestItems:
    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    @pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e4m3", "fp8_e5m2"])
    def test_of_an_fp8_source_are_copied_bytes(self, dtype, kv_cache_dtype):
        found = fit_items(torch.zeros(1, 1, 16, dtype=dtype), kv_cache_dtype, torch.ones(8), True)
        assert (found.cache, found.source_bytes, found.cache_bytes) == ("COPIED", 1, 1)
        assert (found.scale_per_head, found.software_fp8) == (False, False)

    @pytest.mark.parametrize("dtype", oracle.WIDE)
    def test_of_a_wider_source_are_what_kv_cache_dtype_says(self, dtype):
        key = torch.zeros(1, 1, 16, dtype=oracle.DTYPES[dtype])
        found = [fit_items(key, word, torch.ones(1), False) for word in ("auto", "fp8_e4m3", "fp8_e5m2")]
        assert [items.cache for items in found] == ["COPIED", "E4M3", "E5M2"]
        assert [items.cache_bytes for items in found] == [key.element_size(), 1, 1]

    def test_have_a_scale_per_head_where_there_is_more_than_one(self):
        key = torch.zeros(1, 8, 16)
        for scale, per_head in ((torch.ones([]), False), (torch.ones(1), False), (torch.ones(8), True)):
            assert fit_items(key, "fp8_e4m3", scale, False).scale_per_head == per_head
        assert fit_items(key, "auto", torch.ones(8), False) == fit_items(key, "auto", None, False)
