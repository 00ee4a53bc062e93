"""Follow the points of a baseline through the revisions of git in which it was written."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvexp.measurement import Row
from kvexp.results.compare import compare_point, label_cases
from kvexp.results.labels import group_rows
from kvexp.results.point_identity import CASE
from kvexp.results.verdict import get_latency_us

CHANGES = ("broken", "missing", "slower", "faster", "new")
"""The verdicts that are changes."""

_COLUMNS = ("device_name", *(column for column in CASE if column != "device"))


@dataclass(frozen=True)
class Revision:
    """A commit that wrote a baseline.

    Attributes:
        commit: Its hash, abbreviated.
        date: Its day, `2026-11-21`.
        subject: The first line of its message.
        rows: The baseline of every device.
    """

    commit: str
    date: str
    subject: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Change:
    """A commit at which a point became something else than it was since the last change.

    Attributes:
        commit: Its abbreviated hash.
        word: One of CHANGES.
        ratio: The latency over that since the last change; None where one of them is not known.
    """

    commit: str
    word: str
    ratio: float | None


@dataclass(frozen=True)
class Line:
    """One point through all revisions.

    Attributes:
        label: Its curve's name.
        device_name: The GPU or CPU.
        num_tokens: Its size.
        latencies_us: Its latency at each revision; None where it was not timed.
        changes: The commits at which it changed.
    """

    label: str
    device_name: str
    num_tokens: int
    latencies_us: tuple[float | None, ...]
    changes: tuple[Change, ...]

    @property
    def ratio(self) -> float | None:
        """The last known latency over the first one."""
        known = [latency for latency in self.latencies_us if latency is not None]
        return known[-1] / known[0] if known else None


def trace(revisions: Sequence[Revision], tolerance: float | None = None) -> list[Line]:
    """Follow each point; those that changed most come first.

    A revision is compared with the last one that was a change, so that many small steps are seen as well.
    """
    sides = [group_rows(revision.rows, _COLUMNS) for revision in revisions]
    names = label_cases([row for revision in revisions for row in revision.rows], _COLUMNS)
    keys = dict.fromkeys(key for side in sides for key in side)
    lines = [
        _trace_point(names[key], revisions, [side.get(key, []) for side in sides], tolerance) for key in keys
    ]
    return sorted(lines, key=lambda line: (-abs((line.ratio or 1) - 1), line.label, line.num_tokens))


def _trace_point(
    label: str, revisions: Sequence[Revision], rows: Sequence[Sequence[Row]], tolerance: float | None
) -> Line:
    since, changes = rows[0], []
    for revision, now in zip(revisions[1:], rows[1:], strict=True):
        point = compare_point(label, since, now, tolerance) if since or now else None
        if point is not None and point.word in CHANGES:
            ratio = point.verdict.ratio if point.verdict else None
            changes.append(Change(revision.commit, point.word, ratio))
            since = now
    any_row = next(row for side in rows for row in side)
    return Line(
        label,
        str(any_row.get("device_name")),
        any_row["num_tokens"],
        tuple(_find_latency(side) for side in rows),
        tuple(changes),
    )


def _find_latency(rows: Sequence[Row]) -> float | None:
    timed = [row for row in rows if row["status"] == "ok"]
    return get_latency_us(timed) if timed else None
