"""A sweep as it is typed: who breaks the contract is incorrect, and what else is not kept is said."""

import os
from pathlib import Path

from kvexp import cli
from kvexp.results.row_file import read


def test_a_sweep_says_what_of_the_contract_is_kept(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()), prepend=os.pathsep)
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path / "cache"))
    conf, sweep = tmp_path / "conf" / "impl", tmp_path / "sweep"
    conf.mkdir(parents=True)
    conf.joinpath("mine.yaml").write_text(
        "# Mine.\n_target_: tests.helpers.contract_breakers.Breaking\nkind: honest\n"
    )
    typed = [
        "--config-dir", str(tmp_path / "conf"), "impl=mine", "impl.kind=honest,stale_slots,wraps_past_end",
        "layout=NHD", "device=cpu", "workload=tiny", "timer.max_seconds=0.05", f"hydra.sweep.dir={sweep}",
        "workload.num_tokens=[1,16]", "tracking=none",
    ]  # fmt: skip
    assert cli.dispatch(typed) == 1
    assert [(row["impl_options"], row["status"], row["contract"]) for row in read(sweep)] == [
        *[('{"kind":"honest"}', "ok", "full")] * 2,
        *[('{"kind":"stale_slots"}', "incorrect", "fresh_slots")] * 2,
        *[('{"kind":"wraps_past_end"}', "ok", "past_end")] * 2,
    ]
    out, err = capfd.readouterr()
    assert "ok, but    kind=wraps_past_end: 2 points: writes slots past the end" in out
    assert "incorrect  kind=stale_slots: 2 points: the call keeps the slots that it saw when it was" in out
    assert "1 of 3 curves went wrong" in err
    assert len(list((tmp_path / "cache" / "contracts").iterdir())) == 3

    assert cli.dispatch(["report", str(sweep)]) == 0
    said = "kind=wraps_past_end: right, but writes slots past the end."
    assert said in (sweep / "report.md").read_text()
