from itertools import cycle, islice, product

import pytest

from kvexp.errors import Unsupported
from kvexp.replicas import (
    COLD_FACTOR,
    FEWEST_CALLS,
    FEWEST_LONG_CALLS,
    GPU_REPLAY_US,
    MOST_EAGER_CALLS,
    MOST_GRAPH_CALLS,
    ONCE,
    Plan,
    cpu_plan,
    gpu_plan,
)

L2 = [0, 50 << 20, 60 << 20, 126 << 20]
TOKENS = [1, 2, 7, 64, 512, 4096, 65536]
SLOTS = [1, 16, 4096, 131072, 1 << 20]
ROW_BYTES = [4, 512, 4096, 65536]


def cases():
    for tokens, slots, row, l2, graph in product(TOKENS, SLOTS, ROW_BYTES, L2, (True, False)):
        if tokens <= slots:
            written = tokens * row
            plan = gpu_plan(slots // tokens, 2 * written + 8 * tokens, written, l2, graph)
            yield tokens, slots, written, l2, graph, plan


def test_verifying_takes_one_call():
    assert (ONCE.calls, ONCE.short_calls, ONCE.mappings, ONCE.evict) == (1, 0, 1, False)


class TestOnAGpu:
    def test_slots_of_all_mappings_fit_the_cache(self):
        for tokens, slots, *_, plan in cases():
            assert tokens <= plan.mappings * tokens <= slots

    def test_each_call_has_slots_of_its_own_where_the_cache_has_more_than_all_of_them_take(self):
        seen = set()
        for tokens, slots, *_, plan in cases():
            distinct = slots // tokens
            seen.add(distinct > plan.all_calls)
            assert (plan.mappings == plan.all_calls) == (distinct > plan.all_calls)
        assert seen == {True, False}

    def test_not_all_slots_are_written_by_one_call_each(self):
        """What each call writes past its own would be hidden by the next one."""
        plan = gpu_plan(2500, 8200, 4096, 60 << 20, graph=True)
        assert (plan.all_calls, plan.mappings, plan.cache_state) == (2500, 2499, "cold")

    def test_a_replay_is_long_enough_for_a_difference_and_short_enough_to_queue(self):
        for *_, graph, plan in cases():
            assert FEWEST_LONG_CALLS <= plan.calls <= (MOST_GRAPH_CALLS if graph else MOST_EAGER_CALLS)
            assert 1 <= plan.short_calls < plan.calls
            assert plan.mappings <= plan.all_calls

    def test_cold_slots_are_evicted_before_each_series(self):
        for *_, plan in cases():
            assert plan.evict == (plan.cache_state == "cold")

    def test_a_cold_slot_occurs_again_only_after_more_than_twice_the_l2(self):
        for _, _, written, l2, _, plan in cases():
            if plan.cache_state == "cold" and plan.mappings < plan.calls:
                assert plan.mappings * written > COLD_FACTOR * l2

    def test_a_cache_of_enough_slots_is_never_measured_warm(self):
        for tokens, slots, *_, plan in cases():
            if slots // tokens >= FEWEST_CALLS:
                assert plan.cache_state == "cold"

    def test_cold_slots_that_cannot_be_are_refused_when_they_are_asked_for(self):
        with pytest.raises(Unsupported) as raised:
            gpu_plan(1, 2 << 20, 1 << 20, 60 << 20, graph=True, cache="cold")
        assert str(raised.value) == (
            "timer.cache=cold needs slots for 4 calls that share none, and the cache has them for 1; "
            "take more workload.num_blocks or timer.cache=hot"
        )
        assert gpu_plan(4, 2 << 20, 1 << 20, 60 << 20, graph=True, cache="cold").cache_state == "cold"

    def test_hot_slots_are_the_same_in_every_call_and_stay_in_the_l2(self):
        plan = gpu_plan(1000, 2 << 20, 1 << 20, 60 << 20, graph=True, cache="hot")
        assert (plan.cache_state, plan.mappings, plan.evict) == ("hot", 1, False)
        assert plan.calls >= FEWEST_CALLS

    @pytest.mark.parametrize("cache", ["auto", "hot"])
    def test_cold_inputs_are_evicted_before_each_series_or_by_one_another(self, cache):
        for tokens, slots, row, l2 in product(TOKENS, SLOTS, ROW_BYTES, L2):
            if tokens > slots:
                continue
            written = tokens * row
            read = written + 8 * tokens
            plan = gpu_plan(slots // tokens, read + written, written, l2, True, cache, "cold")
            assert plan.inputs_state == "cold"
            assert plan.evict
            assert 1 <= plan.windows <= plan.calls
            if plan.windows < plan.calls:
                assert plan.windows * read > COLD_FACTOR * l2

    @pytest.mark.parametrize(("mappings", "windows"), [(64, 15), (15, 64), (76, 76), (76, 1), (5, 3)])
    def test_calls_walk_through_inputs_and_slots_in_turn_wherever_those_begin_anew(self, mappings, windows):
        plan = Plan(61, 15, mappings, "cold", True, windows, "cold")
        walked = list(islice(cycle(plan.walk()), plan.all_calls))
        assert walked == [(call % mappings, call % windows) for call in range(76)]

    def test_hot_inputs_are_one_call_s(self):
        assert {(plan.windows, plan.inputs_state) for *_, plan in cases()} == {(1, "hot")}

    @pytest.mark.parametrize(("mappings", "windows"), [(1, 1), (6, 1), (1, 6), (6, 4), (4, 6), (5, 5)])
    @pytest.mark.parametrize(("calls", "short_calls"), [(1, 0), (3, 0), (3, 1), (6, 0), (8, 9), (17, 0)])
    def test_the_last_call_on_a_mapping_says_whose_rows_it_holds(self, mappings, windows, calls, short_calls):
        plan = Plan(calls, short_calls, mappings, "cold", True, windows, "cold")
        held = {}
        for call in range(calls + short_calls):
            held[call % mappings] = call % windows
        assert plan.last_windows() == [held[mapping] for mapping in sorted(held)]

    def test_a_cache_of_too_few_slots_says_that_it_is_warm(self):
        plan = gpu_plan(1, 2 << 20, 1 << 20, 60 << 20, graph=True)
        assert (plan.cache_state, plan.mappings, plan.evict) == ("warm", 1, False)

    def test_many_tokens_walk_through_the_whole_seed_cache_or_past_the_l2(self):
        written = 65536 * 128 * 128 * 2 * 2
        plan = gpu_plan(16, 2 * written, written, 60 << 20, graph=True)
        assert (plan.calls, plan.short_calls, plan.mappings, plan.cache_state) == (2, 1, 3, "cold")

    def test_only_calls_that_are_long_themselves_are_few(self):
        for *_, written, _, _, plan in cases():
            if plan.calls < FEWEST_CALLS:
                assert plan.calls * (1.0 + 2 * written / 3e6) >= 0.9 * GPU_REPLAY_US

    def test_one_token_makes_as_many_calls_as_a_series_of_a_graph_may_hold(self):
        plan = gpu_plan(131072, 8200, 4096, 60 << 20, graph=True)
        assert (plan.calls, plan.short_calls, plan.mappings) == (2000, 500, 2500)

    def test_the_long_series_alone_has_as_many_mappings_as_it_walks_through(self):
        plan = gpu_plan(131072, 8200, 4096, 60 << 20, graph=True).without_short_calls()
        assert (plan.calls, plan.all_calls, plan.mappings) == (2000, 2000, 2000)

    def test_an_eager_replay_fits_the_launch_queue(self):
        plan = gpu_plan(131072, 8200, 4096, 60 << 20, graph=False)
        assert (plan.calls, plan.short_calls, plan.mappings) == (16, 4, 20)


class TestOnACpu:
    @pytest.mark.parametrize(("num_tokens", "num_slots"), [(t, s) for t in TOKENS for s in SLOTS if t <= s])
    @pytest.mark.parametrize("bytes_moved", [0, 1000, 10**6, 10**12])
    def test_calls_are_few_and_their_slots_fit_the_cache(self, num_tokens, num_slots, bytes_moved):
        plan = cpu_plan(num_slots // num_tokens, bytes_moved)
        assert 1 <= plan.mappings <= plan.calls <= MOST_EAGER_CALLS
        assert plan.mappings * num_tokens <= num_slots
        assert (plan.short_calls, plan.cache_state, plan.evict) == (0, None, False)

    def test_a_long_call_is_timed_alone(self):
        assert cpu_plan(128, 10**9).calls == 1

    def test_short_calls_are_timed_together(self):
        assert cpu_plan(65536, 0).calls == 16


MIB = 1 << 20


class TestColdIsMoreThanTwiceTheL2:
    """docs/measuring.md, with an L2 so large that it alone says how many calls there are."""

    def test_written_in_a_series(self):
        plan = gpu_plan(10_000, 8 * MIB, 4 * MIB, 1000 * MIB, graph=True)
        assert plan.cache_state == "cold"
        assert plan.calls * 4 > 2 * 1000 >= (plan.calls - 1) * 4

    def test_read_before_inputs_come_again(self):
        plan = gpu_plan(10_000, 8 * MIB, 4 * MIB, 1000 * MIB, graph=True, inputs="cold")
        assert plan.inputs_state == "cold"
        assert plan.windows * 4 > 2 * 1000 >= (plan.windows - 2) * 4
