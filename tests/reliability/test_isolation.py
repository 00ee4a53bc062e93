"""A crash, a hang or a lack of memory costs its curve, and the sweep tells how to repeat it."""

import shlex

import pytest

pytestmark = pytest.mark.long

SMALL = (
    *("workload=tiny", "workload.num_tokens=[1,16]", "timer=none", "device=cpu", "tracking=none"),
    *("--config-dir", "my_conf"),
)


def statuses(place):
    found = {}
    for row in place.rows():
        found.setdefault(row["impl"], []).append(row["status"])
    return found


def test_a_hang_a_crash_or_no_memory_costs_the_points_that_have_it_and_each_has_its_command(place, typed):
    done = typed("impl=hanging,stubborn,greedy,torch,deadly,idle", "timeout_s=2", *SMALL)
    assert done.returncode == 1
    half, right = ["verified", "failed"], ["verified"] * 2
    assert statuses(place) == {
        **dict.fromkeys(("hanging", "stubborn", "greedy", "deadly"), half),
        "torch": right,
        "idle": ["incorrect"] * 2,
    }
    reasons = {row["impl"]: row["reason"] for row in place.rows() if row["num_tokens"] == 16}
    for impl in ("hanging", "stubborn"):
        assert reasons[impl].startswith("the point did not end within 2 s, so its process was killed")
        assert ("faulty_impls.py" in reasons[impl]) == (impl == "hanging")
    assert "memory" in reasons["greedy"]

    lines = done.stderr.splitlines()
    start = lines.index("5 of 6 curves went wrong; each command repeats one:")
    assert lines[start + 7] == "  deadly: 1 failed (num_tokens 16)"
    assert lines[start + 9] == "  idle: 2 incorrect (num_tokens 1, 16)"
    again = shlex.split(lines[start + 10])
    assert again[:3] == ["python", "-m", "kvexp"]
    assert typed(*again[3:]).returncode == 1
    assert [(row["impl"], row["status"]) for row in place.rows()[-2:]] == [("idle", "incorrect")] * 2


def test_fail_fast_ends_the_sweep_at_the_first_wrong_point(place, typed):
    done = typed("impl=torch,greedy,idle", "fail_fast=true", "isolation=inline", *SMALL)
    assert done.returncode == 1
    assert statuses(place) == {"torch": ["verified"] * 2, "greedy": ["verified", "failed"]}
    assert "fail_fast=true ended the sweep there; 2 points were not tried" in done.stderr


def test_inline_measures_in_the_process_that_was_typed(place, typed):
    done = place.run("impl=deadly,torch", "isolation=inline", *SMALL)
    # Deadly ends its process, and there is only one.
    assert done.returncode == 7
    assert statuses(place) == {"deadly": ["verified"]}
    assert typed("impl=torch,greedy", "isolation=inline", "resume=true", *SMALL).returncode == 1
    assert statuses(place) == {
        "deadly": ["verified"],
        "torch": ["verified"] * 2,
        "greedy": ["verified", "failed"],
    }
