"""Peers, replaced by fakes with their published signatures: their errors are reported."""

import itertools
import sys
from types import ModuleType

import pytest
import torch

from kvexp.bench import run_curve
from kvexp.bench.contract.clauses import Subject, pose_clauses
from kvexp.impl import make
from kvexp.impl.flashinfer import NVFP4_APPEND, FlashInfer
from kvexp.impl.sglang import SGLang
from tests.helpers import compose, nvfp4, oracle, tiny_curve
from tests.helpers.indexer import INDEXER
from tests.helpers.latent import DS_MLA, MLA
from tests.helpers.oracle import DIFFKV, FLASH, PAGED
from tests.helpers.own_scales import INT8, TO_FP8
from tests.helpers.own_scales import OP as OWN_SCALES

FEW = (3, 16)


def module(monkeypatch, name, **contents):
    """Put a module of that name and its parents into sys.modules."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        made = ModuleType(".".join(parts[:end]))
        monkeypatch.setitem(sys.modules, made.__name__, made)
        if end > 1:
            setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], made)
    for key, value in contents.items():
        setattr(sys.modules[name], key, value)


def outcomes(impl, **chosen):
    """Return status and reason of each point, without timing."""
    made = tiny_curve.curve(impl=impl, num_tokens=FEW, **chosen)
    return [(point.status, point.reason) for point in run_curve.run(made, {})]


def right(op):
    """What the op asks for, by our torch implementation."""
    written = oracle.implementation("torch", "cpu")

    def function(*arguments):
        getattr(written, op)(*arguments)()

    return function


def flash_or_head_major(*arguments):
    """vLLM's Triton launcher: the cache's dims say which op is meant."""
    right(PAGED if arguments[2].dim() == 5 else FLASH)(*arguments)


def per_token_head_quant(key, value, key_cache, value_cache, k_scale_cache, v_scale_cache, slot_mapping):
    """vLLM's launcher of heads with their own scales, which takes codes and scales as four caches."""
    sizes = key_cache.shape[:3], key.shape[2], value.shape[2]
    kind = INT8 if key_cache.dtype == torch.int8 else TO_FP8
    assert k_scale_cache.shape == v_scale_cache.shape == sizes[0]
    cells = torch.zeros(*sizes[0], sizes[1] + sizes[2] + 8, dtype=torch.uint8)
    targets = (key_cache, k_scale_cache.unsqueeze(-1), value_cache, v_scale_cache.unsqueeze(-1))
    parts = cells.split((sizes[1], 4, sizes[2], 4), -1)
    for part, target in zip(parts, targets, strict=True):
        part.copy_(target.contiguous().view(torch.uint8))
    right(OWN_SCALES)(key, value, cells, slot_mapping, kind)
    for part, target in zip(parts, targets, strict=True):
        target.copy_(part.contiguous().view(target.dtype))


def few_chunks(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale):
    """A kernel of 512 threads without a loop, one piece of 16 bytes each: the rest is never written."""
    pieces = key_cache.shape[1] * key_cache.shape[2]
    heads = key.shape[1] * min(pieces, 512) // pieces
    caches = [cache[:, :heads] for cache in (key_cache, value_cache)]
    right(PAGED)(key[:, :heads], value[:, :heads], *caches, slot_mapping, kv_cache_dtype, k_scale, v_scale)


def takes_keys_for_contiguous(k, kv_cache, slot_mapping, quant_block_size, kv_cache_dtype):
    """vLLM's indexer_k_quant_and_cache: it goes by no stride of k, and its last argument is scale_fmt."""
    keys = k.as_strided(k.shape, (k.shape[1], 1))
    right(INDEXER)(keys, kv_cache, slot_mapping, quant_block_size, kv_cache_dtype)


@pytest.fixture
def vllm(monkeypatch):
    ops = {"reshape_and_cache": few_chunks, "reshape_and_cache_flash": right(FLASH), MLA: right(MLA)}
    module(monkeypatch, "vllm._custom_ops", **ops, **{INDEXER: takes_keys_for_contiguous})


@pytest.fixture
def vllm_triton(monkeypatch):
    module(
        monkeypatch,
        "vllm.v1.attention.ops.triton_reshape_and_cache_flash",
        triton_reshape_and_cache_flash=flash_or_head_major,
        triton_reshape_and_cache_flash_diffkv=right(DIFFKV),
        triton_reshape_and_cache_flash_per_token_head_quant=per_token_head_quant,
    )


