"""Faster and slower are said only beyond both kinds of noise."""

import math
import random
from collections import Counter

import pytest

from kvexp.results.verdict import between_gpus, interval, judge, judge_processes, latencies
from tests.helpers.recorded_rows import row


@pytest.mark.parametrize(
    ("latency_us", "num_tokens", "word"),
    [
        (10.0, 512, "same"),
        (10.1, 512, "same"),
        (10.19, 512, "ambiguous"),
        (10.3, 512, "slower"),
        (9.7, 512, "faster"),
        (10.3, 511, "same"),
        (10.6, 511, "slower"),
        (9.4, 511, "faster"),
    ],
)
def test_a_gpu_needs_2_percent_between_the_intervals_and_5_below_512_tokens(latency_us, num_tokens, word):
    assert judge(row(num_tokens=num_tokens), row(latency_us, num_tokens=num_tokens)).word == word


def test_a_cpu_needs_20_percent():
    assert judge(row(device="cpu"), row(11.9, device="cpu")).word == "same"
    assert judge(row(device="cpu"), row(12.2, device="cpu")).word == "slower"


def test_a_wide_interval_is_ambiguous_however_far_the_medians_are_apart():
    wide = {"latency_us_low": 9.0, "latency_us_high": 30.0, "num_tokens": 1024}
    assert judge(row(num_tokens=1024), row(20.0, **wide)).word == "ambiguous"


def test_the_ratio_has_the_interval_that_both_medians_allow():
    found = judge(row(10.0), row(20.0))
    assert found.ratio == 2
    assert found.low == pytest.approx(2 * 0.998 / 1.002)
    assert found.high == pytest.approx(2 * 1.002 / 0.998)
    assert found.speedup == 0.5


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("num_tokens", [64, 1024])
def test_the_least_difference_that_is_seen_is_the_least_that_is_called_one(processes, num_tokens):
    def against(latency_us):
        sides = (
            [row(us * factor, num_tokens=num_tokens) for factor in (1, 1.01, 1.02, 1.03)[:processes]]
            for us in (10.0, latency_us)
        )
        return judge_processes(*sides)

    least = against(10.0).least_seen
    assert 0.01 < least < 0.1
    assert against(10.0 * (1 + 0.999 * least)).word != "slower"
    assert against(10.0 * (1 + 1.001 * least)).word == "slower"
    assert against(10.0 / (1 + 1.001 * least)).word == "faster"


def test_two_processes_a_side_may_be_judged_by_their_scatter():
    sides = [row(us) for us in (10.0, 10.1)], [row(us) for us in (10.9, 11.0)]
    assert judge_processes(*sides).low != judge_processes(*sides, enough=2).low
    assert judge_processes(*sides, enough=2).noise == 0


def test_a_row_without_an_interval_is_judged_by_its_percentiles():
    assert interval(row(10.0) | {"latency_us_low": None}) == (9.9, 10.1)
    assert interval({"latency_us": 3.0}) == (3.0, 3.0)


def test_a_tolerance_replaces_what_was_measured():
    assert judge(row(), row(10.3), tolerance=0.01).word == "slower"


@pytest.mark.parametrize(
    ("num_tokens", "gpus", "processes", "latency_us"),
    [
        *((512, 0.01, 1, us) for us in (10.25, 10.3)),
        *((512, 0.01, 5, us) for us in (10.1, 10.15)),
        *((511, 0.03, 1, us) for us in (10.6, 10.8)),
        *((511, 0.03, 5, us) for us in (10.25, 10.45)),
    ],
)
def test_another_gpu_of_the_kind_may_differ_by_more(num_tokens, gpus, processes, latency_us):
    sizes = {"num_tokens": num_tokens}
    before, now = ([row(us, **sizes)] * processes for us in (10.0, latency_us))
    assert judge_processes(before, now).word == "slower"
    assert judge_processes(before, now, gpus=gpus).word == "ambiguous"
    assert judge_processes(before, before, gpus=gpus).word == "same"
    far = [row(11.2, **sizes)] * processes
    assert judge_processes(before, far, gpus=gpus).word == "slower"
    assert judge_processes(far, before, gpus=gpus).word == "faster"


