"""Asking in a process of its own: what dies is broken, what is known is not asked again."""

import importlib.metadata
import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from kvexp.bench.contract import FULL, UNASKED, Contract, Finding, answer_cache
from kvexp.bench.contract.ask import Asker
from kvexp.errors import KvexpError
from kvexp.experiment import Choice
from tests.helpers import tiny_curve
from tests.helpers.processes import ended

MACHINE = {"device_name": "a CPU", "torch": "2", "source_hash": "1"}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path))
    return tmp_path / "contracts"


@pytest.fixture
def asker(folder):
    made = Asker()
    yield made
    made.close()


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    made, popen = [], subprocess.Popen

    def start(*arguments, **options):
        made.append(popen(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return made


def curve(how, **options):
    return tiny_curve.curve(how=f"contract_breakers.{how}", options=options, num_tokens=(1, 16))


def test_who_keeps_the_contract_is_known_to(asker, started):
    assert asker.get_contract(curve("Breaking"), MACHINE).column(16) == FULL
    assert len(started) == 1
    assert started[0].poll() is not None, "an idle process would be seen on the GPU"


@pytest.mark.parametrize(
    ("by", "words"),
    [("exit", "died with exit code 7 (trap: slot past the end)"), ("hang", "did not return within 5 s")],
)
def test_a_clause_that_ends_its_process_is_broken_and_the_rest_is_asked(asker, started, folder, by, words):
    asker.limit(5)
    found = asker.get_contract(curve("Mortal", by=by), MACHINE)
    assert found.column(16) == "past_end"
    (broken,) = (finding for finding in found.findings if finding.outcome == "broken")
    assert (broken.clause, broken.words, broken.num_tokens) == ("past_end", words, 7)
    assert found.sizes == (1, 16)
    assert len(started) == 2
    # What took too long, here and now, is asked again elsewhere and later.
    assert len(list(folder.glob("*.json"))) == (by == "exit")
    assert all(process.poll() is not None for process in started)


def test_what_is_known_is_not_asked_again_by_anyone(asker, started, folder):
    first = asker.get_contract(curve("Breaking", kind="stale_slots"), MACHINE)
    assert first.column(1) == "fresh_slots"
    assert asker.get_contract(curve("Breaking", kind="stale_slots"), MACHINE) == first
    assert Asker().get_contract(curve("Breaking", kind="stale_slots"), MACHINE) == first
    assert len(started) == 1
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("by", "kept"), [("exit", 1), ("SIGSEGV", 1), ("hang", 0), ("SIGKILL", 0), ("SIGTERM", 0), ("SIGUSR1", 0)]
)
def test_an_answer_is_kept_unless_the_machine_may_be_to_blame(asker, started, folder, by, kept):
    """A machine may be short of time or of memory once; a later sweep asks anew."""
    asker.limit(5)
    assert asker.get_contract(curve("Mortal", by=by), MACHINE).column(16) == "past_end"
    assert asker.get_contract(curve("Mortal", by=by), MACHINE).column(16) == "past_end"
    assert len(started) == 2
    assert len(list(folder.glob("*"))) == kept


@pytest.mark.parametrize(
    ("device", "sizes", "files"), [("cuda:0", [1], 0), ("cuda:0", [1, 16], 1), ("cpu", [1], 1)]
)
def test_an_answer_that_lacks_sizes_is_kept_where_memory_is_not_why(asker, folder, device, sizes, files):
    """A CPU never poses clauses at large sizes; what a GPU has room for changes."""
    posed = Contract((Finding("padding", "holds"),), tuple(sizes))
    asker._answers = lambda *_: iter([{"contract": asdict(posed)}])
    found = asker.get_contract(replace(curve("Breaking"), device=device), MACHINE)
    assert found.column(1) == FULL
    assert len(list(folder.glob("*"))) == files


def test_a_curve_that_fails_where_it_is_asked_costs_the_next_one_nothing(asker, started):
    with pytest.raises(KvexpError, match="ZeroDivisionError: no reason at all"):
        asker.ask(curve("Unmakeable"))
    assert asker.ask(curve("Breaking")).column(16) == FULL
    assert len(started) == 2


def test_one_that_dies_of_too_many_calls_is_wrong_in_each_of_them(asker, monkeypatch):
    monkeypatch.setattr("kvexp.bench.contract.ask.MOST_PROCESSES", 3)
    deadly = tiny_curve.curve(how="wrong_impls.Deadly", options={"by": "exit"}, num_tokens=(16, 17, 18, 19))
    found = asker.get_contract(deadly, MACHINE)
    assert (found.findings, found.sizes) == ((), ())
    assert [(finding.clause, finding.num_tokens) for finding in found.wrong] == [
        ("plain", 16), ("plain", 17), ("plain", 18),
    ]  # fmt: skip


def test_a_process_that_cannot_be_started_says_why(asker, monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(KvexpError, match=r"contract cannot be started: Cannot allocate memory"):
        asker.get_contract(curve("Breaking"), MACHINE)


def test_another_version_of_a_peer_is_asked_anew(asker, started, monkeypatch):
    version = importlib.metadata.version
    for vllm in ("0.33.0", "0.34.0"):
        monkeypatch.setattr(importlib.metadata, "version", lambda n, v=vllm: v if n == "vllm" else version(n))
        answer_cache._read_versions.cache_clear()
        asker.get_contract(curve("Breaking"), MACHINE)
    answer_cache._read_versions.cache_clear()
    assert len(started) == 2


def test_what_is_to_come_is_asked_by_the_same_process(asker, started):
    asker.coming = [curve("Breaking", kind=kind) for kind in ("stale_slots", "stale_inputs", "stale_slots")]
    asker.get_contract(curve("Breaking"), MACHINE)
    assert [asker.get_contract(other, MACHINE).column(1) for other in asker.coming] == [
        "fresh_slots", "fresh_inputs", "fresh_slots",
    ]  # fmt: skip
    assert len(started) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"kv_cache_dtype": "fp8"},
        {"layout": "HND"},
        {"dtype": "half"},
        {"num_heads": 3},
        {"num_tokens": (1, 17)},
        {"block_size": 8},
    ],
    ids=str,
)
def test_another_combination_is_asked_anew(asker, started, other):
    asker.get_contract(tiny_curve.curve(num_tokens=(1, 16)), MACHINE)
    asker.get_contract(tiny_curve.curve(**{"num_tokens": (1, 16), **other}), MACHINE)
    assert len(started) == 2


