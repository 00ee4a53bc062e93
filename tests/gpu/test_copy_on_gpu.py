"""impl=copy on a GPU: the equal copy's kernel is checked byte for byte, and is as fast as beside an op."""

import pytest

from kvexp.bench import environment, equal_copy, run_curve
from tests.helpers import compose

pytestmark = pytest.mark.alone

TOKENS = "workload.num_tokens=[1,3,64,1024]"


def measured(*overrides, workload="quickstart", tokens=TOKENS):
    made = compose.experiment("timer.max_seconds=0.3", f"workload={workload}", tokens, *overrides)
    return list(run_curve.run(made.resolve("cuda:0"), environment.read("cuda:0")))


@pytest.mark.parametrize(
    "chosen",
    [
        "mode=cudagraph",
        "mode=no_graph",
        "timer.cache=hot",
        "timer.inputs=cold",
        "timer=wall_clock",
        "dtype=float kv_cache_dtype=fp8",
        "kv_cache_dtype=fp8 timer.inputs=cold",
        "workload.padding=0.3",
        "workload.rows=misaligned workload.extra_tokens=5",
        "workload.num_heads=1 workload.head_size=24",
        "kv_cache_dtype=fp8 workload.num_heads=3 workload.head_size=45",
        "op=reshape_and_cache",
        "op=reshape_and_cache_flash_diffkv",
    ],
)
def test_every_byte_that_is_to_be_copied_arrives_and_no_other(chosen):
    for point in measured("impl=copy", *chosen.split()):
        assert point.status == "ok", point.reason
        assert point.copy_fraction == 1


def test_it_is_the_copy_beside_an_implementation():
    """The same kernel in two curves of one process; what they differ by is what two curves differ by."""
    sizes = {"workload": "llama3_8b", "tokens": "workload.num_tokens=[512,32768]"}
    for alone, beside in zip(measured("impl=copy", **sizes), measured("impl=cuda", **sizes), strict=True):
        assert alone.statistics.latency_us == pytest.approx(beside.copy_us, rel=0.05)
        assert alone.bytes_moved == beside.bytes_moved


def test_a_kernel_that_copies_wrong_is_incorrect(tmp_path, monkeypatch):
    line = "        to[at] = out;\n"
    source = equal_copy.SOURCE.read_text()
    assert source.count(line) == 1
    wrong = tmp_path / "equal_copy.cu"
    wrong.write_text(source.replace(line, "        out.w += at == writes - 1;\n" + line))
    monkeypatch.setattr(equal_copy, "SOURCE", wrong)
    for point in measured("impl=copy"):
        assert point.status == "incorrect"
        assert "hold other bytes than were to be copied" in point.reason
