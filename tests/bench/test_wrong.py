"""A wrong implementation is incorrect, with what is wrong, wherever it goes wrong."""

import re

import pytest

from kvexp.bench import run_curve
from kvexp.errors import CompileError, Unsupported
from tests.helpers import compose, oracle, tiny_curve
from tests.helpers.oracle import FLASH

QUICK = {"warmup": 1, "min_samples": 3, "max_samples": 5}
PAIRS = compose.pairs()
IDS = ["-".join(pair) for pair in PAIRS]
BESIDES = "a byte outside the written slots changed"
TIMED = "right at first, but not while it was timed: "
INPUTS = "the call changed its inputs: keys, values, slots or scales"


def measured(**chosen):
    return list(run_curve.run(tiny_curve.curve(**chosen), {}))


def only(**chosen):
    """The reason of a curve whose one point is incorrect."""
    (point,) = measured(**chosen)
    assert point.status == "incorrect", (chosen, point.reason)
    assert (point.statistics, point.samples_us) == (None, ())
    return point.reason


def right(**chosen):
    assert {point.status for point in measured(**chosen)} == {"verified"}


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            "Swapped",
            r"[\d.]+ % of the 512 elements written to key_cache are wrong, the first at token 0, "
            r"head 0, element 0 \(slot \d+\): 0x[0-9a-f]{4} instead of 0x[0-9a-f]{4}",
        ),
        ("Spilling", r"a byte outside the written slots changed, byte \d+ of the 40960 of the cache .*"),
        (
            "Idle",
            r"100 % of the 512 elements written to key_cache are wrong, the first at token 0, head 0, "
            r"element 0 \(slot \d+\): 0x[0-9a-f]{4} instead of 0x[0-9a-f]{4}",
        ),
        ("Boasting", "100 % of the 512 elements written to key_cache are wrong, .*"),
        (
            "OneBit",
            r"1\.56 % of the 512 elements written to value_cache are wrong, the first at token 0, "
            r"head 1, element 31 \(slot \d+\): 0x[0-9a-f]{4} instead of 0x[0-9a-f]{4}",
        ),
    ],
)
def test_is_incorrect_with_what_is_wrong_and_has_no_latency(how, reason):
    """Of 16 calls, half hold rows of one window: 8 of one token, 2 heads and 32 elements."""
    points = measured(how=f"wrong_impls.{how}", timer="wall_clock", rule=QUICK)
    assert [point.status for point in points] == ["incorrect"] * 4
    assert all(point.statistics is None and point.samples_us == () for point in points)
    assert re.fullmatch(reason, points[0].reason), points[0].reason


@pytest.mark.parametrize(("op", "layout"), PAIRS, ids=IDS)
def test_every_op_and_layout_finds_rows_that_are_wrong_or_not_there(op, layout):
    chosen = {"op": op, "layout": layout, "num_tokens": 16}
    assert re.match(
        r"\d+(\.\d)? % of the 1024 elements written to key_cache", only(how="wrong_impls.Swapped", **chosen)
    )
    assert only(how="wrong_impls.Idle", **chosen).startswith(
        "100 % of the 1024 elements written to key_cache"
    )


@pytest.mark.parametrize("how", ["Meddling", "Rerouting"])
def test_that_changes_its_inputs_is_incorrect(how):
    for point in measured(num_tokens=(16, 50), how=f"wrong_impls.{how}"):
        assert (point.status, point.reason) == ("incorrect", INPUTS)


@pytest.mark.parametrize(
    ("how", "reason"),
    [("Lazy", "100 % of the"), ("Careless", "1.56 % of the")],
)
def test_that_is_right_the_first_time_alone_is_incorrect(how, reason):
    rule = {"max_seconds": 0.01, "min_samples": 2}
    points = measured(timer="wall_clock", rule=rule, how=f"wrong_impls.{how}")
    assert {point.status for point in points} == {"incorrect"}
    assert points[0].reason.startswith(f"{TIMED}{reason}")


@pytest.mark.parametrize(("timer", "when"), [("none", ""), ("wall_clock", TIMED)])
def test_that_is_right_only_where_it_finds_poison_is_incorrect(timer, when):
    """Wrong in the first of each sixteen slots."""
    reason = only(how="wrong_impls.Sly", timer=timer, rule=QUICK, num_tokens=16)
    assert re.match(rf"{when}6\.25 % of the \d+ elements written to key_cache are wrong", reason)


@pytest.mark.parametrize("layout", [layout for op, layout in PAIRS if op == FLASH])
@pytest.mark.parametrize("how", ["Swapped", "Spilling", "Idle", "OneBit", "Meddling"])
def test_leaves_a_clean_cache_to_the_next_point(how, layout):
    points = measured(layout=layout, how="wrong_impls.WrongAtFirst", options={"wrong": how})
    assert [point.status for point in points] == ["incorrect", "verified", "verified", "verified"]


@pytest.mark.parametrize("dtype", oracle.WIDE)
def test_an_fp8_cache_that_was_not_scaled_is_incorrect(dtype):
    points = measured(kv_cache_dtype="fp8", dtype=dtype, how="wrong_impls.Unscaled")
    assert [point.status for point in points] == ["incorrect"] * 4
    assert re.search(r"0x[0-9a-f]{2} instead of 0x[0-9a-f]{2}$", points[3].reason)


