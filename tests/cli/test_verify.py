"""kvexp verify prints the outcome of every clause, and has an exit code for scripts."""

import os
import subprocess
from pathlib import Path

import pytest

from kvexp import cli
from kvexp.bench.contract import CLAUSES, ask
from kvexp.bench.contract.ask import Asker
from kvexp.cli.commands import verify
from tests.helpers import tiny_curve

ROOT = Path(__file__).parents[2]
CONF = """\
# Breaks the contract in one way.
_target_: tests.helpers.{}
{}
"""


@pytest.fixture
def verified(elsewhere, monkeypatch, capfd):
    """Types `kvexp verify` with impl=mine, and returns what came of it."""
    folder = elsewhere / "conf" / "impl"
    folder.mkdir(parents=True)
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(elsewhere / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)

    def verify(*words, how="contract_breakers.Breaking", options="kind: honest"):
        (folder / "mine.yaml").write_text(CONF.format(how, options))
        common = ("--config-dir", "conf", "device=cpu", "impl=mine", "workload=tiny", "layout=NHD")
        code = cli.dispatch(["verify", *common, "hydra.sweep.dir=sweep", *words])
        assert not (elsewhere / "sweep").exists()
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    return verify


def test_several_are_asked_in_turn_and_the_worst_decides(verified):
    done = verified("impl.kind=honest,stale_slots,wraps_past_end")
    assert (done.returncode, done.stderr) == (1, "")
    heading = "op=reshape_and_cache_flash impl=mine layout=NHD dtype=bfloat16"
    _, holds, stale, wraps = (part.splitlines()[1:] for part in done.stdout.split(heading))
    *lines, last = holds
    assert [line.split() for line in lines] == [[clause, "holds"] for clause in CLAUSES]
    assert last == "  tested with 7 tokens and with 1, 3, 16, 50"
    (line,) = (line for line in stale if "broken" in line)
    assert line.split()[:2] == ["fresh_slots", "broken"]
    assert "token 0, head 0, element 0 of key_cache (slot " in line
    assert line.endswith("(7 tokens)")
    (line,) = (line for line in wraps if "broken" in line)
    assert line.startswith("  past_end        broken   ")


def test_all_that_holds_is_zero(verified):
    assert verified("workload.num_tokens=[1]").returncode == 0


def test_a_clause_whose_process_dies_is_broken(verified):
    done = verified(how="contract_breakers.Mortal", options="by: exit")
    assert done.returncode == 1
    line = "past_end        broken   died with exit code 7 (trap: slot past the end) (7 tokens)"
    assert line in done.stdout


def test_what_refuses_everything_is_three(verified):
    done = verified(how="contract_breakers.Refusing", options="what: everything")
    assert done.returncode == 3
    assert "plain  refused  impl=refusing takes no call of everything (7 tokens)" in done.stdout
    done = verified("op=reshape_and_cache")
    assert done.returncode == 3
    assert (
        "refused: op=reshape_and_cache writes head-major planes, which layout=NHD does not have"
        in done.stdout
    )


def test_what_is_wrong_in_plain_calls_is_one(verified):
    done = verified(how="wrong_impls.Swapped", options="")
    assert done.returncode == 1
    assert "\n  plain  broken   token 0, head 0, element 0 of key_cache (slot " in done.stdout


def test_what_ends_more_processes_than_are_started_is_one(monkeypatch, capsys):
    monkeypatch.setattr(ask, "MOST_PROCESSES", 2)
    deadly = tiny_curve.curve(how="wrong_impls.Deadly", options={"by": "exit"}, num_tokens=(16, 17, 18))
    assert verify._verify(Asker(), deadly) == 1
    assert capsys.readouterr().out.count("  plain  broken   died with exit code 7 ") == 2


def test_a_class_that_is_not_there_is_two(verified):
    done = verified(how="contract_breakers.Gone", options="")
    assert done.returncode == 2
    assert "kvexp: tests.helpers.contract_breakers.Gone of mine cannot be found" in done.stderr


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("kv_cache_dtype=int4", "unknown kv_cache_dtype 'int4'; choose one of "),
        ("layuot=HND", "layuot"),
        ("workload.num_tokens=[0]", "num_tokens"),
        ("--cfg=job", "only overrides, --config-dir and -m say what is to be verified"),
    ],
)
def test_what_is_typed_wrong_is_two_with_one_sentence(verified, word, sentence):
    done = verified(word)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
