"""A crash, a hang or a lack of memory costs its curve, and the sweep tells how to repeat it."""

import shlex

import pytest

pytestmark = pytest.mark.long

SMALL = ("workload=tiny", "timer=none", "device=cpu", "tracking=none", "--config-dir", "my_conf")


def statuses(place):
    found = {}
    for row in place.rows():
        found.setdefault(row["impl"], []).append(row["status"])
    return found


def test_a_hang_ends_its_curve_with_where_it_was_and_the_next_one_is_measured(place):
    done = place.run("impl=hanging,stubborn,torch", "timeout_s=2", *SMALL)
    assert done.returncode == 1
    half = ["verified", "verified", "failed", "failed"]
    assert statuses(place) == {"hanging": half, "stubborn": half, "torch": ["verified"] * 4}
    for impl in ("hanging", "stubborn"):
        reasons = [row["reason"] for row in place.rows() if (row["impl"], row["status"]) == (impl, "failed")]
        assert reasons[0].startswith("the point did not end within 2 s, so its process was killed")
        assert ("faulty_impls.py" in reasons[0]) == (impl == "hanging")


def test_memory_that_is_not_there_is_a_failed_point_and_the_process_goes_on(place):
    assert place.run("impl=greedy,torch", *SMALL).returncode == 1
    assert statuses(place) == {
        "greedy": ["verified", "verified", "failed", "failed"],
        "torch": ["verified"] * 4,
    }
    assert "memory" in place.rows()[3]["reason"]


def test_every_failure_is_listed_with_the_command_that_repeats_it(place):
    done = place.run("experiment=quickstart", "impl=deadly,torch,idle", "layout=HND", *SMALL)
    lines = done.stderr.splitlines()
    start = lines.index("2 of 3 curves went wrong; each command repeats one:")
    assert lines[start + 1] == "  deadly HND bfloat16: 2 failed (num_tokens 16, 50)"
    assert lines[start + 3] == "  idle HND bfloat16: 4 incorrect (num_tokens 1, 3, 16, 50)"
    again = shlex.split(lines[start + 2])
    assert again[:3] == ["python", "-m", "kvexp"]
    repeated = place.run(*again[3:])
    assert repeated.returncode == 1
    first, second = (place.rows()[:4], place.rows()[-4:])
    assert [row["status"] for row in second] == ["verified", "verified", "failed", "failed"]
    assert [row["impl"] for row in second] == [row["impl"] for row in first] == ["deadly"] * 4


def test_fail_fast_ends_the_sweep_at_the_first_wrong_point(place):
    done = place.run("impl=torch,deadly,idle", "fail_fast=true", *SMALL)
    assert done.returncode == 1
    assert statuses(place) == {"torch": ["verified"] * 4, "deadly": ["verified", "verified", "failed"]}
    assert "fail_fast=true ended the sweep there; 5 points were not tried" in done.stderr


def test_inline_measures_in_the_process_that_was_typed(place):
    done = place.run("impl=deadly,torch", "isolation=inline", *SMALL)
    # Deadly ends its process, and there is only one.
    assert done.returncode == 7
    assert statuses(place) == {"deadly": ["verified", "verified"]}
    assert place.run("impl=torch,greedy", "isolation=inline", "resume=true", *SMALL).returncode == 1
    assert statuses(place) == {
        "deadly": ["verified", "verified"],
        "torch": ["verified"] * 4,
        "greedy": ["verified", "verified", "failed", "failed"],
    }
