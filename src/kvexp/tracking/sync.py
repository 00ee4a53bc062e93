"""Rows on disk that the store has not: each curve is sent once, however often a try was broken off."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from kvexp import tracking
from kvexp.errors import ConfigError, KvexpError, TrackingError
from kvexp.results import sweep_dir as sweep_folder
from kvexp.results.row_file import ROWS, read
from kvexp.tracking import Tracker, TrackingSettings, artifacts, run_data

_LARGEST_CONFIG_BYTES = 1 << 20

Say = Callable[[str], None]

Drawn = tempfile.TemporaryDirectory[str]
"""A folder that holds a report, and is gone when that was sent."""


@dataclass
class Sent:
    """What came of a sync, in curves.

    Attributes:
        sent: Sent now.
        there: In the store already.
        refused: Left out, since they hold what are no rows, or since their sweep is still at work.
    """

    sent: int = 0
    there: int = 0
    refused: int = 0


def sync(root: Path, settings: TrackingSettings, say: Say) -> Sent:
    """Every curve of the sweeps at or below `root` is in the store.

    Args:
        root: A sweep's folder, or one that holds sweeps' folders.
        settings: The store.
        say: Told of each sweep that was sent or left out, in one line.

    Raises:
        ConfigError: There is no sweep.
        TrackingError: The store is out of reach; what was sent whole before stays there.
    """
    sweeps = _sweeps(root)
    if not sweeps:
        raise ConfigError(f"{root} holds no sweep with a {ROWS}; give multirun/ or a sweep's folder")
    store = tracking.connect(settings)
    if store is None:
        raise ConfigError("tracking=none is no store to send to; choose local or server")
    total = Sent()
    for home in sweeps:
        try:
            with sweep_folder.hold(home):
                _send(home, store, total, say)
        except TimeoutError as error:
            say(f"{home}: left out, since its sweep is at work ({error})")
            total.refused += len(curves(home))
        except OSError as error:
            raise TrackingError(f"{home} cannot be locked ({error.strerror}), so it is not sent") from error
    return total


def catch_up(store: Tracker, missing: Sequence[Path], say: Say) -> list[str]:
    """The curves in these folders are in the store, in the sweep that it has started; the status of each."""
    statuses = []
    for job in missing:
        try:
            rows = read(job, say)
        except KvexpError as error:
            say(f"left out: {error}")
            continue
        if rows:
            store.log_curve(job, _target(job), rows)
            statuses.append(run_data.status(rows))
    return statuses


def send_report(store: Tracker, home: Path, say: Say) -> None:
    """The store has the sweep's report, or it is said why not: it can be made at any time."""
    if report := draw_report(home, say):
        send_drawn(store, home, report, say)


def draw_report(home: Path, say: Say) -> Drawn | None:
    """The report is in a folder of its own; None where it is said why not."""
    made = tempfile.TemporaryDirectory()
    try:
        artifacts.report(home, Path(made.name))
    except Exception as error:  # noqa: BLE001  # whatever a drawing may raise costs no sweep its exit code
        made.cleanup()
        _say_why_not(error, say)
        return None
    return made


def send_drawn(store: Tracker, home: Path, report: Drawn, say: Say) -> None:
    """The store has the report, or it is said why not; its folder is gone."""
    with report as made:
        try:
            store.log_report(sweep_folder.id_of(home), Path(made))
        except TrackingError as error:
            _say_why_not(error, say)


def _say_why_not(error: Exception, say: Say) -> None:
    say(f"kvexp: {error or type(error).__name__}; the runs have no report, and kvexp sync tries again")


def curves(home: Path) -> list[Path]:
    """The curves' folders of a sweep that hold rows, in order."""
    return sorted((file.parent for file in home.glob(f"*/{ROWS}")), key=_number)


def _send(home: Path, store: Tracker, total: Sent, say: Say) -> None:
    sweep_id, folders = sweep_folder.id_of(home), curves(home)
    missing = store.missing(sweep_id, folders)
    total.there += len(folders) - len(missing)
    if missing:
        _send_curves(home, store, missing, total, say)
    if missing or store.lacks_report(sweep_id):
        send_report(store, home, say)


def _send_curves(home: Path, store: Tracker, missing: Sequence[Path], total: Sent, say: Say) -> None:
    name = sweep_folder.name_of(home)
    store.start_sweep(sweep_folder.id_of(home), _command(home), resumes=True, name=name)
    statuses = catch_up(store, missing, say)
    store.end_sweep("FAILED" if {"incorrect", "failed"} & set(statuses) else "FINISHED")
    total.sent += len(statuses)
    total.refused += len(missing) - len(statuses)
    say(f"{home}: sent {len(statuses)} of {len(curves(home))} curves")


def _sweeps(root: Path) -> list[Path]:
    """The folders of sweeps that hold rows, the oldest first."""
    return sorted({file.resolve().parent.parent for file in root.rglob(ROWS)}) if root.is_dir() else []


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name) if job.name.isdecimal() else -1), job.name


def _command(home: Path) -> str:
    """What the sweep was typed as; empty where its folder does not say."""
    try:
        overrides, flags = sweep_folder.read_command(home)
    except ConfigError:
        return ""
    return tracking.mask_passwords(" ".join(["python", "-m", "kvexp", *flags, *overrides]))


def _target(job: Path) -> str:
    """The class that measured, as text for a tag; it is looked up nowhere."""
    try:
        with (job / ".hydra" / "config.yaml").open("rb") as handle:
            content = yaml.safe_load(handle.read(_LARGEST_CONFIG_BYTES))
        return str(content["impl"]["_target_"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, RecursionError):
        return ""
