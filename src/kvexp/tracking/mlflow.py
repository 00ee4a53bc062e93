"""Track rows in MLflow: a parent run for the sweep, a child run for each curve.

Only `kvexp.tracking.connect` imports this, after `quiet`. Runs are addressed by their ids: MLflow's active
run would leak from one job into the next, and a child process would inherit a tracking URI.
"""

import os
import socket
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param, Run, RunTag

from kvexp import __version__
from kvexp.errors import KvexpError, TrackingError
from kvexp.host.addresses import mask_address, mask_secrets
from kvexp.host.plain_file import find_gone
from kvexp.measurement import Row, is_wrong
from kvexp.report.panels import PALETTE
from kvexp.results.point_identity import REPETITION
from kvexp.results.provenance import Provenance
from kvexp.results.row_file import ROWS, SAMPLES, TRACEBACKS
from kvexp.results.sweep_dir import is_id
from kvexp.tracking import UNKNOWN, artifacts, run_data, ui_views
from kvexp.tracking.sqlite import is_alive, read_pid_namespace, read_start_time
from kvexp.tracking.store import (
    convert_errors,
    describe_error,
    ignore_refusals,
    is_refusal,
    open_store,
    silence_loggers,
)

_BATCH = 1000  # entities of one log_batch, params included: mlflow.utils.validation
_PAGE = 1000  # runs of one answer
_WHOLE = "kvexp.whole"
"""The tag that a curve's run gets last; a run without it was interrupted."""
_NO_FIGURE = "kvexp.no_figure"
"""The tag with the reason why a curve's figure could not be drawn."""
_REPORTED = "kvexp.reported"
"""The tag of a sweep's run, `true` or `false`: whether it has the report of all its curves."""
_PID_NAMESPACE = "kvexp.pid_namespace"
"""The tag that says among which processes `kvexp.pid` is one: containers may share a host's name."""
_DESCRIBED = "kvexp.described"
"""The tag of a sweep's run with the checksum of the description that was written here."""


