"""A verdict is said only beyond all noise that the two sides do not share."""

import math
import random
from collections import Counter
from functools import partial

import pytest

from kvexp.results.load import SWEEP
from kvexp.results.verdict import between_gpus, choose_word, interval, judge_processes, latencies
from tests.helpers.recorded_rows import row

judge_rounds = partial(judge_processes, in_one_sweep=True)


def one(latency_us=10.0, **columns):
    return [row(latency_us, **columns)]


@pytest.mark.parametrize(
    ("latency_us", "num_tokens", "word"),
    [
        (10.2, 512, "ambiguous"),
        (10.5, 512, "slower"),
        (9.5, 512, "faster"),
        (10.4, 511, "ambiguous"),
        (11.2, 511, "slower"),
        (8.9, 511, "faster"),
    ],
)
def test_two_processes_of_a_sweep_must_differ_by_more_than_processes_do(latency_us, num_tokens, word):
    sides = one(num_tokens=num_tokens), one(latency_us, num_tokens=num_tokens)
    assert judge_rounds(*sides).word == word
    if word != "ambiguous":  # of two sweeps, which may be shifted
        assert judge_processes(*sides).word == "ambiguous"


@pytest.mark.parametrize("judge", [judge_rounds, judge_processes])
def test_one_process_a_side_shows_no_difference_on_a_cpu(judge):
    sides = one(device="cpu"), one(90.0, device="cpu")
    assert judge(*sides).word == "ambiguous"
    assert judge(*sides, tolerance=0.2).word == "slower"
    assert judge(sides[0] * 2, sides[1] * 2).word == "slower"


def test_a_wide_interval_is_ambiguous_however_far_the_medians_are_apart():
    wide = {"latency_us_low": 9.0, "latency_us_high": 30.0, "num_tokens": 1024}
    assert judge_rounds(one(num_tokens=1024), one(20.0, **wide)).word == "ambiguous"


@pytest.mark.parametrize(("in_one_sweep", "noises"), [(True, 2), (False, 4)])
def test_the_interval_has_the_samples_and_the_processes_and_what_shifts_two_sweeps(in_one_sweep, noises):
    sides = one(10.0, num_tokens=512), one(20.0, num_tokens=512)
    found = judge_processes(*sides, in_one_sweep=in_one_sweep)
    reach = STUDENT_T[8] * spread(0.02) * math.sqrt(noises)  # whose tails are heavy
    assert found.ratio == pytest.approx(2)
    assert found.low == pytest.approx(2 * 0.998 / 1.002 * math.exp(-reach), rel=1e-3)
    assert found.high == pytest.approx(2 * 1.002 / 0.998 * math.exp(reach), rel=1e-3)
    assert found.speedup == pytest.approx(0.5)


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("num_tokens", [64, 1024])
def test_the_least_difference_that_is_seen_is_the_least_that_is_called_one(processes, num_tokens):
    def against(latency_us):
        sides = (
            [row(us * factor, num_tokens=num_tokens) for factor in (1, 1.01, 1.02, 1.03)[:processes]]
            for us in (10.0, latency_us)
        )
        return judge_rounds(*sides)

    least = against(10.0).least_seen
    assert 0.01 < least < 0.11
    assert against(10.0 * (1 + 0.999 * least)).word != "slower"
    assert against(10.0 * (1 + 1.001 * least)).word == "slower"
    assert against(10.0 / (1 + 1.001 * least)).word == "faster"


def test_same_rules_out_a_difference_of_the_margin():
    assert choose_word(0.98, 1.02, 0.03) == "same"
    assert choose_word(0.96, 1.02, 0.03) == choose_word(0.98, 1.04, 0.03) == "ambiguous"
    assert choose_word(1.001, 1.02, 0.03) == "slower"


def test_a_row_without_an_interval_is_judged_by_its_percentiles():
    assert interval(row(10.0) | {"latency_us_low": None}) == (9.9, 10.1)
    assert interval({"latency_us": 3.0}) == (3.0, 3.0)


def test_latencies_of_any_size_have_a_verdict():
    found = judge_processes([row(1e-300), row(1e300)], [row(1e300), row(1e-300)])
    assert found.word == "ambiguous"
    assert 0 < found.low < found.ratio < found.high < math.inf
    assert found.least_seen > 1


def test_a_tolerance_replaces_what_was_measured():
    assert judge_processes(one(), one(10.5)).word == "ambiguous"
    assert judge_processes(one(), one(10.5), tolerance=0.01).word == "slower"


