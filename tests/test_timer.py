import math
import statistics
from dataclasses import asdict
from itertools import chain, repeat

import numpy as np
import pytest

from kvexp import timer
from kvexp.errors import ConfigError, Unsupported
from kvexp.timer import Replay, Rule, check_timer, collect, median_standard_error, summarise, wall_clock

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


class TestTheMedianSStandardError:
    @pytest.mark.parametrize("count", [20, 21, 50, 200])
    @pytest.mark.parametrize(
        "draw",
        [
            lambda generator, size: generator.normal(10.0, 1.0, size),
            lambda generator, size: generator.exponential(1.0, size),
            lambda generator, size: generator.uniform(0.0, 1.0, size),
        ],
        ids=["normal", "exponential", "uniform"],
    )
    def test_is_the_spread_of_medians_of_such_samples(self, draw, count):
        sets = draw(np.random.default_rng(0), (3000, count))
        spread = np.median(sets, axis=1).std()
        estimates = [median_standard_error(samples) for samples in sets[:500].tolist()]
        assert np.mean(estimates) == pytest.approx(spread, rel=0.15)

    def test_does_not_depend_on_the_order(self):
        samples = [*NOISE] * 3
        assert median_standard_error(samples) == median_standard_error(sorted(samples))

    def test_scales_and_shifts_with_the_samples(self):
        error = median_standard_error([*NOISE] * 3)
        assert median_standard_error([4 * x + 7 for x in NOISE] * 3) == pytest.approx(4 * error)

    def test_of_equal_samples_is_zero(self):
        assert median_standard_error([3.0] * 20) == 0.0

    def test_is_not_moved_by_a_few_outliers(self):
        samples = [*NOISE] * 5
        assert median_standard_error([*samples[:-2], 1e9, 1e9]) == pytest.approx(
            median_standard_error(samples), rel=0.5
        )

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
    def test_of_a_handful_is_within_their_range(self, count):
        samples = list(NOISE[:count])
        assert 0 <= median_standard_error(samples) <= max(samples) - min(samples)


class TestSummary:
    @pytest.mark.parametrize("count", [2, 3, 20, 101])
    def test_is_numpy_s(self, count):
        samples = np.random.default_rng(count).exponential(3.0, count)
        assert asdict(summarise(samples.tolist())) == {
            "latency_us": np.median(samples),
            "latency_us_p20": np.percentile(samples, 20),
            "latency_us_p80": np.percentile(samples, 80),
            "latency_us_min": samples.min(),
            "latency_us_mean": samples.mean(),
            "latency_us_std": samples.std(ddof=1),
            "samples": count,
        }

    def test_of_one_sample_has_no_spread(self):
        found = summarise([3.5])
        assert (found.latency_us, found.latency_us_std, found.samples) == (3.5, 0.0, 1)

    def test_is_of_python_s_own_numbers(self):
        assert {type(value) for value in asdict(summarise([1.0, 2.0])).values()} == {float, int}


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


def test_a_cpu_has_no_cuda_events():
    with pytest.raises(Unsupported) as raised:
        check_timer("cuda_event", "cpu")
    assert str(raised.value) == "timer=cuda_event needs a GPU; on device=cpu use timer=wall_clock"


def test_a_gpu_has_cuda_events():
    assert check_timer("cuda_event", "cuda:3") is None
