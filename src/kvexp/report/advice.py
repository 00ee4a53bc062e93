"""Say what to take: what is right, and certainly faster than all others, for each task that was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvexp.report.curves import WAYS, Line, Machine, describe, find_varied
from kvexp.report.findings import Finding, select_confirmed
from kvexp.report.format import join_or, join_words, number, tokens
from kvexp.report.leaders import describe_sizes, find_fastest, find_shared_sizes, format_leads, rank
from kvexp.report.speedups import judge_points
from kvexp.results.conf_files import list_options, read_option
from kvexp.results.labels import read_options
from kvexp.results.verdict import Verdict

_MOST_TASKS = 3
"""Tasks in the title of a page; of more it says how many there are."""
_MOST_WAYS = 3
"""Ways that are named one by one where they are the most."""
_CLEAR = 1.1
"""How many times as fast needs no third decimal."""


@dataclass(frozen=True)
class Pick:
    """Name what to take at some sizes.

    Attributes:
        names: The ways, in words; no difference between them was found.
        where: In words, at which sizes nothing is certainly faster than they are; empty for all.
        leads: In words, at which of these they are certainly faster, and how many times.
    """

    names: str
    where: str
    leads: str

    @property
    def short(self) -> str:
        """Return what to take, and where."""
        return f"{self.names}{self.where and ' '}{self.where}"


@dataclass(frozen=True)
class Task:
    """One task, which several lines do in different ways.

    Attributes:
        name: What distinguishes it from the machine's other tasks, in words; empty for the only one.
        group: Its lines that may be taken, by their ways in words.
        picks: What to take, first where the most sizes are; empty where nothing is certain.
    """

    name: str
    group: Mapping[str, Line]
    picks: tuple[Pick, ...]

    @property
    def short(self) -> str:
        """Return what to take, without how much faster it is."""
        return ", and ".join(pick.short for pick in self.picks)


def list_tasks(machine: Machine) -> list[Task]:
    """List the tasks that two lines or more do."""
    columns = find_varied(machine.ranked)
    ways, rest = ([column for column in columns if (column in WAYS) == is_way] for is_way in (True, False))
    found: dict[object, list[Line]] = {}
    for line in machine.ranked:
        found.setdefault(line.task, []).append(line)
    return [
        _make_task(
            describe(lines[0], rest),
            {describe(line, ways) or "as it comes": line for line in select_confirmed(lines)},
        )
        for lines in found.values()
        if len(lines) > 1
    ]


def describe_tasks(tasks: Sequence[Task]) -> list[Finding]:
    """Describe what to take for each task; tasks of which the same is said share a sentence."""
    found: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        for pick in task.picks:
            found.setdefault((pick.short, pick.leads), []).append(task.name)
    return [
        Finding(_start_upper(f"{_format_tasks(own)}take {short}"), leads, short)
        for (short, leads), own in found.items()
    ]


def make_title(machine: Machine, tasks: Sequence[Task]) -> str:
    """Make the title of a machine's part of a page: the answer, or what was asked where there is none."""
    answers: dict[str, list[str]] = {}
    for task in tasks:
        if task.picks:
            answers.setdefault(task.short, []).append(task.name)
    if not answers:
        return _describe_question(machine, tasks)
    if len(answers) > _MOST_TASKS:
        return f"What to take differs among {len(tasks)} tasks"
    rest = [task.name for task in tasks if not task.picks]
    if len(answers) == 1 and not rest:
        return f"Take {next(iter(answers))}"
    parts = [f"{_format_tasks(own)}take {short}" for short, own in answers.items()]
    if rest:
        parts.append(f"{_format_tasks(rest)}no choice can be told")
    return _start_upper("; ".join(parts))


def _describe_question(machine: Machine, tasks: Sequence[Task]) -> str:
    """Describe what was measured where there is nothing to take."""
    if tasks:
        names = list(dict.fromkeys(name for task in tasks for name in task.group))
        what = f"between {join_words(names)}" if len(names) <= _MOST_TASKS else f"among {len(names)} ways"
        return f"No choice can be told {what}"
    if len(machine.lines) == 1:
        (line,) = machine.lines
        ends = dict.fromkeys(
            f"{number(row['latency_us'])} µs for {tokens(row['num_tokens'])}"
            for row in (line.points[0], line.points[-1])
        )
        return f"{line.label} takes {join_words(list(ends))}"
    columns = list(dict.fromkeys(name.removesuffix("_options") for name in find_varied(machine.lines)))
    return f"What a call takes by {join_words(columns)}"