@pytest.mark.parametrize(
    ("step", "trouble", "status"),
    [
        ("timer.time_replay", Unsupported("the call waits for the GPU"), "skipped"),
        ("bench.equal_copy.plan_moves", CompileError("the copy does not compile"), "failed"),
    ],
)
def test_a_byte_beside_the_cache_is_found_though_a_later_step_cannot_be(monkeypatch, step, trouble, status):
    def fails(*_):
        raise trouble

    monkeypatch.setattr(f"kvexp.{step}", fails)
    chosen = {"timer": "wall_clock", "rule": QUICK, "num_tokens": 16}
    assert only(how="stray_impls.Overrunning", **chosen).startswith(BESIDES)
    (point,) = measured(**chosen)
    assert (point.status, point.reason) == (status, str(trouble))


def test_what_each_call_writes_into_the_next_one_s_slots_is_found():
    """However many share the cache: it is beside the last one's, or in slots that were written before."""
    for num_tokens in (8, 16, 32, 64):
        chosen = {"timer": "wall_clock", "rule": QUICK, "slots": "contiguous", "num_tokens": num_tokens}
        assert re.match(
            f"{BESIDES}|.* written to key_cache are wrong", only(how="stray_impls.Further", **chosen)
        )


@pytest.mark.parametrize(("nth", "elements"), [(1, 4 * 1024), (2, 3 * 1024), (4, 3 * 1024)])
def test_every_slot_mapping_that_is_timed_was_verified(nth, elements):
    """Of seven, four hold rows of one window and three of the other."""
    chosen = {"timer": "wall_clock", "rule": QUICK, "num_tokens": 16}
    reason = only(how="stray_impls.Misaddressed", options={"nth": nth}, **chosen)
    assert re.match(rf"[\d.]+ % of the {elements} elements written to key_cache are wrong", reason)


@pytest.mark.parametrize("timer", ["none", "wall_clock"])
def test_a_changed_input_that_is_none_of_the_point_s_own_is_found(timer):
    point, largest = measured(how="stray_impls.Beyond", num_tokens=(3, 50), timer=timer, rule=QUICK)
    assert (point.status, largest.status) == ("incorrect", "incorrect")
    assert point.reason == f"right at first, but not once its inputs changed in place: {INPUTS}"
    assert largest.reason == INPUTS


@pytest.mark.parametrize(("op", "layout"), PAIRS, ids=IDS)
class TestWhereverItWrites:
    """Each of these is right where there is nothing to trip over, and incorrect where there is."""

    @pytest.mark.parametrize("padding_at", ["end", "scattered"])
    def test_the_row_of_a_padding_token_is_found(self, op, layout, padding_at):
        # Contiguous: the last slot, which is the wrong one's, belongs to no token.
        chosen = {"op": op, "layout": layout, "slots": "contiguous", "num_tokens": 10}
        padded = {"padding": 0.3, "padding_at": padding_at}
        assert only(how="stray_impls.PaddingLast", **chosen, **padded).startswith(BESIDES)
        right(how="stray_impls.PaddingLast", **chosen)

    @pytest.mark.parametrize("padding_at", ["end", "scattered"])
    def test_a_slot_that_padding_was_given_is_found(self, op, layout, padding_at):
        chosen = {"op": op, "layout": layout, "num_tokens": 10}
        assert only(how="stray_impls.Filling", **chosen, padding=0.3, padding_at=padding_at) == INPUTS
        right(how="stray_impls.Filling", **chosen)

    @pytest.mark.parametrize(("num_layers", "layers"), [(2, -1), (5, 2)])
    def test_a_neighbouring_layer_is_watched(self, op, layout, num_layers, layers):
        options = {"num_layers": num_layers, "layers": layers}
        chosen = {"op": op, "layout": layout, "num_tokens": 10, "num_layers": num_layers}
        assert only(how="stray_impls.Neighbourly", options=options, **chosen).startswith(BESIDES)
        right(op=op, layout=layout, num_layers=num_layers)

    def test_a_row_past_the_slot_mapping_is_found(self, op, layout):
        chosen = {"op": op, "layout": layout, "num_tokens": 10, "slots": "contiguous"}
        assert only(how="stray_impls.ExtraToken", **chosen, extra_tokens=2).startswith(BESIDES)
        right(how="stray_impls.ExtraToken", **chosen)

    @pytest.mark.parametrize("kv_cache_dtype", ["fp8_e4m3", "fp8_e5m2"])
    def test_a_scale_of_another_head_is_found(self, op, layout, kv_cache_dtype):
        chosen = {"op": op, "layout": layout, "num_tokens": 10, "kv_cache_dtype": kv_cache_dtype}
        reason = only(how="stray_impls.PerTensor", **chosen, scale="per_head")
        assert re.search(r"head 1, element \d+ \(slot \d+\): 0x[0-9a-f]{2} instead of", reason)
        right(how="stray_impls.PerTensor", **chosen)

    @pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
    def test_a_source_of_eight_bits_that_was_scaled_is_found(self, op, layout, dtype):
        reason = only(
            how="stray_impls.Rescaled", op=op, layout=layout, num_tokens=10, dtype=dtype, kv_cache_dtype=dtype
        )
        assert "elements written to key_cache are wrong" in reason

    def test_rows_that_were_taken_for_contiguous_are_found(self, op, layout):
        chosen = {"op": op, "layout": layout, "num_tokens": 10, "num_query_heads": 3}
        assert "the first at token 1," in only(how="stray_impls.Mislaid", **chosen, rows="qkv")
        for rows in ("contiguous", "misaligned"):
            right(how="stray_impls.Mislaid", **chosen, rows=rows)
