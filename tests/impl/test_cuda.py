import math

import pytest
import torch

from kvexp import jit
from kvexp.impl import cuda
from kvexp.impl.cuda import THREADS, VECTOR_BYTES, Cuda, Flash, widest_vector
from tests import composed, law
from tests.impl import specialisations

ARCHES = ["sm_80", "sm_89", "sm_90", "sm_100"]
COVERING = specialisations.covering()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path))


@pytest.fixture
def impl():
    """The implementation as it is made on a GPU; what is asked of it here launches nothing."""
    made = object.__new__(Cuda)
    made.device = torch.device("cuda:0")
    return made


def flash(**changed):
    sizes = {
        "num_heads": 8,
        "head_size": 128,
        "block_size": 16,
        "source": "bfloat16",
        "fp8": False,
        "vec": 8,
        "row_strides": (1024, 1024),
        "cache_strides": (32768, 1024, 128),
        "wide_index": False,
    }
    return Flash(**sizes | changed)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("row", COVERING, ids=lambda row: " ".join(map(str, row.values())))
def test_every_specialisation_of_the_covering_list_compiles_without_a_gpu(row, arch):
    code = jit.cubin(cuda.FLASH, dict(specialisations.flash(row).macros), arch)
    assert code[:4] == b"\x7fELF"
    assert b"\0.text.reshape_and_cache_flash\0" in code


def test_the_covering_list_holds_every_value_and_is_short():
    assert len(COVERING) * len(ARCHES) <= 200
    for factor, values in specialisations.FACTORS.items():
        assert {row[factor] for row in COVERING} == set(values)


@pytest.mark.parametrize("arch", ARCHES)
def test_conversion_without_the_instruction_compiles_everywhere(arch):
    spec = flash(fp8=True, vec=16)
    assert jit.cubin(cuda.FLASH, dict(spec.macros) | {"SOFTWARE_FP8": 1}, arch)[:4] == b"\x7fELF"


class TestWidestVector:
    SIZES = (1, 2, 6, 16, 45, 46, 64, 80, 96, 112, 120, 128, 192, 256)
    TYPES = ((2, 2), (4, 4), (2, 1), (4, 1))
    ALIGNED = (1, 2, 4, 8, 16, 32, 4096)

    @pytest.mark.parametrize(("source", "cache"), TYPES)
    @pytest.mark.parametrize("head_size", SIZES)
    def test_splits_no_head_no_row_and_no_address_and_the_next_larger_one_would(
        self, head_size, source, cache
    ):
        def fits(vec, source_align, cache_align):
            return (
                head_size % vec == 0
                and vec * cache <= VECTOR_BYTES
                and source_align % min(VECTOR_BYTES, vec * source) == 0
                and cache_align % min(VECTOR_BYTES, vec * cache) == 0
            )

        for source_align in (a * source for a in self.ALIGNED):
            for cache_align in (a * cache for a in self.ALIGNED):
                found = widest_vector(head_size, source, cache, source_align, cache_align)
                assert found.bit_count() == 1
                assert fits(found, source_align, cache_align)
                assert not fits(2 * found, source_align, cache_align)

    @pytest.mark.parametrize(
        ("arguments", "vec"),
        [
            ((128, 2, 2, 256, 256), 8),
            ((128, 4, 4, 512, 512), 4),
            ((128, 2, 1, 256, 128), 16),
            ((128, 4, 1, 512, 128), 16),
            ((120, 2, 2, 240, 240), 8),
            ((46, 2, 2, 92, 92), 2),
            ((45, 2, 2, 90, 90), 1),
            ((128, 2, 2, 2, 256), 1),
            ((128, 2, 1, 16, 128), 16),
        ],
    )
    def test_of_these_sizes_is_known(self, arguments, vec):
        assert widest_vector(*arguments) == vec


