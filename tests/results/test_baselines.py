"""Baselines on disk and in git."""

import subprocess

import pytest

from kvexp.errors import ConfigError
from kvexp.results import baselines, load
from tests.helpers.recorded_rows import curve, refused, row, sweep


@pytest.mark.parametrize(
    ("device", "folder"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("AMD EPYC 7B13 64-Core Processor", "amd-epyc-7b13-64-core-processor"),
        ("Intel(R) Xeon(R) CPU @ 2.10GHz", "intel-r-xeon-r-cpu-2-10ghz"),
    ],
)
def test_each_device_has_a_folder(device, folder):
    assert baselines.get_folder(device).as_posix() == f"baselines/{folder}"


def test_a_baseline_is_read_like_a_sweep(tmp_path):
    processes = [one for number in (2, 1) for one in curve({64: 2.0, 8: 1.0}, repetition=number)]
    (file,) = baselines.write([*processes, refused("skipped", "no", seed=1)], tmp_path)
    assert file == tmp_path / "nvidia-h200" / "rows.jsonl"
    found = load.read([tmp_path], tmp_path)
    assert [(row["num_tokens"], row["repetition"]) for row in found] == [(8, 1), (8, 2), (64, 1), (64, 2)]
    assert [column for column in found[0] if column not in ("sweep", "command")] == list(processes[0])


def test_a_baseline_replaces_that_of_its_device_alone(tmp_path):
    baselines.write([row(1.0), row(2.0, device_name="NVIDIA H100")], tmp_path)
    baselines.write([row(3.0)], tmp_path)
    found = {row["device_name"]: row["latency_us"] for row in load.read([tmp_path], tmp_path)}
    assert found == {"NVIDIA H200": 3.0, "NVIDIA H100": 2.0}
    assert len(list(tmp_path.rglob("*.*"))) == 2


def test_rows_without_a_latency_make_no_baseline(tmp_path):
    with pytest.raises(ConfigError, match="nothing was timed"):
        baselines.write([refused("verified", "interpreted")], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_row_without_a_device_is_in_no_baseline(tmp_path):
    nameless = refused("skipped", "no GPU")
    del nameless["device_name"]
    (file,) = baselines.write([row(1.0), nameless], tmp_path)
    assert len(load.read([file], tmp_path)) == 1


def test_each_curve_of_a_baseline_has_the_command_that_repeats_it(tmp_path):
    kinds = [
        curve({64: 2.0, 8: 1.0}, repetition=n, layout=layout) for n in (1, 2) for layout in ("NHD", "HND")
    ]
    (file,) = baselines.write([row for own in kinds for row in own], tmp_path)
    sizes = "workload.num_heads=8 workload.num_blocks=4096 'workload.num_tokens=[8,64]'"
    assert {row["layout"]: row["command"] for row in load.read([file], tmp_path)} == {
        "NHD": f"python -m kvexp {sizes}",
        "HND": f"python -m kvexp layout=HND {sizes}",
    }


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose first commit holds two GPUs' baselines, and whose last one a faster H200's."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-b", "main")
    baselines.write([row(10.0), row(20.0, device_name="NVIDIA H100")], folder / "baselines")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    baselines.write([row(5.0)], folder / "baselines")
    git(folder, "commit", "-a", "-m", "second")
    monkeypatch.chdir(folder)
    return folder


def latencies(name, folder):
    assert baselines.check_out(name, folder)
    return sorted(row["latency_us"] for row in load.read([folder], folder))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("main", [5.0, 20.0]),
        ("HEAD~1", [10.0, 20.0]),
        ("main:baselines/nvidia-h200", [5.0]),
        ("HEAD^:baselines/nvidia-h200/rows.jsonl", [10.0]),
    ],
)
def test_a_revision_gives_the_baselines_of_its_time(repository, tmp_path, name, found):
    assert latencies(name, tmp_path / "out") == found


def test_paths_are_those_of_the_current_folder(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository / "baselines" / "nvidia-h100")
    assert latencies("main:../nvidia-h200", tmp_path / "out") == [5.0]
    with pytest.raises(ConfigError, match=r"git revision main has no baselines/<gpu>/rows\.jsonl"):
        baselines.check_out("main", tmp_path / "other")


def test_what_git_lists_and_cannot_read_is_one_sentence(repository, tmp_path):
    """As in a partial clone whose server is away."""
    listed = subprocess.run(
        ["git", "rev-parse", "main:baselines/nvidia-h200/rows.jsonl"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.strip()
    (repository / ".git" / "objects" / listed[:2] / listed[2:]).unlink()
    with pytest.raises(ConfigError, match=r"git lists baselines/nvidia-h200/rows\.jsonl in main"):
        baselines.check_out("main", tmp_path / "out")


def test_a_hooks_variables_name_no_other_repository(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert latencies("main", tmp_path / "out") == [5.0, 20.0]


@pytest.mark.parametrize("name", ["gone", "--all", "", "main~7", "2026-11-21/10-00"])
def test_a_name_that_is_no_revision_checks_nothing_out(repository, tmp_path, name):
    assert not baselines.check_out(name, tmp_path)


def test_outside_of_a_repository_there_are_no_revisions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not baselines.check_out("main", tmp_path)


def test_a_baseline_of_several_sweeps_keeps_which_sweep_each_row_is_of(tmp_path):
    """Both have a first round of the same point, and neither replaces the other."""
    for name, us in (("one", 10.0), ("two", 10.4)):
        sweep(tmp_path / "before" / name, [[row(us, repetition=number) for number in (1, 2)]])
    (file,) = baselines.write(load.read([tmp_path / "before"], tmp_path), tmp_path / "baselines")
    found = [(row["sweep"], row["repetition"], row["latency_us"]) for row in load.read([file], tmp_path)]
    assert sorted(found) == [
        ("before/one", 1, 10.0), ("before/one", 2, 10.0), ("before/two", 1, 10.4), ("before/two", 2, 10.4),
    ]  # fmt: skip
