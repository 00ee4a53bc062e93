import math
import statistics
from itertools import chain, repeat

import numpy as np
import pytest

from kvexp import timer
from kvexp.errors import ConfigError, Unsupported
from kvexp.estimate import median_standard_error
from kvexp.timer import Replay, Rule, check_timer, collect, wall_clock

NEVER = Rule(warmup=0, min_samples=20, max_samples=1000, relative_error=0.0, max_seconds=math.inf)
NOISE = (1.0, 9.0, 5.0, 2.0, 8.0, 4.0, 7.0, 3.0, 6.0)


class Bench:
    """A call that takes as long as the next of its samples says, and the clock that it moves."""

    def __init__(self, samples_us, seconds_each=1.0):
        self.samples_us = iter(samples_us)
        self.seconds_each = seconds_each
        self.taken = []
        self.now = 100.0

    def sample(self):
        self.taken.append(next(self.samples_us))
        self.now += self.seconds_each
        return self.taken[-1]

    def clock(self):
        return self.now

    def collected(self, rule):
        return collect(self.sample, rule, self.clock)


def noisy():
    return iter(np.random.default_rng(0).exponential(3.0, 2000).tolist())


class TestTheStoppingRule:
    def test_takes_the_most_samples_when_nothing_else_stops_it(self):
        assert len(Bench(noisy()).collected(NEVER)) == 1000

    def test_stops_as_soon_as_the_median_is_known(self):
        rule = Rule(warmup=0, min_samples=20, max_samples=1000, relative_error=0.005, max_seconds=math.inf)
        assert Bench(repeat(3.0)).collected(rule) == (3.0,) * 20

    def test_takes_the_fewest_samples_even_when_the_median_is_known_before(self):
        rule = Rule(warmup=0, min_samples=23, max_samples=1000, relative_error=0.5, max_seconds=math.inf)
        found = Bench(repeat(3.0)).collected(rule)
        # Looked at with every fifth sample.
        assert len(found) == 25

    def test_stops_when_the_error_is_small_enough_and_not_before(self):
        rule = Rule(warmup=0, min_samples=5, max_samples=1000, relative_error=0.1, max_seconds=math.inf)
        found = Bench(noisy()).collected(rule)
        assert 5 < len(found) < 1000
        assert median_standard_error(found) <= 0.1 * statistics.median(found)
        for count in range(5, len(found), 5):
            earlier = found[:count]
            assert median_standard_error(earlier) > 0.1 * statistics.median(earlier)

    def test_honours_the_time_limit(self):
        rule = Rule(warmup=0, min_samples=20, max_samples=1000, relative_error=0.0, max_seconds=30.0)
        assert len(Bench(noisy()).collected(rule)) == 30

    def test_takes_the_fewest_samples_though_the_time_is_up(self):
        rule = Rule(warmup=0, min_samples=20, max_samples=1000, relative_error=0.0, max_seconds=2.0)
        assert len(Bench(noisy()).collected(rule)) == 20

    def test_counts_no_time_for_the_warm_up(self):
        rule = Rule(warmup=50, min_samples=20, max_samples=1000, relative_error=0.0, max_seconds=30.0)
        assert len(Bench(noisy()).collected(rule)) == 30

    def test_throws_the_warm_up_away_and_keeps_every_other_sample(self):
        bench = Bench(noisy())
        rule = Rule(warmup=3, min_samples=20, max_samples=40, relative_error=0.0, max_seconds=math.inf)
        found = bench.collected(rule)
        assert len(bench.taken) == 43
        assert found == tuple(bench.taken[3:])

    def test_removes_no_outlier(self):
        found = Bench(chain([3.0, 1e6], repeat(3.0))).collected(Rule(warmup=0, max_seconds=math.inf))
        assert 1e6 in found

    def test_takes_no_more_than_the_most(self):
        rule = Rule(warmup=0, min_samples=2, max_samples=2, relative_error=0.0, max_seconds=math.inf)
        assert len(Bench(noisy()).collected(rule)) == 2


class TestItsOptions:
    def test_are_the_rule_s_fields(self):
        assert Rule.from_options({"max_samples": 7, "max_seconds": 0.5}) == Rule(
            max_samples=7, max_seconds=0.5
        )

    def test_that_it_does_not_have_are_named_with_those_that_it_has(self):
        with pytest.raises(ConfigError) as raised:
            Rule.from_options({"min_sample": 7})
        assert str(raised.value) == (
            "timer has no min_sample; it has max_samples, max_seconds, min_samples, relative_error, warmup"
        )


class TestWallClock:
    def test_is_the_host_s_time_of_one_call(self, monkeypatch):
        now = iter(range(1000))
        monkeypatch.setattr(timer.time, "perf_counter", lambda: next(now) * 0.5)
        ran = []
        rule = Rule(warmup=2, min_samples=3, max_samples=3)
        timing = wall_clock(Replay(lambda: ran.append(1), 10), rule, on_gpu=False)
        # One step of the clock, half a second, for ten calls.
        assert timing.samples_us == (50_000.0,) * 3
        assert timing.host_us is None
        assert len(ran) == 5

    def test_of_more_work_is_longer(self):
        def busy(steps):
            rule = Rule(warmup=1, min_samples=5, max_samples=5)
            return wall_clock(Replay(lambda: sum(range(steps)), 1), rule, on_gpu=False)

        few, many = busy(1000), busy(1_000_000)
        assert len(few.samples_us) == 5
        assert all(sample > 0 for sample in few.samples_us)
        assert min(many.samples_us) > min(few.samples_us)


@pytest.mark.parametrize("name", ["wall_clock", "none"])
def test_a_cpu_has_the_host_s_clock(name):
    assert check_timer(name, "cpu") is None


@pytest.mark.parametrize("name", ["cuda_event", "profile"])
def test_a_cpu_has_none_of_cuda_s(name):
    with pytest.raises(Unsupported) as raised:
        check_timer(name, "cpu")
    assert str(raised.value) == f"timer={name} needs a GPU; on device=cpu use timer=wall_clock"


def test_a_gpu_has_cuda_events():
    assert check_timer("cuda_event", "cuda:3") is None
