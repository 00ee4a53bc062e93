"""Asking in a process of its own: what dies is broken, what is known is not asked again."""

import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from kvexp.bench.contract import FULL, UNASKED, Contract, Finding, answer_cache, ask
from kvexp.bench.contract.ask import Asker
from kvexp.errors import KvexpError
from tests.helpers import tiny_curve
from tests.helpers.processes import ended

MACHINE = {"device_name": "a CPU", "torch": "2", "source_hash": "1"}


def curve(how, module="contract_breakers", num_tokens=(1, 16), **options):
    return tiny_curve.curve(how=f"{module}.{how}", options=options, num_tokens=num_tokens)


COMING = {
    "stale_slots": curve("Breaking", kind="stale_slots"),
    "exit": curve("Mortal", by="exit"),
    "hang": curve("Mortal", by="hang"),
    "plain": curve("Deadly", "wrong_impls", (3, 16), by="exit"),
}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path))
    return tmp_path / "contracts"


@pytest.fixture
def asker(folder):
    made = Asker()
    yield made
    made.close()


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """Ask for one sweep; return the findings, the processes that were started and what was kept."""
    started, popen = [], subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    asker = Asker()
    asker.limit(5)
    asker.coming = list(COMING.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVEXP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(subprocess, "Popen", start)
        assert asker.get_contract(curve("Breaking"), MACHINE).column(16) == FULL
        found = {name: asker.get_contract(made, MACHINE) for name, made in COMING.items()}
        kept = {
            name: answer_cache.read(made, answer_cache.make_key(made, MACHINE))
            for name, made in COMING.items()
        }
        again = Asker().get_contract(curve("Breaking"), MACHINE).column(16)
    assert again == FULL
    return SimpleNamespace(found=found, kept=kept, started=started)


def test_one_process_is_asked_all_that_is_to_come_and_another_after_each_death(swept):
    """Ask nothing a second time, neither by this asker nor by another one."""
    assert swept.found["stale_slots"].column(1) == "fresh_slots"
    assert len(swept.started) == 1 + 3
    assert all(process.poll() is not None for process in swept.started), "an idle one would be seen on a GPU"


@pytest.mark.parametrize(
    ("by", "words"),
    [("exit", "died with exit code 7 (trap: slot past the end)"), ("hang", "did not return within 5 s")],
)
def test_a_clause_that_ends_its_process_is_broken_and_the_rest_is_asked(swept, by, words):
    found = swept.found[by]
    assert found.column(16) == "past_end"
    (broken,) = (finding for finding in found.findings if finding.outcome == "broken")
    assert (broken.clause, broken.words, broken.num_tokens) == ("past_end", words, 7)
    assert found.sizes == (1, 16)


def test_a_plain_call_that_dies_leaves_the_rest_to_measuring(swept):
    found = swept.found["plain"]
    assert (found.sizes, found.column(16), found.breach()) == ((3,), None, "")
    assert [(finding.clause, finding.num_tokens) for finding in found.wrong] == [("plain", 16)]
    assert UNASKED.column(16) is None


def test_an_answer_is_kept_unless_the_machine_may_be_to_blame(swept):
    """Ask again for what took too long: another machine may be faster."""
    assert swept.kept == {**swept.found, "hang": None}


@pytest.mark.parametrize(
    ("code", "in_doubt"), [(7, False), (-11, False), (-9, True), (-15, True), (-10, True)]
)
def test_a_signal_that_another_process_may_have_sent_leaves_a_doubt(code, in_doubt):
    """A machine may be short of memory once; a process brings SIGSEGV on itself."""
    child = SimpleNamespace(wait=lambda _: code, read_errors=lambda: "")
    death = ask._explain_death(child)
    assert death.in_doubt == in_doubt
    assert str(death) == (f"died by signal {-code}" if code < 0 else "died with exit code 7")


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


def test_what_cannot_be_asked_says_why_and_costs_the_next_one_nothing(asker):
    with pytest.raises(KvexpError, match="writes head-major planes, which layout=NHD does not have"):
        asker.ask(tiny_curve.curve(op="reshape_and_cache", layout="NHD"))
    with pytest.raises(KvexpError, match=r"tests.helpers.contract_breakers.Gone of Gone cannot be found"):
        asker.ask(curve("Gone"))
    first = asker._child
    with pytest.raises(KvexpError, match="ZeroDivisionError: no reason at all"):
        asker.ask(curve("Unmakeable"))
    assert asker._child is first
    assert asker.ask(curve("Breaking")).column(16) == FULL


@pytest.mark.parametrize(("hung", "died_at"), [(False, [16, 17, 18]), (True, [16])])
def test_one_that_dies_is_asked_at_larger_sizes_unless_it_hung(asker, monkeypatch, hung, died_at):
    monkeypatch.setattr(ask, "MOST_PROCESSES", 3)

    def answers(_, sizes, died):
        for size in sizes:
            if ("plain", size) not in died:
                yield {"ask": ("plain", size)}
                raise ask._Died("died", in_doubt=hung, hung=hung)
        yield {"contract": asdict(Contract((), (), wrong=(Finding("plain", "failed", "died", 16),)))}

    asker._answers = answers
    found = asker.ask(curve("Deadly", "wrong_impls", (16, 17, 18, 19), by="exit"))
    assert (found.findings, found.sizes) == ((), ())
    assert [(finding.clause, finding.num_tokens) for finding in found.wrong] == [
        ("plain", size) for size in died_at
    ]


def test_a_process_that_cannot_be_started_says_why(asker, monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(KvexpError, match=r"contract cannot be started: Cannot allocate memory"):
        asker.get_contract(curve("Breaking"), MACHINE)


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
    line = [sys.executable, "-c", asks, COMING["hang"].to_json()]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    ended(int(done.stdout))
