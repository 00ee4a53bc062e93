"""op=paged_decode: outputs near those of float64, what is refused, and that wrong ones are found."""

import math
import re

import pytest
import torch

from kvexp.bench import run_curve
from kvexp.errors import Unsupported
from kvexp.op.paged_decode import PagedDecode
from kvexp.workload import LAST, TIMED
from tests.helpers import compose, tiny_curve

LAYOUTS = [name for name in compose.layouts() if name != "head_major"]
TYPES = [
    ("half", "auto", "per_tensor"),
    ("bfloat16", "auto", "per_tensor"),
    ("float", "auto", "per_tensor"),
    ("bfloat16", "fp8_e4m3", "per_head"),
    ("half", "fp8_e5m2", "per_tensor"),
    ("float", "fp8_e4m3", "per_head"),
]
WRONG = r"[\d.]+ % of the 192 elements written to output are wrong"
SIZES = {"num_query_heads": 6, "num_blocks": 64, "context": 20, "num_tokens": (1, 5)}


def measured(**chosen):
    return list(run_curve.run(tiny_curve.curve(op="paged_decode", **{**SIZES, **chosen}), {}))


@pytest.mark.parametrize(("layout", "types"), compose.by_turns(LAYOUTS, TYPES, 2))
def test_outputs_are_verified_in_every_layout_and_type(layout, types):
    dtype, kv_cache_dtype, scale = types
    chosen = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "scale": scale}
    for how in ("", "wrong_decodes.Plain"):
        points = measured(how=how, layout=layout, **chosen)
        assert [point.status for point in points] == ["verified"] * 2, points[0].reason


@pytest.mark.parametrize("context", [1, 5, 16, 17, 100])
@pytest.mark.parametrize(
    "sizes",
    [
        {"num_query_heads": 2},
        {"num_heads": 1},
        {"block_size": 1},
        {"layout": "HND_packed", "head_size_v": 48, "num_layers": 3},
    ],
    ids=str,
)
def test_outputs_are_verified_at_any_length_and_grouping(context, sizes):
    points = measured(context=context, num_blocks=600, **sizes)
    assert [point.status for point in points] == ["verified"] * 2, points[0].reason


@pytest.mark.parametrize(
    ("layout", "types", "context"),
    [
        *((*pair, 20) for pair in compose.by_turns(LAYOUTS, TYPES, 3)),
        *(("HND", types, 300) for types in (TYPES[2], ("bfloat16", "fp8_e5m2", "per_tensor"))),
    ],
)
def test_triton_is_right_in_one_part_and_in_several(layout, types, context):
    dtype, kv_cache_dtype, scale = types
    chosen = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "scale": scale}
    (point,) = measured(impl="triton", layout=layout, context=context, num_tokens=3, **chosen)
    assert (point.status, point.reason.partition(":")[0]) == ("verified", "interpreted")


@pytest.mark.parametrize(
    "sizes",
    [
        {"context": 1},
        {"context": 64, "num_query_heads": 2},
        {"context": 65, "num_heads": 1, "num_query_heads": 40, "head_size": 16},
        {"context": 530, "num_tokens": 1, "head_size": 46},
        {"layout": "HND_packed", "head_size_v": 48, "num_layers": 3},
        {"block_size": 3, "num_blocks": 200},
    ],
    ids=str,
)
def test_triton_is_right_at_any_size(sizes):
    (point,) = measured(**{"impl": "triton", "num_tokens": 2, **sizes})
    assert point.status == "verified", point.reason