@pytest.fixture
def flashinfer(monkeypatch):
    module(
        monkeypatch,
        "flashinfer",
        append_paged_kv_cache=append_paged_kv_cache,
        BatchDecodeWithPagedKVCacheWrapper=BatchDecode,
        nvfp4_quantize_append_paged_kv_cache_with_slot_mapping=append_nvfp4,
    )


class BatchDecode:
    """FlashInfer's decode with its published signature; what it plans is kept until it plans again."""

    def __init__(
        self, workspace, kv_layout, use_cuda_graph, use_tensor_cores, indptr, indices, last_page_len
    ):
        assert use_cuda_graph
        assert use_tensor_cores
        self.kv_layout, self.buffers = kv_layout, (indptr, indices, last_page_len)

    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        *,
        q_data_type,
        kv_data_type,
    ):
        assert q_data_type == kv_data_type
        for buffer, planned in zip(self.buffers, (indptr, indices, last_page_len), strict=True):
            buffer[: len(planned)].copy_(planned)
        self.heads, self.page_size = (num_qo_heads, num_kv_heads, head_dim), page_size

    def run(self, query, caches, *, out):
        assert self.heads == (query.shape[1], caches[0].shape[1 + (self.kv_layout == "NHD")], query.shape[2])
        order = (0, 1, 2, 3) if self.kv_layout == "NHD" else (0, 2, 1, 3)
        indptr, indices, last = self.buffers
        pages = [indices[begin:end] for begin, end in itertools.pairwise(indptr.tolist())]
        table = torch.nn.utils.rnn.pad_sequence(pages, batch_first=True)
        lengths = (indptr.diff() - 1) * self.page_size + last
        planes = [cache.permute(order) for cache in caches]
        ours = oracle.implementation("torch", "cpu")
        ours.paged_decode(out, query, *planes, table, lengths.int(), "auto", None, None)()


