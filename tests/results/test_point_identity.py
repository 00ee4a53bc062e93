import json

import pytest

from kvexp.results.point_identity import identify, select_newest


def test_the_identity_of_a_point_leaves_out_its_outcome_and_its_labels():
    one = {"impl": "torch", "torch": "2.13.0", "impl_hash": "a", "workload": "tiny", "latency_us": 1.0}
    assert identify(one) == identify(one | {"workload": "mine", "latency_us": 2.0, "status": "failed"})
    for column, value in (("impl", "cuda"), ("torch", "2.14.0"), ("impl_hash", "b"), ("num_tokens", 4)):
        assert identify(one) != identify(one | {column: value})


# docs/reliability.md: the implementation's sources, the GPU by name and UUID, the driver, torch and triton.
@pytest.mark.parametrize("column", ["impl_hash", "device_name", "device_uuid", "driver", "torch", "triton"])
def test_a_point_is_another_one_where_its_kernel_gpu_or_software_differs(column):
    one = {column: "the one"}
    assert identify(one) != identify(one | {column: "the other"})
    assert identify(one) != identify(one | {column: None})
    assert select_newest([one, one | {column: "the other"}, one]) == (
        [one] if column == "impl_hash" else [one, one | {column: "the other"}]
    )


TIMER = {"cache": "auto", "inputs": "hot", "warmup": 3, "min_samples": 20, "max_samples": 1000} | {
    "relative_error": 0.005, "max_seconds": 2.0, "own": 1,
}  # fmt: skip


@pytest.mark.parametrize("option", TIMER)
def test_how_long_one_sampled_is_no_part_of_a_points_identity_and_what_was_timed_is(option):
    one, other = ({"timer_options": json.dumps(TIMER | {option: value})} for value in (4, 5))
    tells_apart = option in ("cache", "inputs", "own")
    assert (identify(one) != identify(other)) is tells_apart
    assert select_newest([one, other]) == ([one, other] if tells_apart else [other])


def test_the_newest_of_several_attempts_counts():
    first, other, again = {"status": "failed"}, {"num_tokens": 4}, {"status": "ok"}
    assert select_newest([first, other, again]) == [again, other]


UNNAMED = {"status": "failed", "device": "auto", "mode": "auto", "timer": "auto", "device_name": None}
NAMED = {"device": "cuda:0", "mode": "cudagraph", "timer": "cuda_event", "device_name": "NVIDIA H200"}


@pytest.mark.parametrize("turned", [1, -1])
def test_an_attempt_without_a_device_is_left_out_where_its_point_has_another(turned):
    died, alone, done = UNNAMED, UNNAMED | {"num_tokens": 4}, NAMED
    tries = [died, alone, done][::turned]
    assert select_newest(tries) == [one for one in tries if one is not died]


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_the_requested_name_of_the_device_does_not_matter(device):
    assert select_newest([UNNAMED | {"device": device}, NAMED]) == [NAMED]


@pytest.mark.parametrize(
    "other", [{"device": "cpu"}, {"device": "cuda:1"}, {"mode": "no_graph"}, {"repetition": 2}, {"seed": 1}]
)
def test_an_attempt_without_a_device_is_kept_beside_other_points(other):
    tries = [UNNAMED, NAMED | other]
    assert select_newest(tries) == tries
