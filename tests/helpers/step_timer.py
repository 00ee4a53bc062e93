"""A timer of a user's own: its clock moves by the same step with each call."""

from kvexp.op import Call
from kvexp.timer import Timer
from kvexp.timer.replay import Prepare, Replay, Turns
from kvexp.timer.replay_plan import Plan

STEP_US = 3.0


class Steps(Timer):
    """The clock that tests/conf/timer/steps.yaml names."""

    name = "steps"

    def make_replay(self, prepare: Prepare, turns: Turns, plan: Plan, flush_l2: Call | None) -> Replay:
        runs = [prepare(calls) for calls in turns]

        def sample(turn: int) -> float:
            runs[turn]()
            return STEP_US

        return Replay(runs, plan.calls, sample)
