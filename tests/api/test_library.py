"""The library's functions: the contract, what they refuse, and torch.compile."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

import kvexp
from tests import law
from tests.contract import Contract
from tests.law import DIFFKV, FLASH, PAGED

OPS = (FLASH, DIFFKV, PAGED)


class TestContract(Contract):
    @pytest.fixture
    def impl(self):
        return "library/torch"

    @pytest.fixture
    def device(self):
        return "cpu"


def called(posed, impl="torch", **options):
    getattr(kvexp, posed.op)(*posed.arguments, impl=impl, **options)


def assert_refused(posed, kind, sentence, **options):
    before = posed.storage.clone()
    with pytest.raises(kind) as raised:
        called(posed, **options)
    assert str(raised.value) == sentence
    assert torch.equal(posed.storage, before)


@pytest.fixture(params=OPS)
def op(request):
    return request.param


SLOTS = [5, 1, 9]


class TestRows:
    def test_must_be_tensors(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        assert_refused(replace(posed, key=[1.0]), TypeError, "key must be a torch.Tensor, not list")
        assert_refused(replace(posed, value=None), TypeError, "value must be a torch.Tensor, not NoneType")

    def test_must_be_at_least_the_tokens(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        assert_refused(
            replace(posed, key=posed.key[:2]),
            ValueError,
            "key must have a row for each of the 3 tokens of slot_mapping, not 2",
        )

    def test_must_have_three_dims(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        assert_refused(
            replace(posed, value=posed.value.flatten(1)),
            ValueError,
            "value must be [num_tokens, num_heads, head_size], not [3, 128]",
        )

    def test_must_have_the_same_heads(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        assert_refused(
            replace(posed, value=posed.value[:, :1]), ValueError, "value must have 2 heads as key has, not 1"
        )

    @pytest.mark.parametrize("op", [FLASH, PAGED])
    def test_must_have_heads_of_one_size_but_for_diffkv(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        assert_refused(
            replace(posed, value=posed.value[..., :32].contiguous()),
            ValueError,
            "value must have heads of 64 elements as key has, not 32",
        )

    def test_must_have_adjacent_heads(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        apart = torch.zeros(3, 2, 128, dtype=torch.bfloat16)[..., :64]
        assert_refused(
            replace(posed, key=apart),
            ValueError,
            "key must have adjacent heads of contiguous elements, not the strides (256, 128, 1)",
        )

    def test_must_be_the_numbers_in_their_memory(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        assert_refused(
            replace(posed, key=torch._neg_view(posed.key)),
            ValueError,
            "key must be the numbers that lie in its memory, not a view of their negatives",
        )
        freed = posed.value.clone()
        freed.untyped_storage().resize_(0)
        assert_refused(replace(posed, value=freed), ValueError, "value has no memory")

    def test_must_be_of_a_type_that_is_cached(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        assert_refused(
            replace(posed, key=posed.key.double()),
            TypeError,
            "key must be one of float16, bfloat16, float32, float8_e4m3fn, float8_e5m2, not float64",
        )
        assert_refused(
            replace(posed, value=posed.value.half()),
            TypeError,
            "value must be bfloat16 as key is, not float16",
        )

    def test_of_fp8_go_into_their_own_kind_of_cache(self, op):
        posed = law.problem("cpu", SLOTS, op=op, dtype="fp8_e4m3", kv_cache_dtype="fp8_e4m3")
        assert_refused(
            replace(posed, kv_cache_dtype="fp8_e5m2"),
            TypeError,
            "key is float8_e4m3fn, which goes into an fp8 cache of its own kind alone, "
            "not kv_cache_dtype=fp8_e5m2",
        )

    def test_of_one_head_may_have_any_stride_of_heads(self):
        rows = torch.randn(3, 1, 128).bfloat16()[..., :64]
        law.assert_writes("library/torch", law.problem("cpu", SLOTS, num_heads=1, key=rows, value=rows))


class TestSlotMapping:
    @pytest.mark.parametrize(
        ("slots", "kind", "sentence"),
        [
            (torch.tensor(SLOTS).int(), TypeError, "slot_mapping must be int64, not int32"),
            (torch.tensor([SLOTS]), ValueError, "slot_mapping must be [num_tokens], not [1, 3]"),
            (torch.arange(6)[::2], ValueError, "slot_mapping must be contiguous"),
        ],
    )
    def test_must_be_contiguous_int64_of_one_dim(self, op, slots, kind, sentence):
        assert_refused(replace(law.problem("cpu", SLOTS, op=op), slot_mapping=slots), kind, sentence)

    def test_past_the_last_slot_is_said_when_asked(self, op):
        posed = law.problem("cpu", [5, 128, 2**40], op=op)
        sentence = "slot_mapping[2] is 1099511627776, past the last of the cache's 128 slots"
        assert_refused(posed, ValueError, sentence, check_slots=True)

    def test_that_is_right_passes_the_question(self, op):
        posed = law.problem("cpu", [127, -1, 0], op=op)
        expected = posed.expected()
        called(posed, check_slots=True)
        assert torch.equal(posed.storage, expected)
        called(law.problem("cpu", [], op=op), check_slots=True)


class TestCaches:
    def test_must_have_the_rows_heads(self):
        posed = law.problem("cpu", SLOTS)
        assert_refused(
            replace(posed, key_cache=posed.key_cache[:, :, :1]),
            ValueError,
            "key_cache must be [num_blocks, block_size, 2, 64] (num_heads, head_size), not [8, 16, 1, 64]",
        )
        posed = law.problem("cpu", SLOTS, op=DIFFKV)
        assert_refused(
            replace(posed, kv_cache=posed.kv_cache[..., :64]),
            ValueError,
            "kv_cache must be [num_blocks, block_size, 2, 128] (num_heads, head_size + head_size_v), "
            "not [8, 16, 2, 64]",
        )
        posed = law.problem("cpu", SLOTS, op=PAGED)
        assert_refused(
            replace(posed, value_cache=posed.value_cache[:, :1]),
            ValueError,
            "value_cache must be [num_blocks, 2, 64, block_size], not [8, 1, 64, 16]",
        )
        assert_refused(
            replace(posed, key_cache=posed.key_cache[:4]),
            ValueError,
            "key_cache must be [8, 2, 8, 16, 8] to fit value_cache, not [4, 2, 8, 16, 8]",
        )

    def test_must_have_equal_sizes_and_strides(self):
        posed = law.problem("cpu", SLOTS)
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
        posed = law.problem("cpu", SLOTS)
        swapped = torch.zeros(8, 16, 64, 2, dtype=torch.bfloat16).transpose(2, 3)
        assert_refused(
            replace(posed, key_cache=swapped),
            ValueError,
            "key_cache must have a contiguous last dim, not the strides (2048, 128, 1, 2)",
        )
        posed = law.problem("cpu", SLOTS, op=PAGED)
        assert_refused(
            replace(posed, value_cache=torch.zeros(8, 2, 16, 64, dtype=torch.bfloat16).transpose(2, 3)),
            ValueError,
            "value_cache must be contiguous inside a block, not have the strides (2048, 1024, 1, 64)",
        )

    def test_must_have_memory_of_their_own(self):
        posed = law.problem("cpu", SLOTS)
        shared = torch.zeros(1, 16, 2, 64, dtype=torch.bfloat16).expand(8, 16, 2, 64)
        assert_refused(
            replace(posed, key_cache=shared),
            ValueError,
            "key_cache must have memory of its own for each element, not the strides (0, 128, 64, 1)",
        )

    def test_must_not_have_elements_that_overlap(self):
        posed = law.problem("cpu", [3, 7], num_blocks=4, num_heads=2, head_size=32)
        overlapping = torch.zeros(4096, dtype=torch.bfloat16).as_strided((4, 16, 2, 32), (8, 8, 8, 1))
        assert_refused(
            replace(posed, key_cache=overlapping, value_cache=overlapping.clone()),
            ValueError,
            "key_cache must have memory of its own for each element, not the strides (8, 8, 8, 1)",
        )

    @pytest.mark.parametrize("sizes", [{"num_blocks": 0}, {"block_size": 0, "num_blocks": 2}])
    def test_without_a_slot_are_not_written(self, op, sizes):
        posed = law.problem("cpu", [], op=op)
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

    def test_must_have_the_items_of_their_kind(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        name = "kv_cache" if op == DIFFKV else "key_cache"
        assert_refused(
            replace(posed, kv_cache_dtype="fp8_e5m2"),
            TypeError,
            f"{name} must be uint8 or float8_e5m2 for kv_cache_dtype=fp8_e5m2, not bfloat16",
        )
        posed = law.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8")
        assert_refused(
            replace(posed, kv_cache_dtype="auto"),
            TypeError,
            f"{name} must be bfloat16 for kv_cache_dtype=auto, not uint8",
        )

    @pytest.mark.parametrize("kind", ["fp8_e4m3", "fp8_e5m2"])
    def test_of_torch_s_own_fp8_types_hold_the_same_codes(self, op, kind):
        posed = law.problem("cpu", SLOTS, op=op, kv_cache_dtype=kind)
        expected = posed.expected()
        caches = {name: getattr(posed, name) for name in ("key_cache", "value_cache", "kv_cache")}
        views = {name: cache.view(law.DTYPES[kind]) for name, cache in caches.items() if cache is not None}
        called(replace(posed, **views))
        assert torch.equal(posed.storage, expected)

    def test_of_one_block_may_have_any_stride_of_blocks(self):
        posed = law.problem("cpu", [3, 7], num_blocks=1)
        own = posed.value_cache.as_strided(posed.value_cache.shape, (7, *posed.value_cache.stride()[1:]))
        called(replace(posed, value_cache=own))
        assert torch.equal(posed.key_cache[0, 7], posed.key[1])


class TestScales:
    def test_are_needed_for_fp8_alone(self, op):
        called(law.without_scales(law.problem("cpu", SLOTS, op=op)))
        posed = law.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8")
        assert_refused(
            replace(posed, v_scale=None),
            TypeError,
            "v_scale must be a float32 tensor for an fp8 cache, not None",
        )

    @pytest.mark.parametrize(
        ("changed", "kind", "sentence"),
        [
            ({"k_scale": 1.0}, TypeError, "k_scale must be a torch.Tensor or None, not float"),
            ({"k_scale": torch.ones(1).half()}, TypeError, "k_scale must be float32, not float16"),
            (
                {"v_scale": torch.ones(3)},
                ValueError,
                "v_scale must have one element or [2], one for each head, not [3]",
            ),
            ({"k_scale": torch.ones(2)}, ValueError, "v_scale must be [2] as k_scale is, not []"),
            (
                {"k_scale": torch.ones(4)[::2], "v_scale": torch.ones(2)},
                ValueError,
                "k_scale must be contiguous",
            ),
        ],
    )
    def test_must_be_float32_of_one_element_or_one_for_each_head(self, op, changed, kind, sentence):
        posed = law.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8")
        assert_refused(replace(posed, **changed), kind, sentence)

    def test_of_one_element_may_have_a_dim(self, op):
        posed = law.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8")
        expected = posed.expected()
        called(replace(posed, k_scale=posed.k_scale.view(1), v_scale=posed.v_scale.view(1)))
        assert torch.equal(posed.storage, expected)


class TestWords:
    def test_of_formats_are_vllm_s(self, op):
        posed = law.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8_e4m3")
        expected = posed.expected()
        called(replace(posed, kv_cache_dtype="fp8"))
        assert torch.equal(posed.storage, expected)

    @pytest.mark.parametrize(
        ("word", "kind", "sentence"),
        [
            (
                "int8",
                ValueError,
                "kv_cache_dtype must be one of auto, fp8, fp8_e4m3, fp8_e5m2, not 'int8'",
            ),
            (torch.uint8, TypeError, "kv_cache_dtype must be a str, not dtype"),
        ],
    )
    def test_that_are_no_format_are_refused(self, op, word, kind, sentence):
        assert_refused(replace(law.problem("cpu", SLOTS, op=op), kv_cache_dtype=word), kind, sentence)

    def test_that_are_no_implementation_are_refused(self, op):
        sentence = "impl must be one of cuda, triton, torch, not 'vllm'"
        assert_refused(law.problem("cpu", SLOTS, op=op), ValueError, sentence, impl="vllm")

    def test_cuda_on_the_cpu_is_refused(self, op):
        sentence = "impl='cuda' needs tensors on a GPU, and key is on cpu"
        assert_refused(law.problem("cpu", SLOTS, op=op), ValueError, sentence, impl="cuda")

    def test_fp8_heads_come_in_sixteens_whatever_they_come_from(self):
        posed = law.problem("cpu", SLOTS, dtype="fp8_e4m3", kv_cache_dtype="fp8", head_size=24)
        sentence = "key must have heads of a multiple of 16 elements for fp8, not 24"
        assert_refused(law.without_scales(posed), ValueError, sentence)

    def test_fp8_heads_come_in_sixteens(self, op):
        posed = law.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8", head_size=24)
        if op != PAGED:
            sentence = "key must have heads of a multiple of 16 elements for fp8, not 24"
            assert_refused(posed, ValueError, sentence)


class TestTorch:
    def test_checks_the_registered_op(self, op):
        posed = law.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8", scale="per_head")
        registered = getattr(torch.ops.kvexp, op).default
        outcome = opcheck(registered, (*posed.arguments, "torch", False))
        assert set(outcome.values()) == {"SUCCESS"}

    def test_compiles_a_call_without_a_break(self, op):
        torch._dynamo.reset()

        def step(key, *others):
            getattr(kvexp, op)(key * 2, *others, impl="torch")
            return key.sum()

        posed = law.problem("cpu", SLOTS, op=op)
        expected = replace(posed, key=posed.key * 2).expected()
        found = torch.compile(step, fullgraph=True, backend="aot_eager")(*posed.arguments)
        assert torch.equal(posed.storage, expected)
        assert torch.equal(found, posed.key.sum())

    def test_compiles_calls_of_any_number_of_tokens(self):
        torch._dynamo.reset()

        def step(key, *others):
            kvexp.reshape_and_cache_flash_diffkv(key * 2, *others, impl="torch")

        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
        for slots in ([5, 1, 9], [7], [3, 2, 8, 100, 64]):
            posed = law.problem("cpu", slots, op=DIFFKV)
            expected = replace(posed, key=posed.key * 2).expected()
            compiled(*posed.arguments)
            assert torch.equal(posed.storage, expected)

    def test_traces_a_call_as_one_node(self, op):
        posed = law.problem("cpu", SLOTS, op=op)

        def step(*tensors):
            getattr(kvexp, op)(*tensors, "auto", impl="torch")

        before = posed.storage.clone()
        traced = make_fx(step, tracing_mode="fake")(*posed.arguments[:-3])
        assert torch.equal(posed.storage, before)
        targets = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
        assert targets == [f"kvexp.{op}.default"]

    def test_runs_it_in_inference_mode(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        expected = posed.expected()
        with torch.inference_mode():
            called(posed)
        assert torch.equal(posed.storage, expected)

    def test_runs_it_on_a_cache_that_was_made_in_inference_mode(self, op):
        with torch.inference_mode():
            posed = law.problem("cpu", SLOTS, op=op)
        expected = posed.expected()
        called(posed)
        assert torch.equal(posed.storage, expected)

    def test_records_no_gradient_through_a_cache(self, op):
        posed = law.problem("cpu", SLOTS, op=op)
        posed = replace(posed, key=posed.key.requires_grad_())
        called(posed)
        assert not any(cache.requires_grad for cache in posed.caches)


def test_a_second_call_of_other_sizes_is_validated_too(op):
    called(law.problem("cpu", SLOTS, op=op))
    law.assert_writes("library/torch", law.problem("cpu", SLOTS, op=op, num_heads=3))
    posed = law.problem("cpu", SLOTS, op=op)
    assert_refused(
        replace(posed, slot_mapping=posed.slot_mapping.float()),
        TypeError,
        "slot_mapping must be int64, not float32",
    )


def test_importing_kvexp_imports_no_torch():
    code = "import sys, kvexp; print('torch' in sys.modules); kvexp.allocate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'kvexp' has no attribute 'reshape'"):
        kvexp.reshape  # noqa: B018