def append_paged_kv_cache(
    append_key, append_value, batch_indices, positions, paged_kv_cache, kv_indices, kv_indptr,
    kv_last_page_len, kv_layout="NHD",
):  # fmt: skip
    """FlashInfer's, token by token, from what its documentation says of each argument."""
    assert len(append_key), "its launch of no tokens is an error that nobody looks at"
    ints = (batch_indices, positions, kv_indices, kv_indptr, kv_last_page_len)
    assert {tensor.dtype for tensor in ints} == {torch.int32}
    page_size = paged_kv_cache[0].shape[1 if kv_layout == "NHD" else 2]
    for token, (batch, position) in enumerate(zip(batch_indices, positions, strict=True)):
        page = int(kv_indices[int(kv_indptr[int(batch)]) + int(position) // page_size])
        entry = int(position) % page_size
        for cache, rows in zip(paged_kv_cache, (append_key, append_value), strict=True):
            place = cache[page, entry] if kv_layout == "NHD" else cache[page, :, entry]
            place.copy_(rows[token])


def append_nvfp4(
    append_key, append_value, slot_mapping, paged_kv_cache, kv_cache_sf, k_scale, v_scale, kv_layout="NHD"
):
    """FlashInfer's writer of nvfp4, token by token, from what its documentation says of each argument."""
    assert {tensor.dtype for tensor in kv_cache_sf} == {torch.float8_e4m3fn}
    sides = zip((append_key, append_value), paged_kv_cache, kv_cache_sf, (k_scale, v_scale), strict=True)
    for rows, *caches, scale in sides:
        page_size = caches[0].shape[1 if kv_layout == "NHD" else 2]
        for token, slot in enumerate(slot_mapping.tolist()):
            if not 0 <= slot < len(caches[0]) * page_size:
                continue
            page, entry = divmod(slot, page_size)
            for cache, data in zip(caches, nvfp4.quantize(rows[token], float(scale)), strict=True):
                held = cache.view(torch.uint8)
                place = held[page, entry] if kv_layout == "NHD" else held[page, :, entry]
                place.copy_(torch.from_numpy(data))


def store_cache(k, v, k_cache, v_cache, indices, *, row_bytes=0, num_split=0, reserved_skip_index=0):
    """SGLang's: rows of `k` and `v` at the indices of two-dimensional pools, but for the reserved one."""
    assert {tensor.dim() for tensor in (k, v, k_cache, v_cache)} == {2}
    kept = indices != reserved_skip_index
    k_cache[indices[kept]], v_cache[indices[kept]] = k[kept], v[kept]


def store_cache_of_old(k, v, k_cache, v_cache, indices, *, row_bytes=0, num_split=0):
    """Store rows as SGLang did before a slot was reserved."""
    store_cache(k, v, k_cache, v_cache, indices, reserved_skip_index=-1)


SGLANG = "sglang.kernels.ops.kvcache.kvcache"


@pytest.fixture
def sglang(monkeypatch):
    module(monkeypatch, SGLANG, store_cache=store_cache, can_use_store_cache=lambda size: size % 4 == 0)


VERIFIED = [("verified", "timer=none: not timed")] * len(FEW)


@pytest.mark.usefixtures("vllm")
class TestVllm:
    @pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
    @pytest.mark.parametrize("layout", ["NHD", "HND", "NHD_packed", "BHLNC", "LHBNC"])
    def test_that_is_right_is_said_to_be(self, layout, kv_cache_dtype):
        assert outcomes("vllm", layout=layout, kv_cache_dtype=kv_cache_dtype) == VERIFIED

    def test_that_is_right_for_few_heads_is_wrong_for_many(self):
        """512 pieces of 16 bytes are 4096 elements of bfloat16: of 128 heads x 128, a quarter."""
        for num_layers in (1, 3):
            assert outcomes("vllm", op=PAGED, num_heads=8, head_size=128, num_layers=num_layers) == VERIFIED
        for status, reason in outcomes("vllm", op=PAGED, num_heads=128, head_size=128):
            assert status == "incorrect"
            assert reason.startswith("75 % of the ")

    def test_that_writes_latent_rows_right_is_said_to(self):
        for kv_cache_dtype in ("auto", "fp8", DS_MLA):
            chosen = {"op": MLA, "kv_cache_dtype": kv_cache_dtype, **compose.sizes(MLA)}
            assert outcomes("vllm", **chosen) == VERIFIED

    def test_whose_scale_is_one_power_too_low_above_a_power_of_two_is_incorrect(self, monkeypatch):
        def by_logarithm(kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, scale):
            right(MLA)(kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, scale)
            row = kv_cache.view(-1, 656)[int(slot_mapping[0])]
            row[512:516].view(torch.float32).div_(2)

        monkeypatch.setattr(sys.modules["vllm._custom_ops"], MLA, by_logarithm)
        for status, reason in outcomes("vllm", op=MLA, kv_cache_dtype=DS_MLA, **compose.sizes(MLA)):
            assert status == "incorrect"
            assert "element 51" in reason

    def test_that_goes_by_no_stride_of_an_indexer_s_keys_is_right_where_they_are_contiguous(self):
        chosen = {"op": INDEXER, "kv_cache_dtype": "fp8", **compose.sizes(INDEXER)}
        assert outcomes("vllm", **chosen) == VERIFIED
        (_, several) = outcomes("vllm", rows="qkv", **chosen)
        assert several[0] == "incorrect"
        assert "to kv_cache (codes)" in several[1]

    def test_has_no_diffkv(self):
        assert outcomes("vllm", op=DIFFKV) == [("skipped", f"impl=vllm has no {DIFFKV}")] * 2

    def test_is_not_asked_for_what_never_returns(self):
        sentence = (
            "impl=vllm never returns for rows of 16 elements, fewer than 32, "
            "whose heads lie apart in the cache"
        )
        chosen = {"num_heads": 2, "head_size": 8, "layout": "HND"}
        assert outcomes("vllm", **chosen) == [("skipped", sentence)] * 2

    def test_is_not_given_what_it_does_not_take(self):
        sentence = "impl=vllm stores no rows that are 8-bit floats already"
        chosen = {"dtype": "fp8_e4m3", "kv_cache_dtype": "fp8"}
        assert outcomes("vllm", **chosen) == [("skipped", sentence)] * 2


@pytest.mark.usefixtures("vllm_triton")
class TestVllmTriton:
    @pytest.mark.parametrize(("op", "layout"), compose.pairs())
    def test_that_is_right_is_said_to_be(self, op, layout):
        assert outcomes("vllm_triton", op=op, layout=layout) == VERIFIED

    @pytest.mark.parametrize("kv_cache_dtype", [INT8, TO_FP8])
    def test_codes_and_scales_are_four_caches(self, kv_cache_dtype):
        chosen = {"op": OWN_SCALES, "kv_cache_dtype": kv_cache_dtype}
        assert outcomes("vllm_triton", layout="HND_packed", head_size_v=48, **chosen) == VERIFIED
        sentence = "impl=vllm_triton stores scales whole, so each must lie at a multiple of 4 bytes"
        assert outcomes("vllm_triton", head_size=30, **chosen) == [("skipped", sentence)] * 2

    def test_that_takes_e5m2_for_e4m3_is_incorrect(self, monkeypatch):
        def always_e4m3(*arguments):
            key, value, key_cache, value_cache, slots, _, k_scale, v_scale = arguments
            right(FLASH)(key, value, key_cache, value_cache, slots, "fp8_e4m3", k_scale, v_scale)

        launchers = sys.modules["vllm.v1.attention.ops.triton_reshape_and_cache_flash"]
        monkeypatch.setattr(launchers, "triton_reshape_and_cache_flash", always_e4m3)
        assert {status for status, _ in outcomes("vllm_triton", kv_cache_dtype="fp8_e5m2")} == {"incorrect"}
        assert outcomes("vllm_triton", kv_cache_dtype="fp8_e4m3") == VERIFIED

    def test_of_an_older_vllm_lies_elsewhere_and_has_no_diffkv(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "vllm.v1.attention.ops.triton_reshape_and_cache_flash")
        module(
            monkeypatch,
            "vllm.attention.ops.triton_reshape_and_cache_flash",
            triton_reshape_and_cache_flash=flash_or_head_major,
        )
        assert outcomes("vllm_triton") == VERIFIED
        sentence = (
            "impl=vllm_triton has no triton_reshape_and_cache_flash_diffkv in the vLLM that is installed"
        )
        assert outcomes("vllm_triton", op=DIFFKV) == [("skipped", sentence)] * 2


@pytest.mark.usefixtures("flashinfer")
class TestFlashInfer:
    @pytest.mark.parametrize("layout", [layout for op, layout in compose.pairs() if op == FLASH])
    def test_that_is_right_is_said_to_be(self, layout):
        assert outcomes("flashinfer", layout=layout, head_size=64, extra_tokens=2) == VERIFIED

    @pytest.mark.parametrize("layout", nvfp4.LAYOUTS)
    def test_that_writes_items_of_four_bits_right_is_said_to(self, layout):
        chosen = {"op": nvfp4.NVFP4_OP, "kv_cache_dtype": "nvfp4", "layout": layout, "padding": 0.5}
        assert outcomes("flashinfer", **chosen, extra_tokens=2) == VERIFIED

    def test_of_a_version_without_the_writer_of_nvfp4_says_so(self, monkeypatch):
        module(monkeypatch, "flashinfer")
        sentence = f"impl=flashinfer writes nvfp4 by {NVFP4_APPEND}, which this version lacks"
        chosen = {"op": nvfp4.NVFP4_OP, "kv_cache_dtype": "nvfp4"}
        assert outcomes("flashinfer", **chosen) == [("skipped", sentence)] * 2

    def test_follows_changed_slots_and_refuses_invalid_ones(self):
        made = tiny_curve.curve(impl="flashinfer", head_size=64)
        case = next(made.cases())
        asked = Subject(
            make(made.impl, device="cpu"), make(made.op), make(made.layout), tiny_curve.source(made), case
        )
        assert pose_clauses(asked, [16]).column(16) == (
            "refuses padding, refuses negatives, refuses past_end, needs refresh()"
        )

    @pytest.mark.parametrize(
        ("chosen", "sentence"),
        [
            ({"head_size": 96}, "impl=flashinfer takes the head sizes 64, 128, 256, 512, not 96"),
            (
                {"head_size": 128, "num_heads": 128},
                "impl=flashinfer gives a token 2048 threads for 128 heads x 128, "
                "more than the 1024 that a block may have",
            ),
            (
                {"head_size": 64, "kv_cache_dtype": "fp8"},
                "impl=flashinfer copies and has no kv_cache_dtype=fp8_e4m3",
            ),
            ({"head_size": 64, "padding": 0.5}, "impl=flashinfer has no padding slots"),
            ({"head_size": 64, "op": PAGED}, "impl=flashinfer has no reshape_and_cache"),
        ],
    )
    def test_refuses_what_it_cannot(self, chosen, sentence):
        assert outcomes("flashinfer", **chosen) == [("skipped", sentence)] * 2


DECODE = {"op": "paged_decode", "head_size": 64, "num_blocks": 64, "context": 33}


@pytest.mark.usefixtures("flashinfer")
def test_flashinfer_s_decode_plans_again_when_the_blocks_change():
    for layout in ("NHD", "HND", "NHD_packed", "HND_packed"):
        assert outcomes("flashinfer", layout=layout, num_query_heads=4, **DECODE) == VERIFIED
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FlashInfer, "refresh", lambda self: None)
        for status, reason in outcomes("flashinfer", **DECODE):
            assert (status, "keeps what it saw" in reason) == ("incorrect", True)


@pytest.mark.usefixtures("flashinfer")
@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"head_size": 96}, "impl=flashinfer reads heads of 64, 128, 256, not of 96 and 96"),
        (
            {"kv_cache_dtype": "fp8"},
            "impl=flashinfer reads half or bfloat16 as the queries are, not torch.bfloat16 with "
            "kv_cache_dtype=fp8_e4m3",
        ),
    ],
)
def test_flashinfer_s_decode_says_what_it_reads(chosen, sentence):
    assert outcomes("flashinfer", **{**DECODE, **chosen}) == [("skipped", sentence)] * 2


