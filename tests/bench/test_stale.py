"""A call that keeps what it read, or skips what it wrote before, is incorrect or gains nothing."""

from itertools import product

import pytest

from kvexp import timer
from kvexp.bench import run_curve
from kvexp.bench.run_point import STALE
from tests.helpers import tiny_curve
from tests.helpers.stale_impls import READS, Skipping

SAMPLES = 5
RULE = {"warmup": 1, "min_samples": SAMPLES, "max_samples": SAMPLES, "relative_error": 0.0}
FIRST_COUNTED = 1 + RULE["warmup"]
"""Runs are numbered: that of the first check, then the warm-up, then the samples that count."""

TIMED = "right at first, but not while it was timed: "
CHANGED = "right at first, but not once its inputs changed in place: "


def measured(how, timer="wall_clock", num_tokens=16, **chosen):
    """The point of the curve."""
    options = {"num_tokens": num_tokens, "timer": timer, "rule": RULE, **chosen}
    (point,) = run_curve.run(tiny_curve.curve(how=f"stale_impls.{how}", **options), {})
    return point


def reason(how, **chosen):
    """Why the point is incorrect."""
    point = measured(how, **chosen)
    assert (point.status, point.statistics, point.samples_us) == ("incorrect", None, ()), point.reason
    return point.reason


@pytest.mark.parametrize("clock", ["none", "wall_clock"])
class TestThatKeepsWhatItRead:
    @pytest.mark.parametrize("what", READS)
    @pytest.mark.parametrize("slots", ["random", "contiguous", "prefill"])
    def test_when_it_was_bound_is_incorrect(self, what, slots, clock):
        chosen = {"slots": slots, "kv_cache_dtype": "fp8"}
        assert reason("Stale", options={"what": what}, timer=clock, **chosen).startswith(f"{STALE}: ")

    @pytest.mark.parametrize("what", READS)
    @pytest.mark.parametrize("scale", ["per_tensor", "per_head"])
    def test_when_it_ran_first_is_incorrect(self, what, scale, clock):
        chosen = {"options": {"what": what, "since": "ran"}, "kv_cache_dtype": "fp8", "scale": scale}
        assert reason("Stale", timer=clock, **chosen).startswith(CHANGED)

    def test_until_the_version_of_a_tensor_changes_is_incorrect(self, clock):
        assert reason("Remembering", options={"skips": False}, timer=clock).startswith(CHANGED)

    @pytest.mark.parametrize("what", ["keys", "values", "slots", "everything"])
    @pytest.mark.parametrize(("op", "layout"), [("reshape_and_cache_flash_diffkv", "HND_packed")])
    def test_is_incorrect_in_another_op(self, what, op, layout, clock):
        chosen = {"op": op, "layout": layout, "padding": 0.3, "padding_at": "scattered"}
        assert reason("Stale", options={"what": what}, timer=clock, **chosen).startswith(f"{STALE}: ")


@pytest.mark.parametrize("num_tokens", [1, 3, 16, 50])
def test_a_scale_that_is_not_read_may_be_kept(num_tokens):
    point = measured("Stale", options={"what": "scales"}, num_tokens=num_tokens)
    assert (point.status, point.reason) == ("ok", "")


class TestThatSkipsWork:
    """Whichever sample is audited."""

    @pytest.fixture(params=range(SAMPLES))
    def audited(self, request, monkeypatch):
        """The run that is audited."""
        monkeypatch.setattr(timer.secrets, "randbelow", lambda count: request.param)
        return FIRST_COUNTED + request.param

    @pytest.mark.parametrize("first", [1, FIRST_COUNTED])
    @pytest.mark.parametrize("turn", [-1, 0, 1])
    def test_in_every_sample_or_all_that_count_is_incorrect(self, audited, turn, first):
        assert reason("Resting", options={"first": first, "turn": turn}).startswith(TIMED)

    @pytest.mark.parametrize("first", range(FIRST_COUNTED, FIRST_COUNTED + SAMPLES + 3))
    def test_from_any_sample_on_is_incorrect(self, audited, first):
        """The last of them is the one that stands behind the audited one, or what is run for the check."""
        assert reason("Resting", options={"first": first}).startswith(TIMED)

    def test_in_the_audited_sample_is_incorrect_though_it_works_before_and_after(self, audited):
        options = {"first": audited, "last": audited + 1}
        assert reason("Resting", options=options).startswith(TIMED)

    def test_in_every_sample_but_the_first_and_the_last_ones_is_incorrect(self, audited):
        for before, after in product((1, 2, 3), (2, 3)):
            first, last = audited - before, audited + after
            assert reason("Resting", options={"first": max(1, first), "last": last}).startswith(TIMED)

    def test_because_no_tensor_has_changed_its_version_is_incorrect(self, audited):
        assert reason("Remembering", options={"skips": True}).startswith(TIMED)

    def test_in_none_is_right(self, audited):
        point = measured("Resting", options={"first": 1000})
        assert (point.status, point.reason, len(point.samples_us)) == ("ok", "", SAMPLES)


@pytest.mark.parametrize("num_tokens", [1, 50])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e4m3"])
@pytest.mark.parametrize("by", ["row", "call", "keys"])
def test_that_skips_what_is_there_already_skips_nothing(by, kv_cache_dtype, num_tokens):
    Skipping.rows.clear()
    chosen = {"kv_cache_dtype": kv_cache_dtype, "num_tokens": num_tokens}
    point = measured("Skipping", options={"by": by}, **chosen)
    assert (point.status, point.reason) == ("ok", "")
    # The first check; the samples, of which two come after audits; what comes after them; the last check.
    runs = 1 + RULE["warmup"] + SAMPLES + 2 + 1 + 1
    assert Skipping.rows["asked"] == runs * point.replicas * num_tokens
    assert Skipping.rows["written"] == Skipping.rows["asked"]
