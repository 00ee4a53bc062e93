from dataclasses import replace
from itertools import product

import pytest

from kvexp.errors import Unsupported
from kvexp.timer.replay_plan import (
    COLD_FACTOR,
    FEWEST_CALLS,
    FEWEST_LONG_CALLS,
    GPU_REPLAY_US,
    MOST_EAGER_CALLS,
    MOST_GRAPH_CALLS,
    ONCE,
    TURNS,
    Plan,
    plan_on_cpu,
    plan_on_gpu,
)

L2 = [0, 50 << 20, 60 << 20, 126 << 20]
TOKENS = [1, 2, 7, 64, 512, 4096, 65536]
SLOTS = [1, 16, 4096, 131072, 1 << 20]
ROW_BYTES = [4, 512, 4096, 65536]


def cases():
    for tokens, slots, row, l2, graph in product(TOKENS, SLOTS, ROW_BYTES, L2, (True, False)):
        if tokens <= slots:
            written = tokens * row
            plan = plan_on_gpu(slots // tokens, 2 * written + 8 * tokens, written, l2, graph)
            yield tokens, slots, written, l2, graph, plan


DISTINCT = [*range(1, 13), 15, 16, 17, 20, 21, 25, 100, 333, 1000, 2400, 2499, 2500, 2501, 131072]
WRITTEN = [4, 4096, 1 << 20, 8 << 20, 40 << 20, 130 << 20, 2 << 30]
READ = [1, 2, 4]
"""Bytes read for each that is written: of a copy, and of a conversion to fp8."""


def states():
    """Plans of every state of the L2, for either clock of a GPU, with the bytes that a call moves."""
    chosen = product(DISTINCT, WRITTEN, READ, (L2[1], L2[3]), (True, False), ("auto", "hot"), ("hot", "cold"))
    for distinct, written, reads, l2, graph, cache, inputs in chosen:
        read = reads * written + 8
        plan = plan_on_gpu(distinct, read + written, written, l2, graph, cache, inputs)
        for each in (plan, plan.without_short_calls()):
            yield written, read, l2, each


def series(plan, turn):
    """The calls of each series of a run; the L2 is swept before each."""
    walked = plan.walk(turn)
    return [part for part in (walked[: plan.calls], walked[plan.calls :]) if part]


def nearest(visited):
    """After how many calls, at the least, one comes that visits the same; None where none does."""
    last, found = {}, None
    for call, what in enumerate(visited):
        if what in last:
            found = min(found or call, call - last[what])
        last[what] = call
    return found


def assert_takes_turns(plan):
    """Each call finds in its slots another window than its own, but where nobody has written yet."""
    held = {}
    for turn in (0, 1, 0, 1):
        for mapping, window in plan.walk(turn):
            assert 0 <= mapping < plan.mappings
            assert 0 <= window < plan.windows
            assert held.get(mapping) != window, plan
            held[mapping] = window
        assert [held[mapping] for mapping in range(plan.mappings)] == plan.last_windows(turn)
    assert not any(a == b for a, b in zip(plan.last_windows(0), plan.last_windows(1), strict=True))


class TestEveryCallFindsOtherBytesThanItsOwn:
    """The runs of a replay take turns, so that no call is right that leaves its slots as they are."""

    def test_of_what_is_verified_alone(self):
        assert_takes_turns(ONCE)

    def test_on_a_gpu(self):
        assert TURNS == 2
        for plan in {plan for *_, plan in cases()}:
            assert_takes_turns(plan)

    def test_on_a_gpu_in_every_state_of_its_l2(self):
        for plan in {plan for *_, plan in states()}:
            assert_takes_turns(plan)

    def test_on_a_cpu(self):
        for distinct, moved in product(DISTINCT, (0, 1000, 10**6, 10**12)):
            assert_takes_turns(plan_on_cpu(distinct, moved))

    @pytest.mark.parametrize("windows", [2, 4, 6, 76])
    @pytest.mark.parametrize("mappings", [1, 2, 3, 4, 6, 76])
    @pytest.mark.parametrize("visits", [1, 3, 5])
    def test_however_many_mappings_windows_and_visits_there_are(self, mappings, windows, visits):
        assert_takes_turns(Plan(mappings * visits, 0, mappings, "cold", True, windows, "cold"))


def test_verifying_takes_one_call():
    assert (ONCE.calls, ONCE.short_calls, ONCE.mappings, ONCE.flush_l2) == (1, 0, 1, False)


class TestOnAGpu:
    def test_slots_of_all_mappings_fit_the_cache(self):
        for tokens, slots, *_, plan in cases():
            assert tokens <= plan.mappings * tokens <= slots

    def test_each_call_has_slots_of_its_own_where_the_cache_has_them_for_more_than_are_wanted(self):
        plan = plan_on_gpu(2501, 8200, 4096, 60 << 20, graph=True)
        assert (plan.all_calls, plan.mappings, plan.cache_state) == (2500, 2500, "cold")

    @pytest.mark.parametrize("distinct", [5, 16, 1000, 2500])
    def test_not_all_slots_are_written(self, distinct):
        """What each call writes past its own the next one would hide, and the last one's nobody would see."""
        plan = plan_on_gpu(distinct, 8200, 4096, 60 << 20, graph=True)
        assert (plan.all_calls, plan.mappings, plan.cache_state) == (distinct - 1, distinct - 1, "cold")

    def test_all_slots_are_written_where_the_state_of_the_l2_takes_all_of_them_alone(self):
        for distinct, written, l2, graph in product(DISTINCT, WRITTEN, L2[1:], (True, False)):
            plan = plan_on_gpu(distinct, 2 * written, written, l2, graph)
            assert plan.mappings <= distinct
            if plan.mappings == distinct > 1:
                assert distinct <= max(FEWEST_CALLS, COLD_FACTOR * l2 // written + 1)

    def test_a_replay_is_long_enough_for_a_difference_and_short_enough_to_queue(self):
        for *_, graph, plan in cases():
            assert FEWEST_LONG_CALLS <= plan.calls <= (MOST_GRAPH_CALLS if graph else MOST_EAGER_CALLS)
            assert plan.all_calls <= 1.25 * (MOST_GRAPH_CALLS if graph else MOST_EAGER_CALLS)
            assert 1 <= plan.short_calls < plan.calls
            assert plan.mappings <= plan.all_calls

    def test_cold_slots_and_cold_rows_occur_again_only_after_more_than_twice_the_l2(self):
        again = {"slots": 0, "rows": 0}
        for written, read, l2, plan in states():
            for calls in series(plan, 0) + series(plan, 1):
                if plan.cache_state == "cold" and (apart := nearest(mapping for mapping, _ in calls)):
                    assert apart * written > COLD_FACTOR * l2, plan
                    again["slots"] += 1
                if plan.inputs_state == "cold" and (apart := nearest(window for _, window in calls)):
                    assert apart * read > COLD_FACTOR * l2, plan
                    again["rows"] += 1
        assert min(again.values()) > 100

    def test_a_cache_of_enough_slots_is_never_measured_warm(self):
        for tokens, slots, *_, plan in cases():
            if slots // tokens >= FEWEST_CALLS:
                assert plan.cache_state == "cold"

    def test_cold_slots_that_cannot_be_are_refused_when_they_are_asked_for(self):
        with pytest.raises(Unsupported) as raised:
            plan_on_gpu(1, 2 << 20, 1 << 20, 60 << 20, graph=True, cache="cold")
        assert str(raised.value) == (
            "timer.cache=cold needs slots for 4 calls that share none, and the cache has them for 1; "
            "take more workload.num_blocks or timer.cache=hot"
        )
        assert plan_on_gpu(4, 2 << 20, 1 << 20, 60 << 20, graph=True, cache="cold").cache_state == "cold"

    def test_hot_slots_are_the_same_in_every_call_and_stay_in_the_l2(self):
        plan = plan_on_gpu(1000, 2 << 20, 1 << 20, 60 << 20, graph=True, cache="hot")
        assert (plan.cache_state, plan.mappings, plan.flush_l2) == ("hot", 1, False)
        assert plan.calls >= FEWEST_CALLS

    def test_cold_slots_and_cold_inputs_are_evicted_before_each_series(self):
        for *_, plan in states():
            assert plan.flush_l2 == ("cold" in (plan.cache_state, plan.inputs_state))

    def test_windows_are_two_at_least_and_even_in_number(self):
        for *_, plan in states():
            assert plan.windows % 2 == 0
            assert plan.windows >= 2
            assert plan.inputs_state == "cold" or plan.windows == 2

    @pytest.mark.parametrize(
        ("mappings", "windows", "calls", "walked"),
        [
            (5, 2, 5, [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]),
            (1, 2, 3, [(0, 0), (0, 1), (0, 0)]),
            (3, 2, 9, [(0, 0), (1, 1), (2, 0), (0, 1), (1, 0), (2, 1), (0, 0), (1, 1), (2, 0)]),
            # A window is left out where the mappings begin anew.
            (2, 2, 6, [(0, 0), (1, 1), (0, 1), (1, 0), (0, 0), (1, 1)]),
            (4, 4, 12, [*enumerate((0, 1, 2, 3)), *enumerate((1, 2, 3, 0)), *enumerate((2, 3, 0, 1))]),
        ],
    )
    def test_calls_walk_through_inputs_and_slots_in_turn(self, mappings, windows, calls, walked):
        plan = Plan(calls, 0, mappings, "cold", True, windows, "cold")
        assert plan.walk(0) == walked
        assert plan.walk(1) == [(mapping, (window + 1) % windows) for mapping, window in walked]
        assert plan.last_windows(0) == [dict(walked)[mapping] for mapping in range(mappings)]

    def test_the_short_series_goes_on_where_the_long_one_ends(self):
        plan = Plan(7, 2, 3, "cold", True, 4, "cold")
        assert plan.walk(1) == replace(plan, calls=9, short_calls=0).walk(1)

    def test_a_cache_of_too_few_slots_says_that_it_is_warm(self):
        plan = plan_on_gpu(1, 2 << 20, 1 << 20, 60 << 20, graph=True)
        assert (plan.cache_state, plan.mappings, plan.flush_l2) == ("warm", 1, False)

    def test_many_tokens_walk_through_the_whole_seed_cache_or_past_the_l2(self):
        written = 65536 * 128 * 128 * 2 * 2
        plan = plan_on_gpu(16, 2 * written, written, 60 << 20, graph=True)
        assert (plan.calls, plan.short_calls, plan.mappings, plan.cache_state) == (2, 1, 3, "cold")

    def test_only_calls_that_are_long_themselves_are_few(self):
        for *_, written, _, _, plan in cases():
            if plan.all_calls < FEWEST_CALLS:
                assert plan.all_calls * (1.0 + 2 * written / 3e6) >= 0.9 * GPU_REPLAY_US

    def test_one_token_makes_as_many_calls_as_a_series_of_a_graph_may_hold(self):
        plan = plan_on_gpu(131072, 8200, 4096, 60 << 20, graph=True)
        assert (plan.calls, plan.short_calls, plan.mappings) == (2000, 500, 2500)

    def test_the_long_series_alone_has_as_many_mappings_as_it_walks_through(self):
        plan = plan_on_gpu(131072, 8200, 4096, 60 << 20, graph=True).without_short_calls()
        assert (plan.calls, plan.all_calls, plan.mappings) == (2000, 2000, 2000)

    def test_the_long_series_alone_is_never_one_call(self):
        for *_, plan in states():
            assert plan.calls >= FEWEST_LONG_CALLS

    def test_an_eager_replay_fits_the_launch_queue(self):
        plan = plan_on_gpu(131072, 8200, 4096, 60 << 20, graph=False)
        assert (plan.calls, plan.short_calls, plan.mappings) == (16, 4, 20)


class TestOnACpu:
    @pytest.mark.parametrize(("num_tokens", "num_slots"), [(t, s) for t in TOKENS for s in SLOTS if t <= s])
    @pytest.mark.parametrize("bytes_moved", [0, 1000, 10**6, 10**12])
    def test_calls_are_few_and_their_slots_fit_the_cache(self, num_tokens, num_slots, bytes_moved):
        plan = plan_on_cpu(num_slots // num_tokens, bytes_moved)
        assert 1 <= plan.mappings <= plan.calls <= MOST_EAGER_CALLS
        assert plan.mappings * num_tokens <= num_slots
        assert (plan.short_calls, plan.cache_state, plan.flush_l2) == (0, None, False)

    def test_a_long_call_is_timed_alone(self):
        assert plan_on_cpu(128, 10**9).calls == 1

    def test_short_calls_are_timed_together(self):
        assert plan_on_cpu(65536, 0).calls == 16

    def test_slots_are_visited_an_odd_number_of_times(self):
        """Visited twice, a mapping would hold the same rows after either turn."""
        assert (plan_on_cpu(7, 0).calls, plan_on_cpu(7, 0).mappings) == (6, 6)
        assert (plan_on_cpu(6, 0).calls, plan_on_cpu(6, 0).mappings) == (15, 5)


MIB = 1 << 20


class TestColdIsMoreThanTwiceTheL2:
    """docs/measuring.md, with an L2 so large that it alone says how many calls there are."""

    def test_written_in_a_series(self):
        plan = plan_on_gpu(10_000, 8 * MIB, 4 * MIB, 1000 * MIB, graph=True)
        assert plan.cache_state == "cold"
        assert plan.calls * 4 > 2 * 1000 >= (plan.calls - 1) * 4

    def test_read_before_inputs_come_again(self):
        plan = plan_on_gpu(10_000, 8 * MIB, 4 * MIB, 1000 * MIB, graph=True, inputs="cold")
        assert plan.inputs_state == "cold"
        assert plan.windows * 4 > 2 * 1000 >= (plan.windows - 2) * 4
