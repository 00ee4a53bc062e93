"""Calls that a guard accepts or rejects, with a launcher that launches nothing."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import kvexp
from kvexp import op as ops
from kvexp.api.launch_cache import MAX_PER_KEY, GuardedLaunch, LaunchCache
from kvexp.impl.cuda import Cuda
from kvexp.impl.cuda.launcher import Gpu
from kvexp.impl.cuda.options import Options
from tests.helpers import oracle
from tests.helpers.oracle import DIFFKV, FLASH, PAGED

OPS = (FLASH, DIFFKV, PAGED)


class Launcher:
    def prepare(self, num_tokens):
        return lambda *addresses: None


@pytest.fixture(autouse=True)
def no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.no_grad())


def tensors(posed):
    return (posed.key, posed.value, *posed.caches, posed.slot_mapping)


def make_guarded(posed):
    return GuardedLaunch(tensors(posed), ops.load(posed.op).validate(posed.arguments), Launcher())


def apart(posed, rows, caches):
    """The same call with key and value, and each cache, so many items past an aligned address."""
    names = ("kv_cache",) if posed.op == DIFFKV else ("key_cache", "value_cache")
    changed = dict(zip(("key", "value"), rows, strict=True)) | dict(zip(names, caches, strict=False))
    return replace(posed, **{name: oracle.moved(getattr(posed, name), off) for name, off in changed.items()})


@pytest.mark.parametrize(("op", "other"), [(FLASH, PAGED), (PAGED, FLASH)])
def test_a_guard_of_one_op_rejects_the_other_s_caches(op, other):
    """The flash function's cache has launches of both."""
    assert not make_guarded(oracle.problem("cpu", [3, 1, 7], op=op)).check(
        *tensors(oracle.problem("cpu", [3, 1, 7], op=other))
    )


@contextmanager
def remembered(posed):
    """Store the call in the library's cache, as after a valid call of impl=cuda; yield its launches."""
    (cache,) = (
        cell.cell_contents
        for cell in getattr(kvexp, posed.op).__closure__
        if isinstance(cell.cell_contents, LaunchCache)
    )
    launched = []
    made = GuardedLaunch(with_scales(posed), ops.load(posed.op).validate(posed.arguments), Launcher())
    made.launch = lambda *addresses: launched.append(addresses)
    cache.remember(("cuda", posed.kv_cache_dtype, len(posed.slot_mapping), len(with_scales(posed))), made,
                   with_scales(posed))  # fmt: skip
    try:
        yield launched
    finally:
        cache.clear()


def jagged(tensor):
    """The tensor as a nested one of one part."""
    return torch.nested.nested_tensor([tensor], layout=torch.jagged)


def with_scales(posed):
    return (*tensors(posed), posed.k_scale, posed.v_scale)


