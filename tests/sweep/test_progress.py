import io

import pytest
from rich.console import Console

from kvexp.sweep.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def ok(num_tokens, latency_us=1.2567):
    return {"status": "ok", "num_tokens": num_tokens, "latency_us": latency_us}


def skipped(num_tokens):
    return {"status": "skipped", "num_tokens": num_tokens, "latency_us": None}


def pipe():
    return Console(file=io.StringIO(), width=80)


def terminal():
    return Console(file=io.StringIO(), width=80, force_terminal=True, _environ={"TERM": "xterm-256color"})


def test_a_pipe_gets_one_plain_line_for_each_finished_curve(clock):
    console = pipe()
    with Progress(4, console, clock) as progress:
        one = progress.start_curve("cuda HND [half]")
        one.advance(ok(2))
        clock.now += 7
        one.advance(ok(4))
        one.finish()
        other = progress.start_curve("cuda NHD")
        other.advance(ok(2))
        other.advance(skipped(4))
    assert console.file.getvalue().splitlines() == [
        "2/4  cuda HND [half]: 2 ok in 0:07",
        "4/4  cuda NHD: 1 ok, 1 skipped in 0:00",
        "4/4 points in 0:07",
    ]


def test_curves_that_are_measured_at_the_same_time_have_counts_of_their_own(clock):
    console = pipe()
    with Progress(4, console, clock) as progress:
        one, other = progress.start_curve("on GPU 0"), progress.start_curve("on GPU 1")
        one.advance(ok(2))
        other.advance(skipped(2))
        clock.now += 7
        other.advance(ok(4))
        other.finish()
        one.advance(ok(4))
    assert console.file.getvalue().splitlines() == [
        "3/4  on GPU 1: 1 ok, 1 skipped in 0:07",
        "4/4  on GPU 0: 2 ok in 0:07",
        "4/4 points in 0:07",
    ]


def test_a_terminal_sees_points_curve_and_last_latency(clock):
    console = terminal()
    with Progress(16, console, clock) as progress:
        curve = progress.start_curve("cuda HND")
        clock.now += 61
        curve.advance(ok(2))
        drawn = console.file.getvalue()
    assert "1/16  cuda HND  num_tokens 2: 1.26 µs  1:01" in drawn
    assert "left" not in drawn


def test_the_terminals_line_never_wraps(clock):
    console = terminal()
    with Progress(16, console, clock) as progress:
        progress.start_curve("x" * 200)
        assert "\n" not in console.file.getvalue()


def test_nothing_is_drawn_between_updates(clock):
    console = terminal()
    with Progress(16, console, clock) as progress:
        progress.start_curve("cuda HND")
        assert progress._live is not None
        assert progress._live._refresh_thread is None


def test_no_estimate_before_three_points_and_a_second(clock):
    progress = Progress(10, pipe(), clock)
    curve = progress.start_curve("cuda HND")
    for num_tokens in (2, 4):
        clock.now += 10
        curve.advance(ok(num_tokens))
        assert progress.seconds_left() is None


def test_the_estimate_leaves_the_first_points_start_up_out(clock):
    progress = Progress(10, pipe(), clock)
    curve = progress.start_curve("cuda HND")
    clock.now += 60
    for num_tokens in (2, 4, 8):
        curve.advance(ok(num_tokens))
        clock.now += 2
    # Three points, two intervals, six seconds since the first.
    assert progress.seconds_left() == pytest.approx(6 / 2 * 7)


def test_skipped_points_teach_nothing_about_the_speed(clock):
    progress = Progress(10, pipe(), clock)
    curve = progress.start_curve("cuda HND")
    for num_tokens in (2, 4, 8):
        clock.now += 1
        curve.advance(skipped(num_tokens))
    assert progress.seconds_left() is None


def test_an_error_inside_leaves_the_count_of_what_was_done(clock):
    console = pipe()

    def interrupted():
        with Progress(4, console, clock) as progress:
            progress.start_curve("cuda HND").advance(ok(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert console.file.getvalue().endswith("1/4 points in 0:00\n")
