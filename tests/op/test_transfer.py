"""op=transfer: which heads and blocks are copied, what is refused, and that wrong copies are found."""

import re
from dataclasses import replace

import pytest
import torch

from kvexp.bench import run_curve
from kvexp.errors import Unsupported
from kvexp.gpu import scan
from kvexp.impl import make
from kvexp.op.transfer import Transfer, find_shard
from kvexp.workload import GUARD_BYTES, LAST, TIMED
from tests.helpers import compose, tiny_curve

LAYOUTS = [name for name in compose.layouts() if name != "head_major"]
QUICK = {"warmup": 1, "min_samples": 3, "max_samples": 5}
# Ranks from and to; heads: copied, of the source, its first, of the destination, its first.
SHARDS = {
    (1, 1): (8, 8, 0, 8, 0),
    (1, 2): (4, 8, 4, 4, 0),
    (2, 4): (4, 8, 4, 4, 0),
    (1, 8): (1, 8, 4, 1, 0),
    (2, 1): (8, 8, 0, 16, 8),
    (8, 1): (8, 8, 0, 64, 32),
}


def measured(**chosen):
    return list(run_curve.run(tiny_curve.curve(op="transfer", **chosen), {}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (2, 2)])
class TestRight:
    def test_copies_are_verified_in_every_layout(self, layout, ranks):
        tp_from, tp_to = ranks
        chosen = {"layout": layout, "tp_from": tp_from, "tp_to": tp_to, "num_layers": 2, "slots": "random"}
        points = measured(**chosen, num_tokens=(1, 16, 17, 50, 128))
        assert [point.status for point in points] == ["verified"] * 5, points[0].reason

    def test_item_by_item_comes_to_the_same(self, layout, ranks):
        tp_from, tp_to = ranks
        sizes = {"num_layers": 2, "head_size": 8, "num_tokens": 20, "kv_cache_dtype": "fp8"}
        how = "wrong_transfers.ByLoops"
        (point,) = measured(how=how, layout=layout, tp_from=tp_from, tp_to=tp_to, **sizes)
        assert point.status == "verified", point.reason


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_views_are_the_heads_of_each_plane_of_each_layer(layout):
    chosen = {"op": "transfer", "layout": layout, "num_layers": 3, "num_heads": 8, "tp_to": 4}
    case = tiny_curve.case(**chosen)
    with tiny_curve.memory(**chosen) as held:
        caches = ((held.source, case, 4, 0), (held.destination, replace(case, num_heads=2), 0, GUARD_BYTES))
        for view, sizes, head, begin in caches:
            assert view.shape[4] == 2
            for layer in range(3):
                planes = held.layout.planes(sizes, 2, layer)
                pair = [planes.packed] if planes.packed else [planes.key, planes.value]
                assert view.shape[:2] == (3, len(pair))
                for index, plane in enumerate(pair):
                    found = view[layer, index]
                    assert found.stride() == plane.strides
                    assert found.storage_offset() == begin // 2 + plane.offset + head * plane.strides[2]


@pytest.mark.parametrize(("ranks", "shard"), SHARDS.items(), ids=str)
def test_the_heads_from_the_middle_on_are_copied(ranks, shard):
    tp_from, tp_to = ranks
    found = find_shard(tiny_curve.case(op="transfer", num_heads=8, tp_from=tp_from, tp_to=tp_to))
    fields = ("heads", "source_heads", "source_head", "destination_heads", "destination_head")
    assert tuple(getattr(found, field) for field in fields) == shard


def test_bytes_are_those_of_whole_blocks_in_all_layers_and_of_their_numbers():
    case = tiny_curve.case(op="transfer", num_tokens=17, num_layers=3, num_heads=8, head_size=32, tp_to=2)
    rows = 2 * 16 * 4 * 64 * 3
    assert Transfer().bytes_moved(case, 2) == (rows * 2 + 2 * 2 * 8, rows * 2)
    assert Transfer().bytes_moved(replace(case, kv_cache_dtype="fp8_e4m3"), 2)[1] == rows
    assert Transfer().count_places(case) == 4