@pytest.mark.parametrize(("num_tokens", "gpus"), [(512, 0.01), (511, 0.03)])
def test_gpus_are_others_of_a_kind_by_their_names_and_uuids(num_tokens, gpus):
    one, other, nameless, h100 = (
        row(num_tokens=num_tokens, **columns)
        for columns in (
            {},
            {"device_uuid": "GPU-2"},
            {"device_uuid": None},
            {"device_uuid": "GPU-3", "device_name": "NVIDIA H100"},
        )
    )
    assert between_gpus([one], [other]) == between_gpus([one, one], [other]) == gpus
    for baseline, candidate in (
        ([one], [one]),
        ([one], [one, other]),
        ([other, one], [one, other]),
        ([one], [nameless]),
        ([one], [h100]),
    ):
        assert between_gpus(baseline, candidate) == 0


def on(uuid, *latencies_us, num_tokens=1024):
    return [row(us, num_tokens=num_tokens, device_uuid=uuid) for us in latencies_us]


def test_what_ran_on_several_gpus_is_compared_gpu_by_gpu():
    """GPUs that differ by half do not hide a change of 5 %, and are none, however often each was used."""
    before = on("GPU-1", 10.0, 10.01, 10.02) + on("GPU-2", 15.0, 15.02)
    slower = on("GPU-1", 10.5, 10.51) + on("GPU-2", 15.75, 15.74, 15.76, 15.75)
    equal = on("GPU-1", 10.01) + on("GPU-2", 15.01, 15.02, 15.0, 15.03)
    assert judge_processes(before, slower).word == "slower"
    assert judge_processes(before, slower).ratio == pytest.approx(1.05, abs=0.001)
    assert judge_processes(slower, before).word == "faster"
    assert judge_processes(before, equal).word == "same"
    for now in (slower, equal):
        first, second = latencies(before, now)
        assert second / first == pytest.approx(judge_processes(before, now).ratio)


def test_a_gpu_that_one_side_lacks_counts_for_nothing():
    shared = on("GPU-1", 10.0, 10.01, 10.02), on("GPU-1", 10.5, 10.51, 10.52)
    more = on("GPU-2", 30.0, 31.0, 32.0)
    plain = judge_processes(*shared)
    for sides in ((shared[0] + more, shared[1]), (shared[0], more + shared[1])):
        assert judge_processes(*sides) == plain
        assert latencies(*sides) == latencies(*shared)


def test_of_few_processes_those_on_one_gpu_are_compared():
    before, now = on("GPU-1", 10.0) + on("GPU-2", 15.0), on("GPU-2", 15.1) + on("GPU-3", 9.0)
    assert judge_processes(before, now) == judge(before[1], now[0])
    assert latencies(before, now) == (15.0, 15.1)


@pytest.mark.parametrize("processes", [1, 5])
def test_what_gpus_differ_by_widens_the_interval_of_the_ratio(processes):
    sides = [row(10.0)] * processes, [row(11.0)] * processes
    plain, wider = (judge_processes(*sides, gpus=gpus) for gpus in (0, 0.03))
    assert wider.ratio == plain.ratio
    assert wider.low == pytest.approx(plain.low / 1.03)
    assert wider.high == pytest.approx(plain.high * 1.03)


SAMPLES = 0.001
"""How far the samples of one process move its median, as the standard deviation of its logarithm."""


def spread(tolerance):
    """The standard deviation of processes of which 95 % of pairs differ by less than the tolerance."""
    return tolerance / (1.96 * math.sqrt(2))


def processes(chance, count, latency_us, tolerance):
    """Rows of processes, and of their samples, each with noise of its own."""
    size = 512 if tolerance < 0.05 else 64
    noise = [chance.gauss(0, spread(tolerance)) + chance.gauss(0, SAMPLES) for _ in range(count)]
    return [row(latency_us * math.exp(one), num_tokens=size) for one in noise]


def rounds(chance, count, change, tolerance, shared):
    """Both sides of an A/B in one sweep, whose processes share a part of their noise round by round."""
    size = 512 if tolerance < 0.05 else 64
    own, common = (spread(tolerance) * math.sqrt(part) for part in (1 - shared, shared))
    sides = [], []
    for _ in range(count):
        of_round = chance.gauss(0, common)
        for side, factor in zip(sides, (1.0, change), strict=True):
            noise = of_round + chance.gauss(0, own) + chance.gauss(0, SAMPLES)
            side.append(row(10.0 * factor * math.exp(noise), num_tokens=size))
    return sides


