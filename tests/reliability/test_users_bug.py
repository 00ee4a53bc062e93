"""A bug in the user's own implementation is found: its line in the reason, its traceback beside the rows."""

import re
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

SOURCE = '''"""My kernel."""

from kvexp.impl.torch import Torch


class Mine(Torch):
    def reshape_and_cache_flash(self, key, *rest):
        right = super().reshape_and_cache_flash(key, *rest)

        def call():
            right()
            if len(key) > 3:
                kee.sum()

        return call
'''
REASON = "NameError: name 'kee' is not defined at my_kernels.py:13, in call"
INLINE = ("isolation=inline", "tracking=none")
WORDS = ("impl=mine", "workload=tiny", "timer=none", "device=cpu", "--config-dir", "my_conf")


@pytest.fixture
def mine(place, monkeypatch):
    monkeypatch.syspath_prepend(place.folder)
    monkeypatch.delitem(sys.modules, "my_kernels", raising=False)
    (place.folder / "my_kernels.py").write_text(SOURCE)
    (place.folder / "my_conf" / "impl" / "mine.yaml").write_text("# Mine.\n_target_: my_kernels.Mine\n")
    yield place
    sys.modules.pop("my_kernels", None)


def check(text):
    """The text holds the whole traceback, from kvexp's call to the line of the bug."""
    assert re.search(
        r'Traceback \(most recent call last\):\n  File ".*/kvexp/bench/run_curve.py", line', text
    )
    assert re.search(r'  File ".*/my_kernels.py", line 13, in call\n    kee.sum\(\)\n', text)
    assert "\nNameError: name 'kee' is not defined\n" in text


@pytest.mark.usefixtures("inline_tracker", "database")
def test_the_reason_ends_with_the_line_and_the_traceback_lies_beside_the_rows_and_in_mlflow(mine, typed):
    done = typed(*WORDS)
    assert done.returncode == 1
    (home,) = mine.sweeps
    outcomes = [(row["num_tokens"], row["status"], row["reason"]) for row in mine.rows()]
    assert outcomes[2:] == [(16, "failed", REASON), (50, "failed", REASON)]
    assert {status for _, status, _ in outcomes[:2]} == {"verified"}
    kept = (home / "0" / "tracebacks.txt").read_text()
    assert re.findall(r"^num_tokens \d+$", kept, re.MULTILINE) == ["num_tokens 16", "num_tokens 50"]
    check(kept)
    assert REASON in done.stdout
    assert f"tracebacks: {home}/0/tracebacks.txt\n" in done.stderr
    client = MlflowClient(f"sqlite:///{mine.folder}/mlruns/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'kvexp'")
    (run,) = client.search_runs([experiment.experiment_id], "tags.impl_target = 'my_kernels.Mine'")
    sent = client.download_artifacts(run.info.run_id, "tracebacks.txt", str(mine.folder))
    assert Path(sent).read_text() == kept


@pytest.mark.usefixtures("mine")
def test_inline_prints_the_traceback_once(typed):
    done = typed(*WORDS, *INLINE)
    assert done.returncode == 1
    check(done.stderr)
    assert done.stderr.count("Traceback") == 1


def test_a_bug_where_the_file_is_imported_is_found_too(mine, typed):
    (mine.folder / "my_kernels.py").write_text("import json\n\nTILE = jsn.loads('8')\n")
    assert typed(*WORDS, *INLINE).returncode == 1
    reason = "NameError: name 'jsn' is not defined at my_kernels.py:3, in <module>"
    assert {row["reason"] for row in mine.rows()} == {reason}
    kept = (mine.sweeps[0] / "0" / "tracebacks.txt").read_text()
    assert "line 3, in <module>\n    TILE = jsn.loads('8')\n" in kept


@pytest.mark.usefixtures("mine")
def test_verify_says_the_line_as_well(typed):
    done = typed("verify", *WORDS)
    assert "NameError: name 'kee' is not defined at my_kernels.py:13, in call" in done.stdout


def test_what_is_refused_or_wrong_has_no_traceback(mine, typed):
    done = typed("impl=idle,torch", *WORDS[1:], *INLINE)
    assert done.returncode == 1
    assert "tracebacks" not in done.stderr
    assert list(mine.folder.rglob("tracebacks.txt")) == []