# By layout: pieces of a block in three layers, and heads, slots and layers in one piece.
PIECES = {
    "NHD": (3 * 2 * 16, 4 * 32),
    "HND": (3 * 2, 4 * 16 * 32),
    "NHD_packed": (3 * 16, 4 * 64),
    "HND_packed": (3, 4 * 16 * 64),
    "BHLNC": (1, 4 * 16 * 64 * 3),
    "LHBNC": (3 * 4, 16 * 64),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_are_what_is_contiguous_on_both_sides(layout):
    chosen = {"layout": layout, "num_layers": 3, "num_heads": 8, "num_tokens": 17, "num_blocks": 20}
    (point,) = measured(**chosen, timer="wall_clock", rule=QUICK)
    count, items = PIECES[layout]
    assert (point.pieces, point.piece_bytes) == (2 * count, 2 * items)
    assert point.pieces * point.piece_bytes == Transfer().bytes_moved(point.case, 2)[1]


@pytest.mark.parametrize(
    ("tp_to", "pieces"),
    [(1, {"NHD": 1, "HND": 1, "NHD_packed": 1}), (8, {"NHD": 32, "HND": 2, "NHD_packed": 16})],
)
def test_equal_ranks_exchange_whole_blocks_and_others_rows(tp_to, pieces):
    for layout, count in pieces.items():
        made = tiny_curve.curve(op="transfer", layout=layout, num_heads=8, tp_to=tp_to, num_tokens=16)
        case = next(made.cases())
        assert Transfer().count_pieces(case, make(made.layout), 2)[0] == count


@pytest.mark.parametrize(
    ("how", "sizes", "reason"),
    [
        ("HeadTooFar", {}, r"100 % of the \d+ elements written to destination\[0, 0\] are wrong"),
        ("BlockTooFar", {}, r"100 % of the \d+ elements written to destination\[0, 0\] are wrong"),
        ("OneBlockMore", {}, "a byte outside the written slots changed"),
        ("LastLayerMissing", {}, r"100 % of the \d+ elements written to destination\[2, 0\] are wrong"),
        ("KeysAlone", {}, r"100 % of the \d+ elements written to destination\[0, 1\] are wrong"),
        ("OldBlocks", {"slots": "random"}, "the call keeps what it saw when it was bound"),
        ("OldBlocks", {"slots": "contiguous"}, "the call keeps what it saw when it was bound"),
        ("Emptying", {}, "the call changed its inputs: the source or the numbers of blocks"),
    ],
)
def test_a_wrong_copy_is_incorrect(how, sizes, reason):
    chosen = {"num_layers": 3, "num_blocks": 40, "num_tokens": (50,), **sizes}
    (point,) = measured(how=f"wrong_transfers.{how}", **chosen)
    assert (point.status, point.statistics) == ("incorrect", None)
    assert re.match(reason, point.reason), point.reason


def test_a_copy_that_skips_calls_is_incorrect_while_it_is_timed():
    (point,) = measured(how="wrong_transfers.EverySecond", timer="wall_clock", rule=QUICK, num_tokens=16)
    assert point.status == "incorrect"
    assert "not while it was timed" in point.reason


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"tp_to": 3}, "2 heads of a rank cannot be split for 3 times as many ranks"),
        ({"tp_from": 2, "tp_to": 3}, "share heads unevenly; one must divide the other"),
        ({"layout": "head_major"}, "which layout=head_major does not have; try layout=NHD"),
        ({"head_size_v": 16}, "not 32 and 16; packed layouts may have two"),
        ({"slots": "decode"}, "takes whole blocks, random or contiguous, not workload.slots=decode"),
        ({"padding": 0.5}, "so workload.padding has no meaning there"),
        ({"rows": "qkv"}, "so workload.rows has no meaning there"),
        ({"extra_tokens": 1}, "so workload.extra_tokens has no meaning there"),
        ({"num_tokens": 129}, "num_tokens 129 takes 9 blocks of 16, and the cache has 8"),
        ({"num_blocks": 1, "num_tokens": 1}, "needs 2 blocks, so that calls can take turns; the cache has 1"),
        ({"impl": "triton"}, "impl=triton has no transfer"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_skipped_with_its_reason(chosen, reason):
    point = measured(**chosen)[-1]
    assert point.status == "skipped"
    assert reason in point.reason


def test_windows_that_share_no_block_need_as_many():
    case = tiny_curve.case(op="transfer", num_tokens=48)
    with tiny_curve.memory(op="transfer", num_tokens=48) as held:
        windows = held.build(case, 2, 2, cold=True).windows
        assert len(windows.flatten().unique()) == 6
        with pytest.raises(Unsupported, match="needs 9 blocks of the source, and it has 8"):
            held.build(case, 2, 3, cold=True)


@pytest.mark.parametrize("slots", ["random", "contiguous"])
def test_data_change_in_place_and_depend_on_the_seed_alone(slots):
    chosen = {"op": "transfer", "num_tokens": 20, "slots": slots}
    with tiny_curve.memory(**chosen) as held:
        scan.poison(held.storage)
        tensors = held.build(tiny_curve.case(**chosen), 3, 2)
        seen = {}
        for draw in (TIMED, LAST, TIMED):
            tensors.redraw(draw)
            assert tensors.unchanged()
            assert len(tensors.places.flatten().unique()) == 6
            assert not (tensors.windows[0] == tensors.windows[1]).any()
            found = [held.inputs.clone(), tensors.windows.clone(), tensors.places.clone()]
            same = [torch.equal(*pair) for pair in zip(found, seen.setdefault(draw, found), strict=True)]
            assert all(same)
        for one, other in zip(seen[TIMED], seen[LAST], strict=True):
            assert not torch.equal(one, other)
        tensors.source[0, 0, 0, 0, 0, 0] += 1
        assert not tensors.unchanged()