@pytest.mark.usefixtures("sglang")
class TestSGLang:
    @pytest.mark.parametrize("num_layers", [1, 3])
    def test_that_is_right_is_said_to_be(self, num_layers):
        """Slot 0 is the first that is written, and not left out."""
        chosen = {"num_layers": num_layers, "slots": "contiguous", "extra_tokens": 2}
        assert outcomes("sglang", layout="NHD", **chosen) == VERIFIED

    def test_keeps_the_indices_of_the_moment_when_refresh_was_called(self, monkeypatch):
        monkeypatch.setattr(SGLang, "refresh", lambda self: None)
        for status, reason in outcomes("sglang", layout="NHD"):
            assert (status, "keeps what it saw" in reason) == ("incorrect", True)

    def test_of_an_older_sglang_lies_elsewhere_and_reserves_no_slot(self, monkeypatch):
        monkeypatch.delitem(sys.modules, SGLANG)
        older = {"store_cache": store_cache_of_old, "can_use_store_cache": lambda size: True}
        module(monkeypatch, "sglang.jit_kernel.kvcache", **older)
        assert outcomes("sglang", layout="NHD") == VERIFIED

    @pytest.mark.parametrize(
        ("chosen", "sentence"),
        [
            (
                {"layout": "HND"},
                "impl=sglang writes caches whose heads are adjacent in each slot: layout=NHD",
            ),
            ({"kv_cache_dtype": "fp8"}, "impl=sglang copies and has no kv_cache_dtype=fp8_e4m3"),
            ({"padding": 0.5}, "impl=sglang has no padding slots"),
            ({"num_heads": 1, "head_size": 3}, "impl=sglang has no kernel for rows of 6 bytes"),
            ({"op": PAGED, "layout": "head_major"}, "impl=sglang has no reshape_and_cache"),
        ],
    )
    def test_refuses_what_it_cannot(self, chosen, sentence):
        assert outcomes("sglang", **{"layout": "NHD", **chosen}) == [("skipped", sentence)] * 2


@pytest.mark.parametrize("impl", ["vllm", "vllm_triton", "flashinfer", "sglang"])
def test_a_peer_that_is_not_installed_is_skipped_with_the_reason(impl, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vllm", "flashinfer", "sglang")]:
        monkeypatch.delitem(sys.modules, name)
    package = impl.partition("_")[0]
    monkeypatch.setitem(sys.modules, package, None)
    for status, reason in outcomes(impl):
        assert status == "skipped"
        assert reason.startswith(f"impl={impl} needs the package {package}")


def test_torch_compile_is_verified_at_more_sizes_than_torch_compiles_of_a_function_by_itself(monkeypatch):
    """By itself it compiles one here, not eight: each takes seconds, and the second is one too many."""
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        monkeypatch.setattr(torch._dynamo.config, limit, 1)
    made = tiny_curve.curve(impl="torch_compile", kv_cache_dtype="fp8", num_tokens=(1, 2))
    assert {point.status for point in run_curve.run(made, {})} == {"verified"}