def words(change, tolerance):
    """The verdicts on 1,000 comparisons of five processes with five."""
    chance = random.Random(0)
    return Counter(
        judge_processes(
            processes(chance, 5, 10.0, tolerance), processes(chance, 5, 10.0 * change, tolerance)
        ).word
        for _ in range(1000)
    )


@pytest.mark.parametrize("tolerance", [0.02, 0.05])
def test_of_1000_equal_ones_at_most_10_are_called_faster_or_slower(tolerance):
    found = words(1.0, tolerance)
    assert found["faster"] + found["slower"] <= 10


@pytest.mark.parametrize(("change", "tolerance"), [(1.03, 0.02), (1.08, 0.05)])
def test_of_1000_true_changes_at_least_950_are_found(change, tolerance):
    assert words(change, tolerance)["slower"] >= 950
    assert words(1 / change, tolerance)["faster"] >= 950


def words_of_rounds(change, tolerance, shared):
    """The verdicts on 1,000 sweeps with repeat=5 that hold both sides."""
    chance = random.Random(0)
    return Counter(judge_processes(*rounds(chance, 5, change, tolerance, shared)).word for _ in range(1000))


@pytest.mark.parametrize("shared", [0.5, 1.0])
@pytest.mark.parametrize(("change", "tolerance"), [(1.03, 0.02), (1.08, 0.05)])
def test_both_error_rates_hold_for_interleaved_rounds(change, tolerance, shared):
    equal = words_of_rounds(1.0, tolerance, shared)
    assert equal["faster"] + equal["slower"] <= 10
    assert words_of_rounds(change, tolerance, shared)["slower"] >= 950
    assert words_of_rounds(1 / change, tolerance, shared)["faster"] >= 950


@pytest.mark.parametrize("gpus", [2, 4])
def test_both_error_rates_hold_for_rounds_on_several_gpus(gpus):
    """Eight rounds that hold both sides, of GPUs which differ by far more than the change."""

    def words_on_gpus(change):
        chance, found = random.Random(0), Counter()
        for _ in range(1000):
            levels = [chance.gauss(0, 0.05) for _ in range(gpus)]
            sides = rounds(chance, 8, change, 0.02, 0.5)
            for side in sides:
                side[:] = [
                    each | on(f"GPU-{n % gpus}", each["latency_us"] * math.exp(levels[n % gpus]))[0]
                    for n, each in enumerate(side)
                ]
            found[judge_processes(*sides).word] += 1
        return found

    equal = words_on_gpus(1.0)
    assert equal["faster"] + equal["slower"] <= 10
    assert words_on_gpus(1.03)["slower"] >= 950
    assert words_on_gpus(1 / 1.03)["faster"] >= 950


def test_fewer_than_three_processes_are_judged_by_the_middle_one():
    sides = [row(10.0), row(10.1)], [row(12.0), row(12.1), row(12.2)]
    assert judge_processes(*sides) == judge(row(10.0), row(12.1))


def test_processes_that_agree_by_chance_are_not_trusted_alone():
    assert judge_processes([row(10.0)] * 3, [row(10.05)] * 3).word != "slower"


# Student's t at 99.75 % (99.5 % of both sides), from a printed table, by degrees of freedom.
STUDENT_T = {8: 3.833, 12: 3.428}


@pytest.mark.parametrize(("num_tokens", "tolerance"), [(512, 0.02), (511, 0.05)])
@pytest.mark.parametrize("count", [3, 5])
def test_what_was_measured_before_weighs_as_much_as_two_sides_of_three_processes(
    count, num_tokens, tolerance
):
    """docs/comparing.md. Two sides of three have 2 + 2 degrees of freedom; processes that agree add nothing
    to the squares, and their own degrees of freedom to those."""
    before, own = 2 * (3 - 1), 2 * (count - 1)
    variance = spread(tolerance) ** 2 * before / (before + own)
    reach = STUDENT_T[before + own] * math.sqrt(variance * 2 / count)
    found = judge_processes(*([row(num_tokens=num_tokens)] * count,) * 2)
    assert math.log(found.high) == pytest.approx(reach, rel=1e-3)
    assert math.log(found.low) == pytest.approx(-reach, rel=1e-3)