class TestTheSpecialisationOfTensors:
    def spec(self, impl, posed):
        return impl.flash(
            posed.key, posed.value, posed.key_cache, posed.value_cache, len(posed.slot_mapping),
            posed.kv_cache_dtype,
        )  # fmt: skip

    @pytest.mark.parametrize("kv_cache_dtype", composed.options("kv_cache_dtype"))
    @pytest.mark.parametrize("dtype", composed.options("dtype"))
    @pytest.mark.parametrize("layout", composed.options("layout"))
    def test_moves_sixteen_bytes_at_once_where_everything_is_aligned(
        self, impl, layout, dtype, kv_cache_dtype
    ):
        posed = law.problem("cpu", [5, 1], layout=layout, dtype=dtype, kv_cache_dtype=kv_cache_dtype)
        assert self.spec(impl, posed).vec * posed.key_cache.element_size() == 16

    def test_of_a_row_that_starts_at_an_odd_element_moves_one(self, impl):
        rows = torch.randn(1 + 2 * 2 * 64).bfloat16()[1:].view(2, 2, 64)
        assert rows.data_ptr() % 4 == 2
        assert self.spec(impl, law.problem("cpu", [5, 1], key=rows)).vec == 1
        assert self.spec(impl, law.problem("cpu", [5, 1], value=rows)).vec == 1

    def test_of_rows_an_odd_stride_apart_moves_one(self, impl):
        rows = torch.randn(2, 2 * 64 + 1).bfloat16()[:, :128].unflatten(1, (2, 64))
        assert self.spec(impl, law.problem("cpu", [5, 1], value=rows)).vec == 1

    @pytest.mark.parametrize("layout", composed.options("layout"))
    def test_has_the_strides_of_its_tensors(self, impl, layout):
        qkv = torch.randn(3, 8, 64).bfloat16()
        posed = law.problem("cpu", [5, 1, 9], layout=layout, key=qkv[:, 4:6])
        spec = self.spec(impl, posed)
        assert spec.row_strides == (512, 128)
        assert spec.cache_strides == posed.key_cache.stride()[:3]
        assert (spec.num_heads, spec.head_size, spec.block_size) == (2, 64, 16)
        assert (spec.source, spec.fp8, spec.wide_index) == ("bfloat16", False, False)

    def test_counts_in_64_bits_only_where_32_would_wrap(self, impl):
        posed = law.problem("cpu", [5], num_heads=1, head_size=45)
        arguments = (posed.key, posed.value, posed.key_cache, posed.value_cache)
        most = 2**32 // (2 * 45)
        assert not impl.flash(*arguments, most, "auto").wide_index
        assert impl.flash(*arguments, most + 1, "auto").wide_index

    def test_of_no_tokens_compiles_and_launches_nothing(self, impl, monkeypatch):
        monkeypatch.setattr(jit, "kernel", None)
        assert law.problem("cpu", []).bind(impl)() is None


class TestMacros:
    def test_are_the_constants_that_the_source_names(self):
        names = {name for name, _ in flash().macros}
        text = cuda.FLASH.read_text()
        assert [name for name in names if name not in text] == []

    @pytest.mark.parametrize(
        ("source", "bits", "is_bfloat16"), [("float16", 16, 0), ("bfloat16", 16, 1), ("float32", 32, 0)]
    )
    def test_tell_the_source_s_type(self, source, bits, is_bfloat16):
        macros = dict(flash(source=source).macros)
        assert (macros["SOURCE_BITS"], macros["SOURCE_IS_BFLOAT16"]) == (bits, is_bfloat16)

    def test_hold_offsets_in_64_bits(self):
        macros = dict(flash(row_strides=(2**33, 1024)).macros)
        assert (macros["KEY_STRIDE"], macros["VALUE_STRIDE"]) == ("8589934592ll", "1024ll")
        assert [macros[f"{name}_STRIDE"] for name in ("BLOCK", "TOKEN", "HEAD")] == [
            "32768ll",
            "1024ll",
            "128ll",
        ]


class TestTheGrid:
    """One thread per chunk of a token, so that as many threads as `token_chunks` says cover every chunk."""

    @pytest.fixture
    def launched(self, impl, monkeypatch):
        """Binds a problem; gives the grid's threads, and the kernel's own two numbers."""
        impl.arch = "sm_90"
        seen = []
        monkeypatch.setattr(jit, "kernel", lambda *_: "the kernel")

        def launch(kernel, tensors, threads, *sizes):
            seen.append((threads, *sizes))
            return lambda: None

        monkeypatch.setattr(impl, "launch", launch)

        def bound(posed):
            posed.bind(impl)()
            return seen.pop()

        return bound

    @pytest.mark.parametrize("num_heads", [1, 3, 8, 13])
    @pytest.mark.parametrize("head_size", [45, 46, 80, 120, 128])
    def test_has_a_thread_for_each_chunk_of_each_token(self, launched, impl, num_heads, head_size):
        posed = law.problem("cpu", [3, 1, 7], num_heads=num_heads, head_size=head_size)
        spec = TestTheSpecialisationOfTensors().spec(impl, posed)
        threads, num_slots = launched(posed)
        planes = 2 if spec.both else 1
        assert threads * spec.vec * planes == 2 * posed.key.numel()
        assert num_slots == 128

    def test_has_a_thread_for_each_chunk_of_either_plane_in_fp8(self, launched):
        posed = law.problem("cpu", [3, 1, 7], num_heads=5, head_size=80, kv_cache_dtype="fp8")
        threads, _ = launched(posed)
        assert threads * 16 in (posed.key.numel(), 2 * posed.key.numel())

    @pytest.mark.parametrize("threads", [1, THREADS - 1, THREADS, THREADS + 1, 12345])
    def test_rounds_up_to_whole_blocks(self, impl, monkeypatch, threads):
        import cuda.core

        configs = []
        monkeypatch.setattr(cuda.core, "LaunchConfig", lambda **given: configs.append(given))
        impl.launch("the kernel", (), threads)
        assert configs == [{"grid": math.ceil(threads / THREADS), "block": THREADS}]