@pytest.mark.parametrize(("num_tokens", "gpus", "latency_us"), [(512, 0.01, 10.15), (511, 0.03, 10.45)])
def test_another_gpu_of_the_kind_may_differ_by_more(num_tokens, gpus, latency_us):
    before, now, far = ([row(us, num_tokens=num_tokens)] * 5 for us in (10.0, latency_us, 11.2))
    assert judge_rounds(before, now).word == "slower"
    assert judge_rounds(before, now, gpus=gpus).word == "ambiguous"
    assert judge_processes(before, before, gpus=gpus).word == "same"
    assert judge_processes(before, far, gpus=gpus).word == "slower"
    assert judge_processes(far, before, gpus=gpus).word == "faster"


@pytest.mark.parametrize("processes", [1, 5])
def test_what_gpus_differ_by_has_in_it_what_sweeps_are_shifted_by(processes):
    """The GPUs' figures were measured from sweep to sweep: the greater of the two counts, not both."""
    sides = [row(10.0)] * processes, [row(11.0)] * processes
    rounds, sweeps = judge_rounds(*sides), judge_processes(*sides)
    for gpus in (0.001, 0.3):
        found = judge_processes(*sides, gpus=gpus)
        assert found.high == pytest.approx(max(rounds.high * (1 + gpus), sweeps.high))
        assert found.low == pytest.approx(min(rounds.low / (1 + gpus), sweeps.low))


@pytest.mark.parametrize(("num_tokens", "gpus"), [(512, 0.01), (511, 0.03)])
def test_gpus_are_others_of_a_kind_by_their_names_and_uuids(num_tokens, gpus):
    own, other, nameless, h100 = (
        row(num_tokens=num_tokens, **columns)
        for columns in (
            {},
            {"device_uuid": "GPU-2"},
            {"device_uuid": None},
            {"device_uuid": "GPU-3", "device_name": "NVIDIA H100"},
        )
    )
    assert between_gpus([own], [other]) == between_gpus([own, own], [other]) == gpus
    for baseline, candidate in (
        ([own], [own]),
        ([own], [own, other]),
        ([other, own], [own, other]),
        ([own], [nameless]),
        ([own], [h100]),
    ):
        assert between_gpus(baseline, candidate) == 0


def on(uuid, *latencies_us, num_tokens=1024, sweep="1"):
    return [row(us, num_tokens=num_tokens, device_uuid=uuid, **{SWEEP: sweep}) for us in latencies_us]


def test_what_ran_on_several_gpus_is_compared_gpu_by_gpu():
    """GPUs that differ by half do not hide a change of 5 %, and are none, however often each was used."""
    before = on("GPU-1", 10.0, 10.01, 10.02) + on("GPU-2", 15.0, 15.02)
    slower = on("GPU-1", 10.5, 10.51) + on("GPU-2", 15.75, 15.74, 15.76, 15.75)
    equal = on("GPU-1", 10.01) + on("GPU-2", 15.01, 15.02, 15.0, 15.03)
    for judge in (judge_rounds, judge_processes):
        assert judge(before, slower).word == "slower"
        assert judge(before, slower).ratio == pytest.approx(1.05, abs=0.001)
        assert judge(slower, before).word == "faster"
        assert judge(before, equal).word == "same"
    for now in (slower, equal):
        first, second = latencies(before, now)
        assert second / first == pytest.approx(judge_processes(before, now).ratio)


def test_what_one_side_lacks_counts_for_nothing():
    shared = on("GPU-1", 10.0, 10.01, 10.02), on("GPU-1", 10.5, 10.51, 10.52)
    for more in (on("GPU-2", 30.0, 31.0), on("GPU-1", 30.0, 31.0, sweep="2")):
        for sides in ((shared[0] + more, shared[1]), (shared[0], more + shared[1])):
            assert judge_rounds(*sides) == judge_rounds(*shared)
            assert latencies(*sides, in_one_sweep=True) == latencies(*shared, in_one_sweep=True)
    plain = judge_processes(*shared)
    assert judge_processes(shared[0] + on("GPU-2", 30.0), shared[1]) == plain


def test_of_one_process_a_side_those_on_one_gpu_are_compared():
    before, now = on("GPU-1", 10.0) + on("GPU-2", 15.0), on("GPU-2", 15.1) + on("GPU-3", 9.0)
    assert judge_processes(before, now) == judge_processes(before[1:], now[:1])
    assert latencies(before, now) == (15.0, 15.1)


def test_of_several_sweeps_each_counts_once():
    before = on("GPU-1", *[10.0] * 9, sweep="1") + on("GPU-1", 14.4, sweep="2")
    now = on("GPU-1", *[12.0] * 3, sweep="3")
    assert latencies(before, now) == pytest.approx((12.0, 12.0))
    assert judge_processes(before, now).ratio == pytest.approx(1)