@pytest.mark.parametrize("op", OPS)
class TestAGuardedLaunch:
    def test_accepts_the_call_that_it_was_made_from_and_similar_ones(self, op):
        posed = oracle.problem("cpu", [3, 1, 7], op=op)
        assert make_guarded(posed).check(*tensors(posed))
        assert make_guarded(posed).check(*tensors(oracle.problem("cpu", [9, 2, -1], op=op)))

    @pytest.mark.parametrize(
        "other",
        [
            {"slots": [3, 1]},
            {"num_heads": 3},
            {"head_size": 128},
            {"num_blocks": 9},
            {"block_size": 32},
            {"dtype": "half"},
        ],
        ids=str,
    )
    def test_rejects_a_call_of_other_sizes_strides_or_types(self, op, other):
        guarded = make_guarded(oracle.problem("cpu", [3, 1, 7], op=op))
        chosen = {"slots": [3, 1, 7], **other}
        assert not guarded.check(*tensors(oracle.problem("cpu", chosen.pop("slots"), op=op, **chosen)))

    def test_rejects_a_call_of_caches_with_other_block_strides(self, op):
        posed = oracle.problem("cpu", [3, 1, 7], op=op)
        others = [oracle.problem("cpu", [3, 1, 7], op=op, num_layers=2)]
        if op == PAGED:
            others = [oracle.with_blocks_apart(posed, *distances) for distances in ((2, 2), (1, 2), (2, 1))]
        for other in others:
            assert not make_guarded(posed).check(*tensors(other))

    @pytest.mark.parametrize("at", range(7))
    def test_rejects_a_call_with_a_lazy_view_or_without_strides(self, op, at):
        """What validation refuses by the tensor's kind is not let through by a call that was remembered."""
        posed = oracle.problem("cpu", [3, 1], op=op, kv_cache_dtype="fp8", scale="per_head")
        guarded = GuardedLaunch(with_scales(posed), ops.load(op).validate(posed.arguments), Launcher())
        given = with_scales(posed)
        assert guarded.check(*given)
        position = at % len(given)
        for odd in (torch._neg_view, torch.Tensor.to_sparse, jagged):
            changed = [odd(one) if number == position else one for number, one in enumerate(given)]
            assert not guarded.check(*changed)

    @pytest.mark.parametrize("caches", [(0, 0), (0, 4), (4, 0), (4, 4), (1, 4)])
    @pytest.mark.parametrize("rows", [(0, 0), (0, 4), (4, 0), (1, 2)])
    def test_of_one_alignment_leads_to_one_kernel(self, op, rows, caches):
        """Whatever else a launcher would look at in an address is among the bits that a kind compares."""
        impl = object.__new__(Cuda)
        impl.device, impl.gpu = torch.device("cuda:0"), Gpu(0, "sm_90", 132)
        impl.options = Options()
        made = {}
        for swap in (False, True):
            ends = (rows[::-1], caches[::-1]) if swap else (rows, caches)
            posed = apart(oracle.problem("cpu", [3, 1, 7], op=op), *ends)
            found = make_guarded(posed)
            spec = impl.launcher(op, *posed.arguments).plan.__wrapped__.args[0]
            made.setdefault((found.reads_at, found.writes_at), set()).add(spec)
        assert {len(specs) for specs in made.values()} == {1}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("name", "odd", "kind", "sentence"),
    [
        *((name, torch._neg_view, ValueError, f"{name} must be the numbers that lie in its memory")
          for name in ("key", "value", "slot_mapping", "k_scale", "v_scale")),
        *((name, torch.Tensor.to_sparse, TypeError, f"{name} must be a strided tensor")
          for name in ("key", "value", "slot_mapping", "k_scale", "v_scale")),
        ("key", lambda key: torch.nested.nested_tensor(list(key)), TypeError, "key must be a strided tensor"),
    ],
)  # fmt: skip
def test_a_call_that_was_remembered_lets_none_through_that_validation_refuses(op, name, odd, kind, sentence):
    posed = oracle.problem("cpu", [3, 1], op=op, kv_cache_dtype="fp8", scale="per_head")
    function = getattr(kvexp, op)
    with remembered(posed) as launched:
        function(*posed.arguments, impl="cuda")
        assert len(launched) == 1
        with pytest.raises(kind, match=f"^{sentence}"):
            function(*replace(posed, **{name: odd(getattr(posed, name))}).arguments, impl="cuda")
        assert len(launched) == 1
        function(*posed.arguments, impl="cuda")
        assert len(launched) == 2


def test_one_tensor_for_key_and_value_is_not_remembered():
    posed = oracle.problem("cpu", [3, 1, 7])
    posed.value = posed.key
    cache = LaunchCache()
    cache.remember(("cuda", "auto", 3, 5), make_guarded(posed), tensors(posed))
    assert cache == {}


def test_the_oldest_of_too_many_launches_is_dropped():
    cache, made = LaunchCache(), []
    for blocks in range(1, MAX_PER_KEY + 3):
        posed = oracle.problem("cpu", [3], num_blocks=blocks)
        made.append(make_guarded(posed))
        cache.remember(("cuda", "auto", 1, 5), made[-1], tensors(posed))
    assert cache["cuda", "auto", 1, 5] == made[-MAX_PER_KEY:]
