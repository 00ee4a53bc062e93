"""Verify, and read no clock (timer=none)."""

from kvexp.timer import Timer


class NoTimer(Timer):
    """Leave each point untimed."""

    name = "none"
    untimed = "timer=none: not timed"
