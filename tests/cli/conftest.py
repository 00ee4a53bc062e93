import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvexp import cli
from kvexp.layout.selection import list_variables
from kvexp.sweep.job import Job
from kvexp.sweep.place import Place
from kvexp.sweep.settings import SweepSettings
from kvexp.tracking import TrackingSettings
from tests.helpers import fake_sweep


@dataclass
class Outcome:
    """What one command line came to; `jobs` is empty when nothing would have been measured."""

    code: int = 0
    out: str = ""
    err: str = ""
    jobs: list[Job] = field(default_factory=list)
    settings: SweepSettings | None = None
    command: str = ""
    again: str = ""
    places: Sequence[Place] = ()
    folders: list[Path] = field(default_factory=list)

    @property
    def tracking(self) -> TrackingSettings:
        """Where it would have been tracked."""
        assert self.settings
        return self.settings.tracking


Typed = Callable[..., Outcome]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, and an environment that says nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("HYDRA_FULL_ERROR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", *list_variables()):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield tmp_path
    # Hydra's own prints (--info) set up logging for a process that ends after them.
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def typed(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Typed:
    """Types a command line in this process; the sweep is handed over, not measured."""

    def type_in(*argv: str) -> Outcome:
        outcome = Outcome()

        def opened(settings: SweepSettings, command: str, again: str, places: Sequence[Place]) -> None:
            outcome.settings, outcome.command, outcome.again = settings, command, again
            outcome.places = places

        fake_sweep.put(monkeypatch, outcome.jobs.extend, opened=opened)
        outcome.code = cli.dispatch(argv)
        outcome.out, outcome.err = capfd.readouterr()
        outcome.folders = sorted(elsewhere.iterdir())
        return outcome

    return type_in


@pytest.fixture
def write_own(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes an option of the user's own below my/, which `--config-dir my` finds."""

    def write(option: str, text: str) -> Path:
        file = tmp_path / "my" / f"{option}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write