class MlflowTracker:
    """An open store; its database and the experiment exist. See `TrackingSettings` for the arguments.

    The tags are those of every run, also where the sweep's record has others.

    Raises:
        TrackingError: The store cannot be reached or created.
    """

    def __init__(self, uri: str, experiment: str, tags: Mapping[str, str] | None = None) -> None:
        self.uri = mask_address(uri)
        self.refused: list[str] = []
        self.asks_first = False
        self._address = uri
        self._host = socket.gethostname()
        self._own_tags, self._provenance = tags or {}, UNKNOWN
        self._sweep_id = self._name = ""
        self._parent_id = ""
        self._sent = 0
        silence_loggers()
        with convert_errors(uri):
            self._client, self._experiment_id = open_store(uri, experiment)
        served = uri.startswith("http")
        self.page = f"{self.uri.rstrip('/')}{ui_views.page_path(self._experiment_id)}" if served else ""

    def start_sweep(
        self,
        sweep_id: str,
        command: str,
        resumes: bool = False,
        name: str = "",
        began_ms: int | None = None,
        provenance: Provenance = UNKNOWN,
    ) -> None:
        """See `Tracker`; runs whose process died on this host are ended first."""
        self._sweep_id, self._name, self._sent = sweep_id, name or sweep_id, 0
        self._parent_id, self._provenance = "", provenance
        tags = run_data.fit({**self._tags(), "command": command, "kvexp": __version__, _REPORTED: "false"})
        with convert_errors(self._address, is_open=True):
            self._end_stale_runs()
            earlier = self._parents(sweep_id) if resumes or self.asks_first else []
            if earlier:
                self._parent_id = earlier[0].info.run_id
                self._client.update_run(self._parent_id, status="RUNNING")
                self._client.log_batch(self._parent_id, tags=[RunTag(*tag) for tag in tags.items()])
                present = earlier[0].data.params
            else:
                run = self._client.create_run(self._experiment_id, began_ms, tags, self._name)
                self._parent_id, present = run.info.run_id, {}
            self._log_params({key: text for key, text in provenance.params.items() if key not in present})
            with ignore_refusals():
                self._show_sweep()

    def log_curve(self, folder: Path, target: str, rows: Sequence[Row]) -> None:
        """See `Tracker`; a curve without rows has no run, and one that is refused a FAILED one."""
        if not rows:
            return
        if not self._parent_id:  # the caller may not know yet that `start_sweep` failed
            raise TrackingError(f"the tracking store {self.uri} cannot be used: it has no run of the sweep")
        if self.asks_first and not self.missing(self._sweep_id, [folder]):
            return
        tags = {
            **self._tags(),
            "mlflow.parentRunId": self._parent_id,
            "kvexp.curve": f"{self._name}/{folder.name}",
            "impl_target": target,
            "mlflow.runColor": PALETTE[self._sent % len(PALETTE)],
            **run_data.tags(rows),
        }
        run_id = ""
        try:
            with convert_errors(self._address, is_open=True):
                name, begin_ms = run_data.name(rows[0]), min(map(run_data.milliseconds, rows))
                end_ms = run_data.ended_ms(rows)
                run = self._client.create_run(self._experiment_id, begin_ms, run_data.fit(tags), name)
                run_id = run.info.run_id
                self._log_numbers(run_id, rows)
                self._log_files(run_id, folder, rows)
                status = "FAILED" if is_wrong(run_data.status(rows)) else "FINISHED"
                self._client.set_terminated(run_id, status, end_ms)
                self._client.set_tag(run_id, _WHOLE, "true")  # last: a run without it is sent again
                if not self._sent:
                    with ignore_refusals():
                        self._tag_parent(rows)
        except TrackingError as error:
            self._leave_out(folder, rows, run_id, error)
        else:
            self._sent += 1

    def settle(self) -> None:
        """Do nothing: every method returns when all is sent."""

    def end_sweep(self, status: str) -> None:
        """End the parent run, and count the points of all its curves."""
        with convert_errors(self._address, is_open=True):
            runs = self._complete_runs(self._sweep_id).values()
            counts = {key: sum(run.data.metrics.get(key, 0.0) for run in runs) for key in run_data.counts([])}
            metrics = [Metric(key, value, _now_ms(), 0) for key, value in counts.items() if runs]
            self._client.log_batch(self._parent_id, metrics=metrics)
            self._client.set_terminated(self._parent_id, status)

    def log_report(self, sweep_id: str, folder: Path) -> None:
        """See `Tracker`; the findings of the report, by `artifacts.draw_report`, become the description."""
        with convert_errors(self._address, is_open=True):
            note = (folder / artifacts.MARKDOWN).read_text("utf-8").partition("\n### ")[0].strip()
            parent = self._parent(sweep_id)
            parent_id = parent.info.run_id
            for name in (artifacts.PAGE, artifacts.MARKDOWN):
                self._client.log_artifact(parent_id, str(folder / name))
            self._client.log_batch(parent_id, tags=_make_note_tags(parent, note))

    def lacks_report(self, sweep_id: str) -> bool:
        """See `Tracker`."""
        with convert_errors(self._address, is_open=True):
            return any(run.data.tags.get(_REPORTED) != "true" for run in self._parents(sweep_id)[:1])

    def missing(self, sweep_id: str, folders: Sequence[Path]) -> list[Path]:
        """See `Tracker`."""
        with convert_errors(self._address, is_open=True):
            self._end_stale_runs()
            complete = self._complete_runs(sweep_id)
            run_ids = {run.info.run_id for run in complete.values()}
            for run in self._runs(sweep_id):
                if "mlflow.parentRunId" not in run.data.tags:
                    # Whoever asks holds the sweep's folder: nobody else is at work, here or elsewhere.
                    if run.info.status == "RUNNING" and run.info.run_id != self._parent_id:
                        self._client.set_terminated(run.info.run_id, "KILLED")
                elif run.info.run_id not in run_ids:
                    self._client.delete_run(run.info.run_id)
        return [folder for folder in folders if folder.name not in complete]

    def _leave_out(self, folder: Path, rows: Sequence[Row], run_id: str, error: TrackingError) -> None:
        """Report that a curve is refused or gone, and end its run; raise where the store is to blame.

        It is, where it does not take the run's end either, or for want of a run the sweep's status once more.
        """
        if error.unreachable:
            raise error
        try:
            if run_id:
                self._client.set_terminated(run_id, "FAILED")
            else:
                self._client.update_run(self._parent_id, "RUNNING")
        except Exception:  # noqa: BLE001  # the first error says more
            raise error from error.__cause__
        if gone := find_gone(folder / ROWS):
            self.refused.append(f"{gone} is gone")
            return
        if not is_refusal(error.__cause__):
            raise error
        lines = f"lines 1 to {len(rows)}" if len(rows) > 1 else "line 1"
        why = describe_error(error.__cause__ or error, self._address)
        self.refused.append(f"{folder / ROWS}, {lines}: MLflow refuses the curve: {why}")

    def _runs(self, sweep_id: str) -> list[Run]:
        """Find every run of the sweep, the oldest first."""
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                ui_views.filter_sweep(sweep_id),
                max_results=_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found += [run for run in page if _read_sweep_id(run) == sweep_id]
            token = page.token
            if not token:
                return found

    def _parents(self, sweep_id: str) -> list[Run]:
        return [run for run in self._runs(sweep_id) if "mlflow.parentRunId" not in run.data.tags]

    def _parent(self, sweep_id: str) -> Run:
        """Find the sweep's run: the one that was started here, else the oldest of that name."""
        parents = self._parents(sweep_id)
        if not parents:
            raise KvexpError(f"the run of the sweep {sweep_id} is gone")
        return next((run for run in parents if run.info.run_id == self._parent_id), parents[0])

    def _complete_runs(self, sweep_id: str) -> dict[str, Run]:
        """Find the run of each curve that was sent completely, by its folder's name."""
        runs = [run for run in reversed(self._runs(sweep_id)) if _WHOLE in run.data.tags]
        return {Path(run.data.tags.get("kvexp.curve", "")).name: run for run in runs}

    def _tags(self) -> dict[str, str]:
        """Return the tags of every run: its origin, which sweep it belongs to, which process writes it."""
        return {
            **self._provenance.tags,
            **self._own_tags,
            "kvexp.sweep": self._name,
            **({"kvexp.sweep_id": self._sweep_id} if is_id(self._sweep_id) else {}),
            "kvexp.pid": str(os.getpid()),
            "kvexp.pid_started": read_start_time(os.getpid()),
            _PID_NAMESPACE: read_pid_namespace(),
            "host": self._host,
        }

    def _show_sweep(self, repeats: bool = False) -> None:
        """Make the view of the last sweep one of this sweep; where it repeats curves, one grouped by them."""
        view = ui_views.last_sweep(self._sweep_id, list(self._provenance.params), repeats)
        self._client.set_experiment_tag(self._experiment_id, *view.to_tag(_now_ms()))

    def _tag_parent(self, rows: Sequence[Row]) -> None:
        """Say what is known once the first curve is measured: machine, versions, whether curves repeat."""
        if rows[0].get(REPETITION):
            self._show_sweep(repeats=True)
        tags = [RunTag(key, value) for key, value in run_data.environment(rows).items()]
        self._client.log_batch(self._parent_id, tags=tags[:100])

    def _log_params(self, params: Mapping[str, str]) -> None:
        """Log those of the sweep's run; a store takes each once, and no other value later."""
        if fitting := [Param(*param) for param in run_data.fit(params).items()]:
            self._client.log_batch(self._parent_id, params=fitting[:100])

    def _log_numbers(self, run_id: str, rows: Sequence[Row]) -> None:
        """Send params and metrics in one request, unless there are more metrics than one may hold."""
        params = [Param(key, value) for key, value in run_data.params(rows[0]).items()]
        metrics = [Metric(*point) for point in run_data.metrics(rows)]
        metrics += [Metric(key, value, _now_ms(), 0) for key, value in run_data.scalars(rows).items()]
        first = _BATCH - len(params)
        self._client.log_batch(run_id, metrics=metrics[:first], params=params)
        for start in range(first, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _BATCH])

    def _log_files(self, run_id: str, folder: Path, rows: Sequence[Row]) -> None:
        """Send rows, samples and tracebacks, the configuration with passwords masked, and the figure.

        What is a symbolic link is not sent: it may point at anything of this user's. Nor is a pipe.
        """
        for name in (ROWS, SAMPLES, TRACEBACKS):
            file = folder / name
            # Rows that are gone are an error: without them the curve is not whole.
            if (file.is_file() or (name == ROWS and not file.exists())) and not file.is_symlink():
                self._client.log_artifact(run_id, str(file))
        for name in ("config.yaml", "overrides.yaml"):
            file = folder / ".hydra" / name
            if file.is_file() and not file.is_symlink():
                text = mask_secrets(file.read_text("utf-8", errors="replace"))
                self._client.log_text(run_id, text, f"config/{name}")
        with tempfile.TemporaryDirectory() as figures:
            why_not = artifacts.draw_figure(rows, Path(figures))
            self._client.log_artifacts(run_id, figures)
        if why_not:
            for tag in run_data.fit({_NO_FIGURE: why_not}).items():
                self._client.set_tag(run_id, *tag)

    def _end_stale_runs(self) -> None:
        """End the runs of this host and container whose process is gone as KILLED: nothing else would."""
        running = f"attributes.status = 'RUNNING' and tags.host = '{self._host}'"
        for run in self._client.search_runs([self._experiment_id], running):
            tags = run.data.tags
            is_here = tags.get(_PID_NAMESPACE, "") == read_pid_namespace()
            if is_here and not is_alive(tags.get("kvexp.pid", ""), tags.get("kvexp.pid_started", "")):
                self._client.set_terminated(run.info.run_id, "KILLED")


def _read_sweep_id(run: Run) -> str:
    """Return the id of the run's sweep, or its name where it has none."""
    tags = run.data.tags
    return tags.get("kvexp.sweep_id") or tags.get("kvexp.sweep", "")


def _make_note_tags(parent: Run, note: str) -> list[RunTag]:
    """Make the tags of a sweep's run with a report; keep a description that a person wrote."""
    present = parent.data.tags.get(run_data.NOTE, "")
    tags = [RunTag(_REPORTED, "true")]
    if present and parent.data.tags.get(_DESCRIBED) != _checksum(present):
        return tags
    for text in run_data.fit({run_data.NOTE: note}).values():
        tags += [RunTag(run_data.NOTE, text), RunTag(_DESCRIBED, _checksum(text))]
    return tags


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _now_ms() -> int:
    return int(time.time() * 1000)
