import math
import random
import statistics
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from types import SimpleNamespace

import numpy as np
import pytest

from kvexp.bench.mode import prepare
from kvexp.errors import IncorrectResult, Unsupported
from kvexp.statistics import median_standard_error
from kvexp.timer import cuda_event, time_replay, wall_clock
from kvexp.timer.cuda_event import CudaEvent
from kvexp.timer.replay import Replay
from kvexp.timer.replay_plan import ONCE, Plan
from kvexp.timer.stopping_criterion import StoppingCriterion, collect_samples

NEVER = StoppingCriterion(warmup=0, relative_error=0.0, max_seconds=math.inf)
FIVE = StoppingCriterion(warmup=2, min_samples=5, max_samples=5)
EAGERLY = partial(prepare, "no_graph")


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
        return collect_samples(self.sample, rule, self.clock)


def noisy():
    return iter(np.random.default_rng(0).exponential(3.0, 2000).tolist())


class TestTheStoppingRule:
    def test_takes_the_most_samples_when_nothing_else_stops_it(self):
        assert len(Bench(noisy()).collected(NEVER)) == 1000

    def test_stops_as_soon_as_the_median_is_known(self):
        rule = replace(NEVER, relative_error=0.005)
        assert Bench(repeat(3.0)).collected(rule) == (3.0,) * 20

    def test_takes_the_fewest_samples_even_when_the_median_is_known_before(self):
        rule = replace(NEVER, min_samples=23, relative_error=0.5)
        found = Bench(repeat(3.0)).collected(rule)
        # Looked at with every fifth sample.
        assert len(found) == 25

    def test_stops_when_the_error_is_small_enough_and_not_before(self):
        rule = replace(NEVER, min_samples=5, relative_error=0.1)
        found = Bench(noisy()).collected(rule)
        assert 5 < len(found) < 1000
        assert median_standard_error(found) <= 0.1 * statistics.median(found)
        for count in range(5, len(found), 5):
            earlier = found[:count]
            assert median_standard_error(earlier) > 0.1 * statistics.median(earlier)

    def test_honours_the_time_limit(self):
        rule = replace(NEVER, max_seconds=30.0)
        assert len(Bench(noisy()).collected(rule)) == 30

    def test_takes_the_fewest_samples_though_the_time_is_up(self):
        rule = replace(NEVER, max_seconds=2.0)
        assert len(Bench(noisy()).collected(rule)) == 20

    def test_counts_no_time_for_the_warm_up(self):
        rule = replace(NEVER, warmup=50, max_seconds=30.0)
        assert len(Bench(noisy()).collected(rule)) == 30

    def test_throws_the_warm_up_away_and_keeps_every_other_sample(self):
        bench = Bench(noisy())
        rule = replace(NEVER, warmup=3, max_samples=40)
        found = bench.collected(rule)
        assert len(bench.taken) == 43
        assert found == tuple(bench.taken[3:])

    def test_removes_no_outlier(self):
        found = Bench(chain([3.0, 1e6], repeat(3.0))).collected(replace(NEVER, relative_error=0.005))
        assert 1e6 in found

    def test_takes_no_more_than_the_most(self):
        rule = replace(NEVER, min_samples=2, max_samples=2)
        assert len(Bench(noisy()).collected(rule)) == 2


class Numbered:
    """A replay whose samples are numbered, of runs that take turns."""

    def __init__(self, runs=2, flushes_l2=False):
        self.turns, self.host_us = [], []
        self.replay = Replay([lambda: None] * runs, 1, self.sample, self.host_us, flushes_l2)

    def sample(self, turn):
        self.turns.append(turn)
        number = float(len(self.turns) - 1)
        self.host_us.append(10 * number)
        return number


class TestTurns:
    @pytest.mark.parametrize(("runs", "turns", "last"), [(1, [0] * 7, 0), (2, [1, 0, 1, 0, 1, 0, 1], 1)])
    def test_are_taken_by_the_runs_of_a_replay_after_the_first_of_them(self, runs, turns, last):
        bench = Numbered(runs)
        found = time_replay(bench.replay, FIVE)
        assert bench.turns == turns
        assert found.samples_us == (2, 3, 4, 5, 6)
        assert found.last_run == last

    def test_say_which_run_was_last(self):
        for max_samples in (5, 6, 7, 8):
            bench = Numbered()
            criterion = replace(NEVER, min_samples=5, max_samples=max_samples)
            found = time_replay(bench.replay, criterion, lambda run: None)
            assert found.last_run == bench.turns[-1]