def test_sweeps_that_differ_show_by_how_much_sweeps_are_shifted():
    """Five processes agree in each sweep, and the sweeps do not: it takes more sweeps, not more processes."""
    before = [one for name, us in (("1", 10.0), ("2", 10.8)) for one in on("GPU-1", *[us] * 5, sweep=name)]
    now = [one for name, us in (("3", 10.9), ("4", 11.8)) for one in on("GPU-1", *[us] * 5, sweep=name)]
    assert judge_processes(before, now).word == "ambiguous"
    assert judge_processes(before[:5], now[:5]).word == "slower"


def spread(tolerance):
    """The standard deviation of processes of which 95 % of pairs differ by less than the tolerance."""
    return tolerance / (1.96 * math.sqrt(2))


MANY, FEW = 0.02, 0.05
"""By how much 95 % of pairs of processes differ, from 512 tokens on and below."""
H200 = {MANY: 0.0024, FEW: 0.0035}
"""The standard deviation of the processes of a sweep: the root mean square of five sweeps of experiment=gate
on five H200s, those of baselines/nvidia-h200 in git and docs/results/2026-11-29-nvidia-h200."""
CHANGE = {MANY: 1.03, FEW: 1.08}
"""The change that is to be found."""


def draw_normal(chance, tolerance, at):
    return chance.gauss(0, spread(tolerance))


def draw_heavy_tailed(chance, tolerance, at):
    """Student's t of 3 degrees of freedom: 95 % of pairs differ by less than 4.59 of its units."""
    squares = sum(chance.gauss(0, 1) ** 2 for _ in range(3)) / 3
    return tolerance / 4.59 * chance.gauss(0, 1) / math.sqrt(squares)


def draw_bimodal(chance, tolerance, at):
    """One process of four is slower by three quarters of the tolerance."""
    return 0.75 * tolerance * (chance.random() < 0.25) + chance.gauss(0, spread(tolerance) / 4)


def draw_drifting(chance, tolerance, at):
    """From the first round to the last the latency rises by the tolerance."""
    return tolerance * at / 4 + chance.gauss(0, spread(tolerance) / 2)


def draw_quiet(chance, tolerance, at):
    return chance.gauss(0, H200[tolerance])


def side(chance, change, tolerance, draw, *, sweeps, rounds=5, shift=0.0, name=""):
    """The rows of one side: of each sweep its processes, and a shift that they share."""
    size = 512 if tolerance == MANY else 64
    made = []
    for sweep in range(sweeps):
        of_sweep = chance.gauss(0, shift)
        for at in range(rounds):
            us = 10 * change * math.exp(of_sweep + draw(chance, tolerance, at) + chance.gauss(0, 0.001))
            ends = {"latency_us_low": us * 0.998, "latency_us_high": us * 1.002}
            made.append({"latency_us": us, **ends, "num_tokens": size, "device": "cuda:0"})
            made[-1][SWEEP] = f"{name}{sweep}"
    return made


def count_words(change, tolerance, draw=draw_normal, *, in_one_sweep=False, **how):
    """Count the words of 1,000 comparisons."""
    chance = random.Random(0)
    found = Counter()
    for _ in range(1000):
        before = side(chance, 1.0, tolerance, draw, name="a", **how)
        now = side(chance, change, tolerance, draw, name="a" if in_one_sweep else "b", **how)
        found[judge_processes(before, now, in_one_sweep=in_one_sweep).word] += 1
    return found


def check_rates(tolerance, draw=draw_normal, **how):
    """Check docs/comparing.md: of 1,000 equal ones at most 10 are called different, and of 1,000 true changes
    at least 950 are found and at most 10 called the same."""
    equal = count_words(1.0, tolerance, draw, **how)
    assert equal["faster"] + equal["slower"] <= 10
    changed = count_words(CHANGE[tolerance], tolerance, draw, **how)
    assert changed["slower"] >= 950
    assert changed["same"] <= 10
    return equal


@pytest.mark.parametrize(
    ("tolerance", "draw"),
    [
        (MANY, draw_normal),
        (FEW, draw_normal),
        (MANY, draw_heavy_tailed),
        (MANY, draw_bimodal),
        (MANY, draw_drifting),
    ],
)
def test_both_rates_hold_for_five_rounds_of_one_sweep(tolerance, draw):
    assert check_rates(tolerance, draw, sweeps=1, in_one_sweep=True)["same"] >= 900


@pytest.mark.parametrize("tolerance", [MANY, FEW])
def test_both_rates_hold_for_two_sweeps_on_an_h200(tolerance):
    equal = check_rates(tolerance, draw_quiet, sweeps=1, shift=H200[tolerance] / 2)
    assert equal["same"] >= 900


def test_both_rates_hold_for_five_sweeps_a_side_that_are_shifted():
    assert check_rates(MANY, sweeps=5, shift=spread(MANY))["same"] >= 900


