"""What the library's functions refuse of keys, values, slots, scales and words."""

from dataclasses import replace

import pytest
import torch

from kvexp import op as ops
from kvexp.op import FP8
from tests.helpers import oracle
from tests.helpers.library_calls import SLOTS, assert_refused, called
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

NOT_STRIDED = {
    "sparse_coo": torch.Tensor.to_sparse,
    "sparse_csr": lambda tensor: tensor.flatten(1).to_sparse_csr(),
    "mkldnn": lambda tensor: tensor.float().to_mkldnn(),
    "strided": lambda tensor: torch.nested.nested_tensor(list(tensor)),
    "jagged": lambda tensor: torch.nested.nested_tensor(list(tensor), layout=torch.jagged),
}
"""Tensors without strides of their own, by what their layout is called."""

SCALES = ("k_scale", "v_scale")


@pytest.mark.filterwarnings("ignore")  # torch says that some of these layouts are in beta
@pytest.mark.parametrize("layout", NOT_STRIDED)
@pytest.mark.parametrize("name", ["key", "value", "cache", "slot_mapping", *SCALES])
class TestEveryTensor:
    def test_must_be_strided(self, op, name, layout):
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8", scale="per_head")
        name = {"cache": "kv_cache" if op == DIFFKV else "value_cache"}.get(name, name)
        strided = getattr(posed, name)
        few = strided.dim() < 2
        odd = NOT_STRIDED[layout](torch.ones(3, 4) if few or layout == "mkldnn" else strided)
        kind = "a nested one (its layout is {})" if odd.is_nested else "one of the layout {}"
        sentence = f"{name} must be a strided tensor, not {kind.format(layout)}"
        assert_refused(replace(posed, **{name: odd}), TypeError, sentence)


class TestRows:
    def test_must_be_tensors(self, posed):
        assert_refused(replace(posed, key=[1.0]), TypeError, "key must be a torch.Tensor, not list")
        assert_refused(replace(posed, value=None), TypeError, "value must be a torch.Tensor, not NoneType")

    def test_must_be_at_least_the_tokens(self, posed):
        assert_refused(
            replace(posed, key=posed.key[:2]),
            ValueError,
            "key must have a row for each of the 3 tokens of slot_mapping, not 2",
        )

    def test_must_have_three_dims(self, posed):
        assert_refused(
            replace(posed, value=posed.value.flatten(1)),
            ValueError,
            "value must be [num_tokens, num_heads, head_size], not [3, 128]",
        )

    def test_must_have_the_same_heads(self, posed):
        assert_refused(
            replace(posed, value=posed.value[:, :1]), ValueError, "value must have 2 heads as key has, not 1"
        )

    @pytest.mark.parametrize("op", [FLASH, PAGED])
    def test_must_have_heads_of_one_size_but_for_diffkv(self, posed):
        assert_refused(
            replace(posed, value=posed.value[..., :32].contiguous()),
            ValueError,
            "value must have heads of 64 elements as key has, not 32",
        )

    def test_must_have_adjacent_heads(self, posed):
        apart = torch.zeros(3, 2, 128, dtype=torch.bfloat16)[..., :64]
        assert_refused(
            replace(posed, key=apart),
            ValueError,
            "key must have adjacent heads of contiguous elements, not the strides (256, 128, 1)",
        )

    def test_must_be_the_numbers_in_their_memory(self, posed):
        assert_refused(
            replace(posed, key=torch._neg_view(posed.key)),
            ValueError,
            "key must be the numbers that lie in its memory, not a view of their negatives",
        )
        freed = posed.value.clone()
        freed.untyped_storage().resize_(0)
        assert_refused(replace(posed, value=freed), ValueError, "value has no memory")

    def test_must_be_of_a_type_that_is_cached(self, posed):
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
        posed = oracle.problem("cpu", SLOTS, op=op, dtype="fp8_e4m3", kv_cache_dtype="fp8_e4m3")
        assert_refused(
            replace(posed, kv_cache_dtype="fp8_e5m2"),
            TypeError,
            "key is float8_e4m3fn, which goes into an fp8 cache of its own kind alone, "
            "not kv_cache_dtype=fp8_e5m2",
        )

    def test_of_one_head_may_have_any_stride_of_heads(self):
        rows = torch.randn(3, 1, 128).bfloat16()[..., :64]
        oracle.assert_writes("library/torch", oracle.problem("cpu", SLOTS, num_heads=1, key=rows, value=rows))


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
        assert_refused(replace(oracle.problem("cpu", SLOTS, op=op), slot_mapping=slots), kind, sentence)

    def test_past_the_last_slot_is_said_when_asked(self, op):
        posed = oracle.problem("cpu", [5, 128, 2**40], op=op)
        sentence = "slot_mapping[2] is 1099511627776, past the last of the cache's 128 slots"
        assert_refused(posed, ValueError, sentence, check_slots=True)

    def test_that_is_right_passes_the_question(self, op):
        posed = oracle.problem("cpu", [127, -1, 0], op=op)
        expected = posed.expected()
        called(posed, check_slots=True)
        assert torch.equal(posed.storage, expected)
        called(oracle.problem("cpu", [], op=op), check_slots=True)