@pytest.mark.parametrize("column", MACHINE)
def test_another_machine_is_asked_anew(asker, started, column):
    asker.get_contract(tiny_curve.curve(num_tokens=1), MACHINE)
    asker.get_contract(tiny_curve.curve(num_tokens=1), {**MACHINE, column: "another"})
    assert len(started) == 2


@pytest.mark.parametrize("what", ["slots", "num_blocks"])
def test_what_a_question_chooses_itself_asks_nothing_anew(asker, started, what):
    values = {"slots": "contiguous", "num_blocks": 16}
    asker.get_contract(tiny_curve.curve(num_tokens=1), MACHINE)
    asker.get_contract(tiny_curve.curve(num_tokens=1, **{what: values[what]}), MACHINE)
    assert len(started) == 1


def test_a_changed_source_is_asked_anew(asker, started, tmp_path, monkeypatch):
    module = tmp_path / "my_kernel.py"
    text = "from tests.helpers.contract_breakers import Breaking\n\nclass Mine(Breaking):\n    pass\n"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:.")
    mine = replace(tiny_curve.curve(num_tokens=1), impl=Choice("mine", "my_kernel.Mine"))
    module.write_text(text)
    assert asker.get_contract(mine, MACHINE).column(1) == FULL
    from kvexp.bench import impl_hash

    impl_hash.hash_impl.cache_clear()
    module.write_text(text.replace("pass", "'''Another one.'''"))
    assert asker.get_contract(mine, MACHINE).column(1) == FULL
    assert len(started) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"findings": [{"a": 1}], "sizes": []})])
def test_an_answer_that_cannot_be_read_is_asked_anew(asker, folder, text):
    asker.get_contract(tiny_curve.curve(num_tokens=1), MACHINE)
    (file,) = folder.iterdir()
    file.write_text(text)
    assert Asker().get_contract(tiny_curve.curve(num_tokens=1), MACHINE).column(1) == FULL
    assert json.loads(file.read_text())["sizes"] == [1]


def test_a_folder_that_cannot_be_made_costs_nothing_but_time(asker, folder):
    folder.parent.joinpath("contracts").write_text("a file")
    assert asker.get_contract(tiny_curve.curve(num_tokens=1), MACHINE).column(1) == FULL


def test_what_cannot_be_asked_says_why(asker):
    with pytest.raises(KvexpError, match="writes head-major planes, which layout=NHD does not have"):
        asker.get_contract(tiny_curve.curve(op="reshape_and_cache", layout="NHD"), MACHINE)
    with pytest.raises(KvexpError, match=r"tests.helpers.contract_breakers.Gone of Gone cannot be found"):
        asker.get_contract(tiny_curve.curve(how="contract_breakers.Gone"), MACHINE)


def test_a_plain_call_that_dies_leaves_the_rest_to_measuring(asker):
    found = asker.get_contract(tiny_curve.curve(how="wrong_impls.Deadly", options={"by": "exit"}), MACHINE)
    assert (found.sizes, found.column(16), found.breach()) == ((1, 3), None, "")
    assert [(finding.clause, finding.num_tokens) for finding in found.wrong] == [("plain", 16), ("plain", 50)]
    assert UNASKED.column(16) is None


def test_after_a_plain_call_that_hangs_no_larger_one_is_asked(asker, started):
    asker.limit(3)
    found = asker.get_contract(tiny_curve.curve(how="wrong_impls.Deadly", options={"by": "hang"}), MACHINE)
    assert (found.sizes, found.column(16), found.column(50), found.breach()) == ((1, 3), None, None, "")
    assert [(finding.words, finding.num_tokens) for finding in found.wrong] == [
        ("did not return within 3 s", 16)
    ]
    assert len(started) == 2


def test_a_process_that_hangs_ends_with_the_one_that_asks():
    """Nobody reads its pipe then, whose end would tell it; the kernel ends it."""
    asks = """
import os, signal, sys
from kvexp.bench.contract.ask import Asker
from kvexp.experiment import Experiment

asker = Asker()
for answer in asker._answers(Experiment.from_json(sys.argv[1]), [1, 16], []):
    if answer["ask"][0] == "past_end":
        print(asker._child.process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""
    line = [sys.executable, "-c", asks, curve("Mortal", by="hang").to_json()]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    ended(int(done.stdout))