def _make_task(name: str, group: Mapping[str, Line]) -> Task:
    sizes = find_shared_sizes(group.values())
    fastest = {size: find_fastest(group, size) for size in sizes}
    certain = {size: names for size in sizes if (names := _find_certain(group, size, fastest[size]))}
    picks, left = list[Pick](), sizes
    while any(size in certain for size in left):
        # Of each way the sizes at which nothing is certainly faster, and those at which it is itself.
        covered = {
            way: tuple(
                tuple(size for size in left if way in held.get(size, ())) for held in (fastest, certain)
            )
            for way in group
        }
        most = max((own for own in covered.values() if own[1]), key=lambda own: (len(own[0]), len(own[1])))
        names = tuple(way for way, own in covered.items() if own == most)
        leads = _describe_leads(group, names, {size: fastest[size] for size in most[1]})
        where = describe_sizes(most[1], sizes)
        others = [size for size in most[0] if size not in most[1]]
        rest = f"; {describe_sizes(others, sizes)} nothing is certainly faster" if others else ""
        said = f"{_start_upper(where)}: {leads}{rest}."
        picks.append(Pick(_shorten(names, group), _describe_range(most[0], sizes), said))
        left = [size for size in left if size not in most[0]]
    return Task(name, group, tuple(picks))


def _find_certain(group: Mapping[str, Line], size: int, fastest: Sequence[str]) -> tuple[str, ...]:
    """Find those of the fastest that are certainly faster than all others; none where all are fastest."""
    ranked = rank(group, size)
    others = [name for name in ranked if name not in fastest]
    return tuple(
        name
        for name in fastest
        if others and all(judge_points(ranked[name], ranked[other]).word == "slower" for other in others)
    )


def _describe_range(some: Sequence[int], sizes: Sequence[int]) -> str:
    """Describe as `from 512 tokens on` or `up to 64 tokens`, or one by one; empty for all sizes."""
    if len(some) == len(sizes):
        return ""
    if len(some) > 1 and list(some) == list(sizes[-len(some) :]):
        return f"from {tokens(some[0])} on"
    if len(some) > 1 and list(some) == list(sizes[: len(some)]):
        return f"up to {tokens(some[-1])}"
    return describe_sizes(some, sizes)


def _shorten(names: Sequence[str], group: Mapping[str, Line]) -> str:
    """Name the ways, or of many the few others."""
    others = [name for name in group if name not in names]
    return f"anything but {join_or(others)}" if len(names) > max(_MOST_WAYS, len(others)) else join_or(names)


def _describe_leads(
    group: Mapping[str, Line], names: Sequence[str], leaders: Mapping[int, Sequence[str]]
) -> str:
    """Describe how many times as fast these are as the next of each implementation, and as the default."""
    chosen = {group[name].key["impl"] for name in names}
    has_options = any(line.key["impl_options"] != "{}" for line in group.values())
    told: list[tuple[str, dict[str, list[Verdict]]]] = []
    for impl in dict.fromkeys(str(line.key["impl"]) for line in group.values()):
        own = [name for name, line in group.items() if line.key["impl"] == impl]
        following = _compare(group, names, leaders, own)
        usual = [name for name in own if impl in chosen and has_options and _has_default_options(group[name])]
        default = _compare(group, names, leaders, usual)
        if default:
            told.append((f"{impl}'s default", default))
        if default != following:
            several = f"the next {impl}" if impl in chosen else impl
            told.append((next(iter(following)) if len(following) == 1 else several, following))
    leads = [(_list_ratios(verdicts), whom) for whom, verdicts in told if verdicts]
    return "; ".join(
        _format_lead(found, whom) for found, whom in sorted(leads, key=lambda lead: min(lead[0]))
    )


def _compare(
    group: Mapping[str, Line],
    names: Sequence[str],
    leaders: Mapping[int, Sequence[str]],
    rivals: Sequence[str],
) -> dict[str, list[Verdict]]:
    """Judge the ways, at each size, against the fastest rival that does not share the lead; by its name."""
    found: dict[str, list[Verdict]] = {}
    for size, leading in leaders.items():
        ranked = rank(group, size)
        others = [name for name in ranked if name in rivals and name not in leading]
        if others:
            verdicts = [judge_points(ranked[name], ranked[others[0]]) for name in names]
            found.setdefault(others[0], []).extend(verdicts)
    return found


def _list_ratios(against: Mapping[str, Sequence[Verdict]]) -> list[tuple[float, float]]:
    """List how many times as fast, and how many times at least."""
    return [(verdict.ratio, verdict.low) for verdicts in against.values() for verdict in verdicts]


def _format_lead(ratios: Sequence[tuple[float, float]], whom: str) -> str:
    lowest = min(low for _, low in ratios)
    least = number(lowest) if lowest > _CLEAR else f"{lowest:.3f}"
    return f"{format_leads(ratio for ratio, _ in ratios)} as fast as {whom} (at least {least})"


def _has_default_options(line: Line) -> bool:
    impl = str(line.key["impl"])
    options = read_options(line.points[0], "impl")
    return impl in list_options("impl") and all(
        read_option("impl", impl).get(option, ...) == value for option, value in options.items()
    )


def _format_tasks(names: Sequence[str]) -> str:
    return f"with {join_words(list(names))} " if any(names) else ""


def _start_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
