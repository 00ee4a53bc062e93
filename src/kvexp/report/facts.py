"""Say what a machine's lines share, on which machine and software, and in which state each was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvexp.case import DEFAULTS
from kvexp.measurement import COLUMNS, ENVIRONMENT, MACHINE, SECONDS, Row
from kvexp.report.curves import Line, find_varied
from kvexp.report.format import DASH, join_words, number
from kvexp.report.outcomes import unique
from kvexp.results.conf_files import list_options, read_option
from kvexp.results.labels import NAME, OPTIONS, TOGETHER, format_column, read_options
from kvexp.results.load import COMMAND, SWEEP
from kvexp.results.merge import GPUS, INTERVALS, LATENCIES, PROCESSES
from kvexp.results.overrides import quote_value

_TOLD_ELSEWHERE = {*COLUMNS, SWEEP, COMMAND, NAME, PROCESSES, LATENCIES, INTERVALS, GPUS} - {
    *SECONDS,
    *ENVIRONMENT,
    "impl_hash",
}
_COMMON = (
    *("op", "impl", "layout", "dtype", "kv_cache_dtype", "mode", "timer", "workload"),
    *("num_heads", "head_size", "head_size_v", "block_size", "num_blocks", "slots"),
)
_UNSAID = ("auto", None, "")


@dataclass(frozen=True)
class State:
    """The state of the machine while each line was measured.

    Attributes:
        columns: Names of what was read.
        lines: Each line's label and its texts, from least to most.
    """

    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]


def describe_common(lines: Sequence[Line]) -> str:
    """Describe the choices and sizes that do not vary, and what each varied choice stands for."""
    columns = [*_COMMON, *(key for key in DEFAULTS if key not in _COMMON)]
    common = []
    for column in columns:
        rows = [line.points[0] if column in ("mode", "timer") else line.key for line in lines]
        default = DEFAULTS.get(column) if column not in _COMMON else None
        values = {row.get(column, default) for row in rows}
        if len(values) == 1 and not values & {*_UNSAID, default}:
            said = format_column(rows[0], column)
            common.append(f"workload={said}" if column == "workload" else said)
    return "; ".join(filter(None, [", ".join(common), *_describe_choices(lines), *_describe_options(lines)]))


def collect_facts(rows: Sequence[Row]) -> dict[str, str]:
    """Collect each column about the machine or the software, and the parts of the time, with its values."""
    facts = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        values = unique(row[column] for row in rows if row.get(column) is not None)
        if values and column not in _TOLD_ELSEWHERE:
            facts[column] = _format_values(values)
    return facts


def collect_states(lines: Sequence[Line]) -> State:
    """Collect what was read of the GPU while each line was measured; without what was never read."""
    columns = [
        column
        for column in MACHINE
        if any(row.get(column) not in (None, "") for line in lines for row in line.points)
    ]
    read = [(line.label, tuple(_format_state(line.points, column) for column in columns)) for line in lines]
    return State(tuple(columns), tuple(read) if columns else ())


def _describe_choices(lines: Sequence[Line]) -> list[str]:
    """Describe the columns that differ only with a choice that names do tell: the sizes of a workload."""
    told = find_varied(lines)
    found = []
    for choice in (choice for choice in TOGETHER if choice in told):
        columns = [
            column for column in TOGETHER[choice] if column not in told and _follows(column, choice, lines)
        ]
        told = [*told, *columns]
        for key in {line.key.get(choice): line.key for line in lines}.values():
            own = [format_column(key, column) for column in columns if key.get(column) != key.get(choice)]
            if own:
                found.append(f"{format_column(key, choice)} is {join_words(own)}")
    return found


def _follows(column: str, choice: str, lines: Sequence[Line]) -> bool:
    """Return whether the column differs among the lines, and has one value for each of the choice."""
    pairs = {(line.key.get(choice), line.key.get(column)) for line in lines}
    choices, values = ({pair[number] for pair in pairs} for number in (0, 1))
    return len(values) > 1 and len(pairs) == len(choices)


def _describe_options(lines: Sequence[Line]) -> list[str]:
    """Describe the options in which all lines of a choice agree, where they are not those of conf/."""
    found = []
    for group in OPTIONS:
        for name in unique(str(line.points[0].get(group)) for line in lines):
            own = [line for line in lines if str(line.points[0].get(group)) == name]
            options = [read_options(line.points[0], group) for line in own]
            usual: Mapping[str, Any] = read_option(group, name) if name in list_options(group) else {}
            words = [
                f"{option}={quote_value(value)}"
                for option, value in options[0].items()
                if all(other.get(option, ...) == value for other in options)
                and usual.get(option, ...) != value
            ]
            found += [f"{name} has {join_words(words)}"] * bool(words)
    return found


def _format_values(values: Sequence[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(values) == 1 and not isinstance(values[0], float):
        return str(values[0])
    if len(numbers) == len(values):
        return " to ".join(unique(map(number, (min(numbers), max(numbers)))))
    return ", ".join(str(value) for value in values[:4]) + (", …" if len(values) > 4 else "")


def _format_state(rows: Sequence[Row], column: str) -> str:
    values = unique(row[column] for row in rows if row.get(column) not in (None, ""))
    if not values:
        return DASH
    if isinstance(values[0], str):
        return ", ".join(values)
    if column.endswith("_bytes"):
        return DASH.join(unique(f"{value / 1e9:.1f} GB" for value in (min(values), max(values))))
    return DASH.join(unique(f"{value:,.0f}" for value in (min(values), max(values))))
