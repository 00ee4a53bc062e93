"""impl=copy: the equal copy as a curve. Its bytes are checked, though it is no cache write."""

import pytest
import torch

from kvexp.bench import equal_copy, run_curve
from kvexp.bench.equal_copy import Move
from tests.helpers import compose, tiny_curve

RULE = {"warmup": 1, "min_samples": 3, "max_samples": 5}


def measured(**chosen):
    return list(run_curve.run(tiny_curve.curve(impl="copy", **chosen), {}))


@pytest.mark.parametrize(("op", "layout"), compose.pairs())
def test_a_point_is_the_time_of_its_own_copy(op, layout):
    for point in measured(op=op, layout=layout, timer="wall_clock", rule=RULE):
        row = point.row()
        assert (row["impl"], row["status"], row["reason"]) == ("copy", "ok", "")
        assert row["copy_us"] == row["latency_us"] > 0
        assert row["copy_fraction"] == 1
        assert row["samples"] == len(point.samples_us) >= 3


def test_it_moves_as_many_bytes_as_an_implementation():
    chosen = {"timer": "wall_clock", "rule": RULE, "padding": 0.3, "num_tokens": (16, 50)}
    ours = run_curve.run(tiny_curve.curve(impl="torch", **chosen), {})
    assert [point.bytes_moved for point in measured(**chosen)] == [point.bytes_moved for point in ours]


def test_without_a_timer_it_is_only_checked():
    assert [(p.status, p.reason) for p in measured(timer="none")] == [
        ("verified", "timer=none: not timed")
    ] * 4


def test_a_copy_that_is_not_there_is_skipped():
    for point in measured(kv_cache_dtype="fp8"):
        assert point.status == "skipped"
        assert point.reason.startswith("impl=copy has no copy for this point: ")
        assert point.reason.endswith("on a CPU it reads no more than it writes")


class Wrong:
    """torch's copy, and then something that is wrong from a given call on."""

    def __init__(self, wrong, since=0):
        self.wrong, self.left = wrong, since

    def __call__(self, source, place):
        def call():
            place.copy_(source[: place.numel()])
            self.left -= 1
            if self.left < 0:
                self.wrong(source, place)

        return call


def beyond(source, place):
    torch.as_strided(place, (place.numel() + 1,), (1,))[-1] = 1


def last_byte(source, place):
    place[-1] ^= 1


def its_source(source, place):
    source[0] += 1


@pytest.mark.parametrize(
    ("wrong", "since", "said"),
    [
        (last_byte, 0, "1 of 1 copies hold other bytes than were to be copied"),
        (beyond, 0, "a byte outside the written slots changed"),
        (its_source, 0, "the copy changed what it reads"),
        # The first calls warm up and are checked; those that are timed follow.
        (last_byte, 2, "copies hold other bytes"),
    ],
)
def test_a_wrong_copy_is_incorrect_and_has_no_latency(monkeypatch, wrong, since, said):
    monkeypatch.setattr(equal_copy, "_make_cpu_copy", Wrong(wrong, since))
    (point,) = measured(timer="wall_clock" if since else "none", rule=RULE, num_tokens=50)
    assert (point.status, point.statistics) == ("incorrect", None)
    assert said in point.reason


@pytest.mark.parametrize("pieces", [1 << 20, 48])
def test_what_arrives_is_all_that_is_read(monkeypatch, pieces):
    """Two parts of the source and whole vectors of what is read besides, folded; in pieces as in one."""
    monkeypatch.setattr(equal_copy, "ROWS_BYTES", pieces)
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(256, (500,), dtype=torch.uint8, generator=generator)
    extra = torch.randint(256, (72,), dtype=torch.uint8, generator=generator)
    expected = source[:160].numpy() ^ source[160:320].numpy()
    expected[:64] ^= extra[:64].numpy()
    assert Move(source, 2, extra, torch.from_numpy(expected)).is_written()
    for byte in (0, 63, 64, 159):
        other = expected.copy()
        other[byte] ^= 128
        assert not Move(source, 2, extra, torch.from_numpy(other)).is_written()
