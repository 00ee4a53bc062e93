"""What lies in a result's folder is data from outside: refused in one sentence, and never run."""

import json
import pickle
import re
import shutil
import socket
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvexp import cli
from kvexp.errors import KvexpError
from kvexp.host import disk_cache
from kvexp.measurement import SCHEMA
from kvexp.results import jsonl, labels, point_identity, row_file
from kvexp.results import sweep_dir as sweep_folder
from tests.helpers import fuzzed_rows
from tests.helpers.recorded_rows import curve, sweep
from tests.reliability.conftest import ROOT, TINY, UNTRACKED

WHOLE = {"status": "ok", "num_tokens": 2, "impl": "torch", "latency_us": 1.5, "schema": SCHEMA}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
changed = st.builds(
    lambda column, value: WHOLE | {column: value}, st.sampled_from([*labels.CURVE, *WHOLE]), values
)
lines = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    values.map(lambda value: json.dumps(value).encode()),
    changed.map(lambda row: json.dumps(row).encode()),
    st.just(json.dumps(WHOLE).encode()),
)
contents = st.lists(lines, max_size=4).map(b"\n".join)


def attempt(work):
    """What the work gives, and no complaint; or None, and what it complains of."""
    try:
        return work(), ""
    except KvexpError as error:
        return None, str(error)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=contents)
def test_a_file_of_rows_is_read_or_refused_in_one_sentence(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    file.write_bytes(content)
    found, complaint = attempt(lambda: row_file.read(file, lambda _: None))
    assert "\n" not in complaint
    assert (str(file) in complaint) == (found is None)
    for row in found or ():
        assert row["schema"] == SCHEMA
        hash(point_identity.identify(row))
    labels.group_by_curve(found or [])


COMMANDS = [
    *(
        ["report"],
        ["export", "--format", "csv"],
        ["export", "--output", "points.parquet"],
        ["watch", "--once"],
    ),
    *(["compare", "right"], ["compare", "--axis", "impl", "--baseline", "triton", "--candidate", "cuda"]),
]


@pytest.mark.parametrize("seeds", [range(35), pytest.param(range(35, 200), marks=pytest.mark.slow)])
def test_rows_of_any_values_are_read_by_every_command_or_refused_in_one_sentence(
    seeds, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    sweep(tmp_path / "right", [curve({1: 2.0, 64: 3.0}), curve({1: 3.0, 64: 2.0}, impl="triton")])
    outcomes = Counter()
    for seed in seeds:
        home = sweep(tmp_path / str(seed), [curve({1: 2.0})])
        (home / "0" / "rows.jsonl").write_text(fuzzed_rows.encode(fuzzed_rows.make_rows(seed)))
        found = {}
        for words in COMMANDS:
            code = cli.dispatch([*words, str(home)])
            found[" ".join(words)] = code, capfd.readouterr().err
        refusal = found["report"][1]
        if refusal:
            assert re.match(rf"kvexp: {home}/0/rows\.jsonl, line [1-7]: .+\n\Z", refusal), seed
            assert set(found.values()) == {(2, refusal)}, seed
        else:
            apart = [code for name, (code, _) in found.items() if not name.startswith("compare")]
            assert apart == [0] * 4, seed
            assert all(err.count("\n") == (code == 2) for code, err in found.values()), seed
        outcomes["refused" if refusal else "read"] += 1
    assert min(outcomes["refused"], outcomes["read"]) > 10


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=lines)
def test_a_kept_command_line_is_texts_or_refused_in_one_sentence(tmp_path_factory, content):
    home = tmp_path_factory.getbasetemp() / "fuzzed"
    home.mkdir(exist_ok=True)
    (home / sweep_folder.COMMAND).write_bytes(content)
    found, complaint = attempt(lambda: sweep_folder.read_command(home))
    assert "\n" not in complaint
    assert (str(home) in complaint) == (found is None)
    assert all(isinstance(text, str) for texts in found or () for text in texts)


def test_brackets_without_end_and_lines_without_end_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"[" * 200_000 + b"\n{}\n")
    with pytest.raises(KvexpError, match=r"line 1: not JSON .nested too deeply"):
        row_file.read(file)
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    file.write_bytes(b'{"reason": "' + b"x" * 2000)
    with pytest.raises(KvexpError, match="line 1: longer than the 1000 bytes"):
        row_file.read(file)


@pytest.fixture
def half(place, untracked):
    """A sweep's folder whose last two points are missing."""
    home = place.copy(untracked)
    file = home / "0" / "rows.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    return home