def test_the_law_is_attention_in_float64_by_the_definition():
    chosen = {**SIZES, "op": "paged_decode", "num_tokens": 2, "head_size": 8, "kv_cache_dtype": "fp8_e5m2"}
    with tiny_curve.memory(**chosen) as held:
        tensors = held.build(tiny_curve.case(**chosen), 1, 2)
        tensors.redraw(TIMED)
        for index in (0, 1):
            window = tensors.window(index)
            (part,) = window.list_parts()
            found = part.expect(slice(0, 2))
            planes = [
                plane.view(torch.float8_e5m2).double() * scale.double()
                for plane, scale in ((window.key_cache, window.k_scale), (window.value_cache, window.v_scale))
            ]
            for sequence in (0, 1):
                blocks = window.block_table[sequence].tolist()
                rows = [[plane[blocks[t // 16], t % 16] for t in range(20)] for plane in planes]
                for head in range(6):
                    query = window.query[sequence, head].tolist()
                    products = [
                        sum(a * b for a, b in zip(query, key[head // 3].tolist(), strict=True)) / math.sqrt(8)
                        for key in rows[0]
                    ]
                    powers = [math.exp(product - max(products)) for product in products]
                    for element in range(8):
                        values = [float(value[head // 3, element]) for value in rows[1]]
                        asked = sum(p * v for p, v in zip(powers, values, strict=True)) / sum(powers)
                        assert float(found[sequence, head, element]) == pytest.approx(
                            asked, rel=1e-9, abs=1e-12
                        )


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("HeadTooFar", f"{WRONG}, the first at token 0, head 0"),
        ("HeadsInTurn", f"{WRONG}, the first at token 0, head 1"),
        ("BlockTooFar", f"{WRONG}, .*: nan instead of"),
        ("TokenMore", f"{WRONG}, .*: nan instead of"),
        ("TokenLess", WRONG),
        ("NoMaximum", f"{WRONG}, the first at token 0, head 5, .*: nan instead of"),
        ("Unscaled", WRONG),
        ("Coarse", WRONG),
        ("OldTable", "the call keeps what it saw when it was bound"),
        ("OldPast", "the call keeps what it saw when it was bound"),
        ("Spilling", "a byte outside the written slots changed"),
    ],
)
def test_a_wrong_decode_is_incorrect(how, reason):
    point = measured(how=f"wrong_decodes.{how}")[0]
    assert (point.status, point.statistics) == ("incorrect", None)
    assert re.match(reason, point.reason), point.reason


@pytest.mark.parametrize(("dtype", "units"), [("float16", 16), ("bfloat16", 16), ("float32", 64)])
def test_the_bound_is_some_units_of_the_largest_output(dtype, units):
    chosen = {
        **SIZES,
        "op": "paged_decode",
        "num_tokens": 5,
        "dtype": {"float16": "half", "float32": "float"}.get(dtype, dtype),
    }
    with tiny_curve.memory(**chosen) as held:
        (part,) = held.build(tiny_curve.case(**chosen), 1).list_parts()
        outputs = part.expect(slice(0, 5))
        unit = torch.finfo(getattr(torch, dtype)).eps * outputs.abs().max()
        assert not part.find_wrong(outputs, outputs).any()
        assert not part.find_wrong(outputs + unit / 2, outputs).any()
        assert part.find_wrong(outputs + units * unit, outputs).all()
        positive = outputs > 0
        assert torch.equal(part.find_wrong(outputs.where(positive, math.nan), outputs), ~positive)


def test_data_change_in_place_with_each_draw():
    chosen = {**SIZES, "op": "paged_decode", "num_tokens": 3}
    with tiny_curve.memory(**chosen) as held:
        tensors = held.build(tiny_curve.case(**chosen), 2, 2)
        seen = {}
        for draw in (TIMED, LAST, TIMED):
            tensors.redraw(draw)
            assert tensors.unchanged()
            found = [held.inputs.clone(), tensors.query.clone(), tensors.block_table.clone()]
            assert all(map(torch.equal, found, seen.setdefault(draw, found)))
            assert torch.equal(tensors.block_table, tensors.window(1).block_table)
            assert torch.equal(tensors.query[1:], tensors.window(1).query[:-1])
        assert not any(map(torch.equal, seen[TIMED], seen[LAST]))
        tensors.window(1).query[-1, 0, 0] += 1
        assert not tensors.unchanged()


def test_windows_that_share_nothing_need_as_many_blocks():
    chosen = {**SIZES, "op": "paged_decode", "num_tokens": 5}
    with tiny_curve.memory(**chosen, cold_windows=6) as held:
        tensors = held.build(tiny_curve.case(**chosen), 1, 6, cold=True)
        blocks = torch.stack([tensors.window(index).block_table for index in range(6)])
        assert len(blocks.unique()) == blocks.numel() == 6 * 5 * 2
        with pytest.raises(Unsupported, match="needs 70 blocks, and the cache has 64"):
            held.build(tiny_curve.case(**chosen), 1, 7, cold=True)


def test_bytes_are_those_of_the_pasts_the_queries_the_tables_and_the_outputs():
    case = tiny_curve.case(op="paged_decode", num_tokens=3, num_query_heads=4, context=20, num_blocks=64)
    past, heads = 3 * 20 * 2 * 64, 3 * 4 * 32
    assert PagedDecode().bytes_moved(case, 2) == (past * 2 + heads * 2 + 8 * 5, heads * 2)


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"layout": "head_major"}, "which layout=head_major does not have; try layout=NHD"),
        ({"head_size_v": 16}, "not 32 and 16; packed layouts may have two"),
        ({"dtype": "fp8_e4m3", "kv_cache_dtype": "fp8_e4m3"}, "computes in half, bfloat16 or float, not"),
        ({"num_query_heads": 3}, "workload.num_query_heads=3 must be a multiple of workload.num_heads=2"),
        ({"padding": 0.5}, "so workload.padding has no meaning there"),
        ({"context": 1025, "num_tokens": 1}, "take 65 blocks of 16, and the cache has 64"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_skipped_with_its_reason(chosen, reason):
    point = measured(**chosen)[-1]
    assert point.status == "skipped"
    assert reason in point.reason
