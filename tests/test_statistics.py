"""What samples say: the median, its interval and its standard error, and the rest of the summary."""

from dataclasses import asdict
from itertools import product

import numpy as np
import pytest

from kvexp.statistics import interval_rank, median_interval, median_standard_error, summarise

NOISE = (1.0, 9.0, 5.0, 2.0, 8.0, 4.0, 7.0, 3.0, 6.0)

DRAWS = {
    "normal": lambda generator, size: generator.normal(10.0, 1.0, size),
    "exponential": lambda generator, size: generator.exponential(1.0, size),
    "uniform": lambda generator, size: generator.uniform(0.0, 1.0, size),
    "two values": lambda generator, size: generator.choice([1.0, 1.1], size),
}


class TestTheMedianSInterval:
    # From tables of the sign test: the rank of the order statistic for a confidence of 95 %.
    @pytest.mark.parametrize(
        ("count", "rank"),
        [(5, None), (6, 1), (8, 1), (9, 2), (20, 6), (25, 8), (30, 10), (50, 18), (100, 40)],
    )
    def test_has_the_ranks_of_the_sign_test(self, count, rank):
        assert interval_rank(count) == rank

    @pytest.mark.parametrize("count", range(6, 15))
    def test_is_the_narrowest_that_misses_at_most_one_in_twenty(self, count):
        """Of all outcomes of so many coins: heads is a sample below the median."""
        heads = [sum(coins) for coins in product((0, 1), repeat=count)]

        def missed(rank):
            return sum(below < rank or count - below < rank for below in heads) / len(heads)

        rank = interval_rank(count)
        assert missed(rank) <= 0.05 < missed(rank + 1)

    @pytest.mark.parametrize("draw", DRAWS)
    @pytest.mark.parametrize("count", [6, 20, 101])
    def test_holds_the_median_nineteen_times_of_twenty(self, draw, count):
        generator = np.random.default_rng(count)
        true = np.median(DRAWS[draw](generator, 1_000_001))
        held = 0
        for samples in DRAWS[draw](generator, (4000, count)).tolist():
            low, high = median_interval(samples)
            held += low <= true <= high
        assert held / 4000 >= 0.94


class TestTheMedianSStandardError:
    @pytest.mark.parametrize("count", [20, 21, 50, 200])
    @pytest.mark.parametrize("draw", ["normal", "exponential", "uniform"])
    def test_is_the_spread_of_medians_of_such_samples(self, draw, count):
        sets = DRAWS[draw](np.random.default_rng(0), (3000, count))
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
        expected = {
            "latency_us": np.median(samples),
            "latency_us_low": None if count < 6 else np.sort(samples)[interval_rank(count) - 1],
            "latency_us_high": None if count < 6 else np.sort(samples)[-interval_rank(count)],
            "latency_us_p20": np.percentile(samples, 20),
            "latency_us_p80": np.percentile(samples, 80),
            "latency_us_min": samples.min(),
            "latency_us_mean": samples.mean(),
            "latency_us_std": samples.std(ddof=1),
            "samples": count,
        }
        found = asdict(summarise(samples.tolist()))
        for column in ("latency_us_p20", "latency_us_p80", "latency_us_mean", "latency_us_std"):
            # Sums in another order than numpy's.
            assert found.pop(column) == pytest.approx(expected.pop(column), rel=1e-14)
        assert found == expected

    def test_of_one_sample_has_no_spread(self):
        found = summarise([3.5])
        assert (found.latency_us, found.latency_us_std, found.samples) == (3.5, 0.0, 1)

    def test_is_of_python_s_own_numbers(self):
        assert {type(value) for value in asdict(summarise([1.0, 2.0] * 5)).values()} == {float, int}