class Trap:
    """A pickle of this makes a file where it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def test_nothing_in_a_resumed_folder_is_run(place, typed, half):
    trap = half / "0" / ".hydra" / "config.pickle"
    trap.write_bytes(pickle.dumps(Trap()))
    (half / "config.pkl").write_bytes(pickle.dumps(Trap()))
    for name in ("config.yaml", "overrides.yaml"):
        (half / "0" / ".hydra" / name).write_text("impl:\n  _target_: os.mkdir\n  path: sprung\n")
    (half / "multirun.yaml").write_text(
        "hydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n      path: sprung\n"
    )
    assert typed("resume=true").returncode == 0
    assert not (place.folder / "sprung").exists()
    assert len(place.rows()) == 4


@pytest.mark.parametrize(
    ("overrides", "flags", "complaint"),
    [
        (["impl._target_=os.mkdir"], [], "only YAML files name classes"),
        (["+hydra.callbacks.x._target_=os.mkdir"], [], "type the whole command again"),
        (["hydra.searchpath=[file:///tmp/evil]"], [], "type the whole command again"),
        (["--experimental-rerun=config.pickle"], [], "is no override"),
        (["--config-dir=my_conf"], [], "is no override"),
        (["impl=torch"], ["--config-dir=my_conf"], "was typed with --config-dir=my_conf; type that beside"),
        (["impl=../../my_conf/impl/idle"], [], "unknown impl"),
        (["impl=/tmp/evil"], [], "impl"),
        ("impl=torch", [], "is no command line"),
        ([["impl=torch"]], [], "is no command line"),
        (["impl=tornch"], [], "unknown impl 'tornch'"),
        (["tracking.experiment=${oc.env:HOME}"], [], "it refers to something outside of the folder"),
        (["impl=torch", "workload.seed=${oc.env:UID}"], [], "it refers to something outside of the folder"),
        (["+x=[1,'${oc.env:HOME}']"], [], "it refers to something outside of the folder"),
        ([r"tracking.experiment=$\{oc.env:HOME\}"], [], "it refers to something outside of the folder"),
        ([r"workload.seed=1,$\{oc.env:HOME\}"], [], "it refers to something outside of the folder"),
        (None, [], "does not say what was typed; type the whole command again"),
    ],
)
def test_a_hostile_command_line_is_refused_in_one_sentence(place, typed, overrides, flags, complaint):
    home = place.folder / "multirun" / "2026-01-01" / "00-00-00-000000"
    home.mkdir(parents=True)
    (home / "command.json").write_text(json.dumps({"overrides": overrides, "flags": flags}))
    done = typed("resume=true")
    assert done.returncode == 2
    assert done.stderr.startswith("kvexp: ")
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr
    assert not list(home.glob("*/rows.jsonl"))


@pytest.mark.usefixtures("inline_tracker", "database")
@pytest.mark.parametrize(
    "where",
    [
        ["tracking.uri=http://127.0.0.1:{port}"],
        ["tracking=server", "++tracking.uri='http://127.0.0.1:{port}'"],
        ["tracking={{uri:'http://127.0.0.1:{port}',experiment:x}}"],
        ["tracking@tracking=server", "+tracking.uri=http://127.0.0.1:{port}"],
    ],
)
def test_a_folder_does_not_choose_where_a_sweep_is_tracked(place, half, typed, where):
    """What listens at the address of the folder's choice is never called; our own store has the runs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        words = [*TINY, *(text.format(port=port) for text in where)]
        (half / "command.json").write_text(json.dumps({"overrides": words, "flags": []}))
        done = typed("resume=true")
        with pytest.raises(TimeoutError):
            server.accept()
    assert done.returncode == 0, done.stderr
    assert "the store that the sweep in" in done.stderr
    assert "is not kept; type tracking.uri=ADDRESS beside resume= to track there" in done.stderr
    assert f"tracked in sqlite:///{place.folder}/mlruns/mlflow.db" in done.stderr
    assert len(place.rows()) == 4


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, "1", None])
def test_a_sweep_of_another_schema_is_not_resumed(typed, half, schema):
    file = half / "0" / "rows.jsonl"
    row = json.loads(file.read_text().splitlines()[0]) | {"schema": schema}
    file.write_text(json.dumps(row) + "\n")
    done = typed("resume=true")
    assert done.returncode == 2
    assert f"this kvexp reads schema {SCHEMA}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_changed_kernel_is_measured_again(place, typed, monkeypatch):
    monkeypatch.syspath_prepend(place.folder)
    shutil.copytree(ROOT / "src" / "kvexp" / "impl" / "torch", place.folder / "my_kernels")
    source = place.folder / "my_kernels" / "reshape_and_cache_flash.py"
    (place.folder / "my_conf" / "impl" / "mine.yaml").write_text("# Mine.\n_target_: my_kernels.Torch\n")
    words = ("impl=mine", *UNTRACKED[1:], "--config-dir", "my_conf")
    assert typed(*words).returncode == 0
    assert "4 there already" in typed(*words, "resume=true").stderr
    source.write_text(source.read_text() + "\n# Faster.\n")
    done = place.run("resume=true", "--config-dir", "my_conf")
    assert done.returncode == 0, done.stderr
    assert "there already" not in done.stderr
    found = [row["impl_hash"] for row in row_file.read(place.sweeps[-1])]
    assert found == [found[0]] * 4 + [found[-1]] * 4
    assert found[0] != found[-1]
    assert len(list(place.sweeps[-1].glob("*/rows.jsonl"))) == 2


@pytest.mark.parametrize("name", ["x.cubin", "contracts/x.json"])
def test_the_caches_entries_are_the_owners_alone(tmp_path, monkeypatch, name):
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path / "cache"))
    disk_cache.keep(name, b"code")
    kept = [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]
    assert [path.stat().st_mode & 0o077 for path in kept] == [0] * len(kept)
    assert disk_cache.read(name) == b"code"
