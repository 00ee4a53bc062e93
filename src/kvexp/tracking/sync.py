"""Send the curves on disk that the store lacks, each once, however often an earlier try was interrupted."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from kvexp.errors import ConfigError, KvexpError, TrackingError
from kvexp.host.addresses import mask_secrets
from kvexp.host.plain_file import find_gone, open_regular
from kvexp.measurement import Row, is_wrong
from kvexp.results import sweep_dir as sweep_folder
from kvexp.results.row_file import ROWS, read
from kvexp.tracking import Tracker, artifacts

_LARGEST_CONFIG_BYTES = 1 << 20

Say = Callable[[str], None]

ReportFolder = tempfile.TemporaryDirectory[str]
"""A folder that holds a report until that is sent."""


@dataclass
class SyncCounts:
    """The curves of a sync.

    Attributes:
        sent: Sent now.
        already_sent: In the store before.
        refused: Left out, since their files hold something else than rows, the store refuses them, or their
            sweep still runs.
    """

    sent: int = 0
    already_sent: int = 0
    refused: int = 0


def sync(root: Path, connect: Callable[[], Tracker], say: Say) -> SyncCounts:
    """Send every curve of the sweeps at or below `root` that the store lacks.

    Args:
        root: A sweep's folder, or one that holds sweeps' folders.
        connect: Returns the store.
        say: Called with a line for each sweep that was sent, and each sweep or curve that was left out.

    Raises:
        ConfigError: There is no sweep.
        TrackingError: The store is out of reach; the curves sent before stay there.
    """
    sweeps = _find_sweeps(root)
    if not sweeps:
        raise ConfigError(f"{root} holds no sweep with a {ROWS}; give multirun/ or a sweep's folder")
    store, counts = connect(), SyncCounts()
    for home in sweeps:
        try:
            with sweep_folder.hold(home):
                _sync_sweep(home, store, counts, say)
        except OSError as error:  # of the lock, a TimeoutError too
            why = "its sweep is at work" if isinstance(error, TimeoutError) else "it cannot be locked"
            gone = find_gone(home)
            say(f"{home}: left out, since {f'{gone} is gone' if gone else f'{why} ({error})'}")
            counts.refused += max(1, len(list_curves(home)))
    return counts


def send_curves(store: Tracker, folders: Sequence[Path], say: Say) -> int:
    """Send the curves in these folders to the sweep that the store has started; return how many it has taken.

    Each of the others is named to `say`.
    """
    sent = 0
    for job in folders:
        if rows := _read_rows(job, say):
            store.log_curve(job, _read_target(job), rows)
            sent += 1
    store.settle()
    refused, store.refused = store.refused, []
    for sentence in refused:
        say(f"left out: {sentence}")
    return sent - len(refused)


def draw_report(home: Path, say: Say) -> ReportFolder | None:
    """Draw the sweep's report into a temporary folder; return None and say why if that fails."""
    folder = tempfile.TemporaryDirectory()
    try:
        artifacts.draw_report(home, Path(folder.name))
    except Exception as error:  # noqa: BLE001  # whatever drawing raises, the sweep keeps its exit code
        folder.cleanup()
        _say_no_report(error, say)
        return None
    return folder


def send_report(store: Tracker, home: Path, report: ReportFolder, say: Say) -> None:
    """Send the report, or say why that fails, and remove its folder."""
    with report as folder:
        try:
            store.log_report(sweep_folder.id_of(home), Path(folder))
        except TrackingError as error:
            _say_no_report(error, say)


def _say_no_report(error: Exception, say: Say) -> None:
    say(f"kvexp: {error or type(error).__name__}; the runs have no report, and kvexp sync tries again")


def list_curves(home: Path) -> list[Path]:
    """List the curves' folders of a sweep that hold rows, in order."""
    return sorted((file.parent for file in home.glob(f"*/{ROWS}")), key=_number)


def _sync_sweep(home: Path, store: Tracker, counts: SyncCounts, say: Say) -> None:
    sweep_id, folders = sweep_folder.id_of(home), list_curves(home)
    missing = store.missing(sweep_id, folders)
    counts.already_sent += len(folders) - len(missing)
    if missing:
        name, provenance = sweep_folder.name_of(home), sweep_folder.read_provenance(home)
        store.start_sweep(sweep_id, _read_command(home), resumes=True, name=name, provenance=provenance)
        try:
            sent = send_curves(store, missing, say)
        except TrackingError as error:
            if not error.unreachable:
                with suppress(TrackingError):
                    store.end_sweep("FAILED")
            raise
        rows = [row for job in folders for row in _read_rows(job, lambda _: None)]
        store.end_sweep("FAILED" if any(is_wrong(row["status"]) for row in rows) else "FINISHED")
        counts.sent += sent
        counts.refused += len(missing) - sent
        say(f"{home}: sent {sent} of {len(folders)} curves")
    if (missing or store.lacks_report(sweep_id)) and (report := draw_report(home, say)):
        send_report(store, home, report, say)


def _read_rows(job: Path, say: Say) -> list[Row]:
    """Read the rows in the curve's folder; say why and return none where they cannot be read."""
    try:
        return list(read(job, say))
    except KvexpError as error:
        gone = find_gone(job)
        say(f"left out: {f'{gone} is gone' if gone else error}")
        return []


def _find_sweeps(root: Path) -> list[Path]:
    """Find the folders of sweeps that hold rows, the oldest first."""
    return sorted({file.resolve().parent.parent for file in root.rglob(ROWS)}) if root.is_dir() else []


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name) if job.name.isdecimal() else -1), job.name


def _read_command(home: Path) -> str:
    """Return the sweep's command line; empty where its folder has none."""
    try:
        overrides, flags = sweep_folder.read_command(home)
    except ConfigError:
        return ""
    return mask_secrets(" ".join(["python", "-m", "kvexp", *flags, *overrides]))


def _read_target(job: Path) -> str:
    """Return the implementation's class as text for a tag; it is not imported."""
    try:
        with open(job / ".hydra" / "config.yaml", "rb", opener=open_regular) as handle:
            content = yaml.safe_load(handle.read(_LARGEST_CONFIG_BYTES))
        target = content["impl"]["_target_"]
        return target if isinstance(target, str) else ""
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, RecursionError):
        return ""
