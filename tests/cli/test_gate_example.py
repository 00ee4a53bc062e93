"""The how-to page of the gate and its workflow: what they tell to type can be typed."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kvexp import cli

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "gate.md").read_text("utf-8")
WORKFLOW = yaml.safe_load((ROOT / "docs" / "examples" / "gate.yml").read_text("utf-8"))
STEPS = WORKFLOW["jobs"]["gate"]["steps"]

ON_THE_PAGE = re.findall(r"^kvexp .*$", PAGE, re.MULTILINE)
IN_THE_WORKFLOW = [
    line.partition(" | ")[0].replace("$WORDS", WORKFLOW["env"]["WORDS"])
    for step in STEPS
    for line in step.get("run", "").splitlines()
    if line.startswith("kvexp ")
]


def test_both_say_what_to_type():
    assert {line.split()[1] for line in IN_THE_WORKFLOW} == {"gate", "baseline"}
    assert len(ON_THE_PAGE) == 4
    shown = re.search(r"(kvexp gate .*) \| tee", PAGE)[1]
    assert shown in IN_THE_WORKFLOW


@pytest.mark.parametrize("line", sorted({*ON_THE_PAGE, *IN_THE_WORKFLOW}))
def test_it_composes(elsewhere, capfd, line):
    (elsewhere / "kvexp" / "impl").mkdir(parents=True)
    (elsewhere / "kvexp" / "impl" / "mine.yaml").write_text("# Mine.\n_target_: my_kernels.Mine\n")
    one_curve = ["layout=NHD", "kv_cache_dtype=auto", "--cfg", "job"]
    assert cli.dispatch([*shlex.split(line)[1:], *one_curve]) == 0
    assert "repeat: 5\n" in capfd.readouterr().out