class TestScales:
    def test_are_needed_for_fp8_alone(self, op):
        called(oracle.without_scales(oracle.problem("cpu", SLOTS, op=op)))
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8")
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
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8")
        assert_refused(replace(posed, **changed), kind, sentence)

    @pytest.mark.parametrize("name", SCALES)
    def test_must_be_the_numbers_in_their_memory(self, op, name):
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8", scale="per_head")
        numbers = getattr(posed, name)
        negatives = f"{name} must be the numbers that lie in its memory, not a view of their negatives"
        for lazy in (torch._neg_view(numbers), torch.complex(numbers, numbers).conj().imag):
            assert_refused(replace(posed, **{name: lazy}), ValueError, negatives)
        conjugates = torch.complex(numbers, numbers).conj()
        assert_refused(
            replace(posed, **{name: conjugates}), ValueError, negatives.replace("negatives", "conjugates")
        )
        freed = numbers.clone()
        freed.untyped_storage().resize_(0)
        assert_refused(replace(posed, **{name: freed}), ValueError, f"{name} has no memory")

    @pytest.mark.parametrize("unread", [1.0, torch.ones(3), torch._neg_view(torch.ones(1))], ids=repr)
    def test_that_are_not_read_may_be_anything(self, posed, op, unread):
        expected = posed.expected()
        found = ops.load(op).validate(replace(posed, k_scale=unread, v_scale=unread).arguments)
        assert found.arguments[-2:] == (None, None)
        assert found.addresses[-2:] == (0, 0)
        called(replace(posed, k_scale=unread, v_scale=unread))
        assert torch.equal(posed.storage, expected)

    def test_of_one_element_may_have_a_dim(self, op):
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8")
        expected = posed.expected()
        called(replace(posed, k_scale=posed.k_scale.view(1), v_scale=posed.v_scale.view(1)))
        assert torch.equal(posed.storage, expected)


class TestWords:
    def test_of_formats_are_vllm_s(self, op):
        posed = oracle.problem("cpu", SLOTS, op=op, kv_cache_dtype="fp8_e4m3")
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
        assert_refused(replace(oracle.problem("cpu", SLOTS, op=op), kv_cache_dtype=word), kind, sentence)

    def test_that_are_no_implementation_are_refused(self, op):
        sentence = "impl must be one of cuda, triton, torch, not 'vllm'"
        assert_refused(oracle.problem("cpu", SLOTS, op=op), ValueError, sentence, impl="vllm")

    def test_cuda_on_the_cpu_is_refused(self, op):
        sentence = "impl='cuda' needs tensors on a GPU, and key is on cpu"
        assert_refused(oracle.problem("cpu", SLOTS, op=op), ValueError, sentence, impl="cuda")

    @pytest.mark.parametrize("dtype", oracle.DTYPES)
    def test_fp8_heads_may_have_any_size_but_in_pieces_of_sixteen_bytes(self, op, dtype):
        posed = oracle.problem(
            "cpu", SLOTS, op=op, dtype=dtype, kv_cache_dtype=dtype if dtype in FP8 else "fp8", head_size=23
        )
        posed = oracle.without_scales(posed) if dtype in FP8 else posed
        if op == PAGED:
            assert_refused(posed, ValueError, "key must have heads of a multiple of 16 elements, not 23")
        else:
            oracle.assert_writes("library/torch", posed)