class TestAnAudit:
    def audited(self, rule, flushes_l2=False):
        """The number of the sample that was audited before the one behind it was, and what was measured."""
        bench, seen = Numbered(flushes_l2=flushes_l2), []

        def audit(run):
            seen.append(len(bench.turns) - 1)
            assert run == bench.turns[-1]

        found = time_replay(bench.replay, rule, audit)
        assert bench.turns == [1 - number % 2 for number in range(len(bench.turns))]
        number, behind = seen
        assert behind == number + 1
        return number, found

    def test_is_of_any_sample_that_counts(self):
        assert {self.audited(FIVE)[0] for _ in range(300)} == {2, 3, 4, 5, 6}

    def test_is_of_one_that_is_taken_even_if_few_are(self):
        few = StoppingCriterion(warmup=1, min_samples=20, max_samples=3)
        assert {self.audited(few)[0] for _ in range(200)} == {1, 2, 3}

    def test_is_drawn_anew_for_each_point_by_no_seed(self):
        many = StoppingCriterion(warmup=0, min_samples=1000, max_samples=1000)
        drawn = []
        for _ in range(8):
            np.random.seed(0)
            random.seed(0)
            drawn.append(self.audited(many)[0])
        assert len(set(drawn)) > 1

    def test_costs_each_sample_that_comes_after_one(self):
        for _ in range(30):
            number, found = self.audited(FIVE)
            assert found.samples_us == tuple(n for n in range(2, 9) if n not in (number + 1, number + 2))[:5]
            assert found.host_us == 10 * statistics.median(found.samples_us)

    def test_costs_none_where_a_sweep_comes_before_each(self):
        more = StoppingCriterion(warmup=2, min_samples=5, max_samples=6, relative_error=0.0)
        for _ in range(30):
            number, found = self.audited(more, flushes_l2=True)
            assert number in range(2, 7)
            assert found.samples_us == (2, 3, 4, 5, 6, 7)
            assert found.host_us == 45

    def test_ends_what_it_finds_wrong(self):
        def audit(run):
            raise IncorrectResult("the rows are not there")

        bench = Numbered()
        with pytest.raises(IncorrectResult, match="the rows are not there"):
            time_replay(bench.replay, FIVE, audit)
        assert 3 <= len(bench.turns) <= 7


def by_wall_clock(call, calls):
    """A replay of so many calls by the host's clock."""
    timer = wall_clock.WallClock("cpu", "no_graph")
    return timer.make_replay(EAGERLY, [[call] * calls], replace(ONCE, calls=calls), None)


class TestWallClock:
    def test_is_the_host_s_time_of_one_call(self, monkeypatch):
        now = iter(range(1000))
        monkeypatch.setattr(wall_clock.time, "perf_counter", lambda: next(now) * 0.5)
        ran = []
        rule = StoppingCriterion(warmup=2, min_samples=3, max_samples=3)
        found = time_replay(by_wall_clock(lambda: ran.append(1), 10), rule)
        # One step of the clock, half a second, for ten calls.
        assert found.samples_us == (50_000.0,) * 3
        assert found.host_us is None
        assert len(ran) == 5 * 10

    def test_of_more_work_is_longer(self):
        def busy(steps):
            rule = StoppingCriterion(warmup=1, min_samples=5, max_samples=5)
            return time_replay(by_wall_clock(lambda: sum(range(steps)), 1), rule)

        few, many = busy(1000), busy(1_000_000)
        assert len(few.samples_us) == 5
        assert all(sample > 0 for sample in few.samples_us)
        assert min(many.samples_us) > min(few.samples_us)


class Gpu:
    """A GPU that is played: what is queued takes as long as it says, and events tell when it came to them.

    Args:
        early: So many spins, the first ones, end before all that is queued behind them is.
    """

    def __init__(self, early=0):
        self.now_ms = self.host_s = 0.0
        self.early = early
        self.slept = []
        gpu = self

        class Event:
            def __init__(self, enable_timing=False, external=False):
                self.external = external

            def record(self):
                self.at = gpu.now_ms
                gpu.now_ms += 0.005

            def elapsed_time(self, end):
                return end.at - self.at

            def query(self):
                return len(gpu.slept) <= gpu.early

        self.Event = Event

    def _sleep(self, cycles):
        self.slept.append(cycles)

    def synchronize(self):
        self.now_ms += 1.0

    def call(self, us, host_us=0.0):
        """A call that takes so long."""

        def call():
            self.now_ms += us / 1e3
            self.host_s += host_us / 1e6

        return call