@pytest.mark.parametrize(
    ("tolerance", "draw", "rounds", "shift", "in_one_sweep", "found_from"),
    [
        (MANY, draw_normal, 5, 1, False, 1.06),
        (MANY, draw_heavy_tailed, 5, 1, False, 1.07),
        (MANY, draw_bimodal, 5, 1, False, 1.06),
        (MANY, draw_drifting, 5, 1, False, 1.07),
        (FEW, draw_normal, 5, 1, False, 1.16),
        (MANY, draw_normal, 1, 0, True, 1.07),
        (MANY, draw_heavy_tailed, 1, 0, True, 1.07),
        (FEW, draw_normal, 1, 0, True, 1.16),
        (MANY, draw_normal, 1, 1, False, 1.09),
        (FEW, draw_normal, 1, 1, False, 1.25),
    ],
)
def test_one_shifted_sweep_or_one_process_a_side_is_ambiguous_and_not_wrong(
    tolerance, draw, rounds, shift, in_one_sweep, found_from
):
    """docs/comparing.md: there both claims cannot be had, so fewer changes are found, and none is made up."""
    count = partial(
        count_words,
        draw=draw,
        tolerance=tolerance,
        sweeps=1,
        rounds=rounds,
        shift=shift * spread(tolerance),
        in_one_sweep=in_one_sweep,
    )
    equal, changed = count(1.0), count(CHANGE[tolerance])
    assert equal["faster"] + equal["slower"] <= 10
    assert changed["same"] + changed["faster"] <= 10
    assert changed["ambiguous"] >= 400
    assert count(found_from)["slower"] >= 950


def test_a_drift_that_both_sides_of_a_sweep_share_costs_nothing():
    """docs/comparing.md, half of the noise is shared: interleaved rounds of one sweep."""
    chance, found = random.Random(0), {1.0: Counter(), CHANGE[MANY]: Counter()}
    for change, words in found.items():
        for _ in range(1000):
            shared = [chance.gauss(0, spread(MANY)) for _ in range(5)]

            def draw(chance, tolerance, at, shared=shared):
                return math.sqrt(0.5) * (shared[at] + chance.gauss(0, spread(tolerance)))

            sides = (side(chance, factor, MANY, draw, sweeps=1) for factor in (1.0, change))
            words[judge_rounds(*sides).word] += 1
    assert found[1.0]["faster"] + found[1.0]["slower"] <= 10
    assert found[CHANGE[MANY]]["slower"] >= 950


def test_both_rates_hold_for_rounds_on_several_gpus():
    """Eight rounds that hold both sides, on four GPUs which differ by far more than the change."""
    chance, found = random.Random(0), {1.0: Counter(), CHANGE[MANY]: Counter()}
    for change, words in found.items():
        for _ in range(1000):
            levels = [math.exp(chance.gauss(0, 0.05)) for _ in range(4)]
            sides = [side(chance, factor, MANY, draw_normal, sweeps=1, rounds=8) for factor in (1.0, change)]
            for rows in sides:
                for at, each in enumerate(rows):
                    each |= {
                        "latency_us": each["latency_us"] * levels[at % 4],
                        "device_uuid": f"GPU-{at % 4}",
                    }
            words[judge_rounds(*sides).word] += 1
    assert found[1.0]["faster"] + found[1.0]["slower"] <= 10
    assert found[CHANGE[MANY]]["slower"] >= 950


def test_processes_that_agree_by_chance_are_not_trusted_alone():
    assert judge_rounds([row(10.0)] * 3, [row(10.05)] * 3).word != "slower"


# Student's t at 99.75 % (99.5 % of both sides), from a printed table, by degrees of freedom.
STUDENT_T = {8: 3.833, 12: 3.428}


@pytest.mark.parametrize(("num_tokens", "tolerance"), [(512, 0.02), (511, 0.05)])
@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("in_one_sweep", [True, False])
def test_what_was_measured_before_weighs_as_much_as_two_sides_of_three_processes(
    count, num_tokens, tolerance, in_one_sweep
):
    """docs/comparing.md. Two sides of three have 2 + 2 degrees of freedom; processes that agree add nothing
    to the squares, and their own degrees of freedom to those. A sweep is shifted as much as a process is."""
    before, own = 2 * (3 - 1), 2 * (count - 1)
    variance = spread(tolerance) ** 2 * before / (before + own)
    each = 1 / count + (0 if in_one_sweep else 1)
    reach = STUDENT_T[before + own] * math.sqrt(variance * 2 * each)
    sides = ([row(num_tokens=num_tokens)] * count,) * 2
    found = judge_processes(*sides, in_one_sweep=in_one_sweep)
    assert math.log(found.high) == pytest.approx(reach, rel=1e-3)
    assert math.log(found.low) == pytest.approx(-reach, rel=1e-3)