@pytest.fixture
def played(monkeypatch):
    """Puts a GPU that is played where torch's would be."""

    def put(gpu):
        monkeypatch.setattr(cuda_event, "torch", SimpleNamespace(cuda=gpu))
        monkeypatch.setattr(cuda_event.time, "perf_counter", lambda: gpu.host_s)
        return gpu

    return put


def by_events(turns, short_calls, flush_l2, prepare=EAGERLY, mode="cudagraph"):
    """A replay of these calls by CUDA events, of which so many are the short series."""
    plan = Plan(len(turns[0]) - short_calls, short_calls, len(turns[0]), "cold", bool(flush_l2))
    return CudaEvent("cuda:0", mode).make_replay(prepare, turns, plan, flush_l2)


class TestCudaEvents:
    RULE = StoppingCriterion(warmup=2, min_samples=3, max_samples=3)

    def test_are_around_the_calls_of_each_series_and_not_around_sweeps(self, played):
        gpu = played(Gpu())
        calls = [gpu.call(us) for us in (4, 2, 3, 3, 8)]
        replay = by_events([calls], 1, gpu.call(90))
        # Four calls take 12 us, the one of the short series 8.
        assert time_replay(replay, self.RULE).samples_us == pytest.approx([(12 - 8) / 3] * 3)
        assert replay.calls == 5
        assert not gpu.slept

    def test_verify_what_they_time(self, played):
        gpu, made = played(Gpu()), []
        calls = [lambda number=number: made.append(number) for number in range(10)]
        turns, sweep = [calls[:5], calls[5:]], lambda: made.append("sweep")
        replay = by_events(turns, 2, sweep)
        for turn, first in ((0, 0), (1, 5)):
            whole = ["sweep", first, first + 1, first + 2, "sweep", first + 3, first + 4]
            made.clear()
            replay.runs[turn]()
            assert made == whole
            replay.sample(turn)
            assert made == 2 * whole
        assert gpu.now_ms > 0

    def test_are_nodes_of_a_graph_that_each_of_its_replays_records(self, played):
        gpu = played(Gpu())
        sequence = []
        by_events([[gpu.call(1)] * 5], 1, None, lambda calls: sequence.extend(calls) or gpu.call(0))
        events = [
            step.__self__ for step in sequence if isinstance(getattr(step, "__self__", None), gpu.Event)
        ]
        assert len(sequence) == 9
        assert len(set(map(id, events))) == 4
        assert all(event.external for event in events)

    def test_of_eager_calls_come_with_the_host_s_time_for_one(self, played):
        gpu = played(Gpu())
        replay = by_events([[gpu.call(3, 7)] * 10], 2, gpu.call(90, 50), mode="no_graph")
        replay.runs[0]()  # as verifying does
        found = time_replay(replay, self.RULE)
        assert found.samples_us == pytest.approx([3] * 3)
        assert found.host_us == pytest.approx(7)
        assert gpu.slept == [cuda_event.FIRST_SPIN_CYCLES] * 5

    def test_of_calls_that_were_not_queued_in_time_are_taken_again_behind_a_longer_spin(self, played):
        gpu, made = played(Gpu(early=2)), []

        def call(turn):
            return lambda: (made.append(turn), gpu.call(3, 7)())

        turns = [[call(turn)] * 10 for turn in (0, 1)]
        replay = by_events(turns, 2, None, mode="no_graph")
        assert replay.sample(1) == pytest.approx(3)
        # The other run comes between: the calls are to find in their slots what that one has written.
        assert made[::10] == [1, 0, 1, 0, 1]
        assert replay.host_us == pytest.approx([7])
        assert gpu.slept == [cuda_event.FIRST_SPIN_CYCLES * factor for factor in (1, 2, 4)]

    def test_refuse_a_call_that_can_never_be_queued(self, played):
        gpu = played(Gpu(early=math.inf))
        replay = by_events([[gpu.call(3)] * 10], 2, None, mode="no_graph")
        with pytest.raises(
            Unsupported, match="the call waits for the GPU, so timer=cuda_event cannot queue it"
        ):
            replay.sample(0)
        assert max(gpu.slept) <= cuda_event.LAST_SPIN_CYCLES
