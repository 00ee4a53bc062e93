"""Pose the clauses of the contract to an implementation: in small calls, and at the sizes of a curve.

A plain call comes first at each size. Where it writes wrong bytes that is told as a breach; where it raises
something, or is refused, measuring says more, and nothing is said of the clauses at that size. In a small
call each clause is posed alone. At a curve's own sizes, on the path that is timed, one call poses most
clauses at once; where it is wrong each is posed alone, so that the one which is broken can be named.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from kvexp.bench import mode
from kvexp.bench.contract import CLAUSES, PLAIN, SMALL, Contract, Finding, Outcome
from kvexp.bench.contract.pose import Posed
from kvexp.bench.contract.questions import QUESTIONS, STATES, Question, combine
from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout
from kvexp.op import Call, Op

MIXED = "mixed"

EDGES = ("negatives", "past_end", "special_values")
"""Clauses that a mixed call leaves out: little hangs on two, and whoever compares finds no NaN."""
FEW = 8
"""Tokens of a call in which not each of these can be seen at once."""
ONCE = ("no_tokens", "misaligned")
"""Clauses that small calls decide."""
REPEATS = 16
"""Further runs of a small call with the same inputs; of a larger one there is one."""

Ask = tuple[str, int]
"""What is asked, a clause, PLAIN or MIXED, and the number of tokens."""


@dataclass(frozen=True)
class Asked:
    """Who is asked, and in which combination.

    Attributes:
        impl: The implementation.
        op: What it is to write.
        layout: Where.
        source: Type of keys and values.
        case: The other sizes, types, mode and device.
    """

    impl: Any
    op: Op
    layout: Layout
    source: torch.dtype
    case: Case


def find(
    asked: Asked,
    sizes: Sequence[int],
    died: Collection[Ask] = (),
    tell: Callable[[Ask], None] = lambda ask: None,
    skip: Collection[str] = (),
) -> Contract:
    """Pose every clause.

    Args:
        asked: Who is asked.
        sizes: Numbers of tokens at which clauses are posed besides the small ones.
        died: What has ended a process; it is not asked again, and broken.
        tell: Called before each question.
        skip: Clauses that are not posed.
    """
    refreshed = hasattr(asked.impl, "refresh")
    found: dict[str, Finding] = {}
    posed: list[int] = []

    def pose(clause: str, num_tokens: int, *questions: Question) -> Finding:
        return _finding(asked, clause, num_tokens, questions, died, tell)

    plain = pose(PLAIN, SMALL, Question())
    if plain.outcome != "holds":
        return Contract((), (), refreshed, (plain,))
    wrong: list[Finding] = []
    for clause, questions in QUESTIONS.items():
        if clause not in skip:
            own = _of_that_alone(questions, found) if clause == "misaligned" else questions
            found[clause] = pose(clause, 0 if clause == "no_tokens" else SMALL, *own)
    found.update(_mixed(pose, SMALL, found, posed_alone=True))
    for num_tokens in sizes:
        try:
            plain = pose(PLAIN, num_tokens, Question())
            if plain.outcome != "holds":
                wrong.append(plain)
                continue
            found.update(_edges(pose, num_tokens, found))
            found.update(_mixed(pose, num_tokens, found))
        except torch.OutOfMemoryError:  # nothing is said of this size
            torch.cuda.empty_cache()
        else:
            posed.append(num_tokens)
    findings = tuple(found[clause] for clause in CLAUSES if clause in found)
    return Contract(findings, tuple(posed), refreshed, tuple(wrong))


def _of_that_alone(questions: Sequence[Question], found: Mapping[str, Finding]) -> Sequence[Question]:
    """Return the questions without what is known to be broken whatever the addresses."""
    if not _holds(found, "strided_rows"):
        questions = [question for question in questions if question.gaps == (0, 0)]
    if not _holds(found, "fresh_inputs"):
        questions = [replace(question, fresh_inputs=False) for question in questions]
    return questions


def _holds(found: Mapping[str, Finding], clause: str) -> bool:
    return clause in found and found[clause].outcome == "holds"


def _edges(pose: Callable[..., Finding], num_tokens: int, found: Mapping[str, Finding]) -> dict[str, Finding]:
    """Return those of EDGES that do not hold at this size, of those that held so far."""
    clauses = [clause for clause in EDGES if _holds(found, clause)]
    if num_tokens <= FEW or len(clauses) < 2:
        return _each(pose, num_tokens, clauses)
    edges = combine(clauses)
    together = pose(MIXED, num_tokens, edges, replace(edges, wrapped=True))
    return _narrowed(together, pose, num_tokens, clauses)


def _mixed(
    pose: Callable[..., Finding], num_tokens: int, found: Mapping[str, Finding], posed_alone: bool = False
) -> dict[str, Finding]:
    """Return the clauses that do not hold at this size, of those that held so far, several posed at once.

    Args:
        pose: Poses questions.
        num_tokens: The size.
        found: What is known so far.
        posed_alone: Each clause is known to hold alone at this size.
    """
    together = [c for c in found if _holds(found, c) and c not in (*EDGES, *ONCE)]
    contiguous = [clause for clause in together if clause != "strided_rows"]
    none = [Question(all_padding=True)] if "padding" in together else []
    broken: dict[str, Finding] = {}
    # Of few tokens it takes some turns until the first has found everything in its slot.
    turns = range(0, STATES, 2) if num_tokens < STATES else range(1)
    for clauses in filter(None, [contiguous, together] if contiguous != together else [contiguous]):
        questions = [replace(combine(clauses), turn=turn) for turn in turns]
        outcome = pose(MIXED, num_tokens, *questions, *none)
        none, turns = [], range(1)
        if not broken:
            broken = _narrowed(outcome, pose, num_tokens, clauses, posed_alone)
    return broken


def _narrowed(
    together: Finding,
    pose: Callable[..., Finding],
    num_tokens: int,
    clauses: list[str],
    posed_alone: bool = False,
) -> dict[str, Finding]:
    """Return the clauses that are to blame for what several came to when they were posed at once."""
    if together.outcome == "holds":
        return {}
    found = {} if posed_alone else _each(pose, num_tokens, clauses)
    if together.outcome == "broken" and not found:
        least = _least(pose, num_tokens, clauses, together)
        found = {least.clause: least}
    return found


def _each(pose: Callable[..., Finding], num_tokens: int, clauses: list[str]) -> dict[str, Finding]:
    """Return the clauses that do not hold, each posed alone."""
    findings = (pose(clause, num_tokens, *QUESTIONS[clause]) for clause in clauses)
    return {finding.clause: finding for finding in findings if finding.outcome != "holds"}


def _least(pose: Callable[..., Finding], num_tokens: int, clauses: list[str], together: Finding) -> Finding:
    """Return what is broken where as few of these clauses as possible are posed at once."""
    for clause in list(clauses):
        rest = [other for other in clauses if other != clause]
        if rest and pose(MIXED, num_tokens, combine(rest)).outcome == "broken":
            clauses = rest
    finding = pose(MIXED, num_tokens, combine(clauses))
    words = finding.words or together.words
    others = ", ".join(clauses[:-1])
    return Finding(clauses[-1], "broken", f"together with {others}: {words}" if others else words, num_tokens)


class _Broken(Exception):
    """What the implementation did wrong."""


class _Raised(_Broken):
    """What it raised."""


class _Refused(Exception):
    """Why it does not do this."""


def _finding(
    asked: Asked,
    clause: str,
    num_tokens: int,
    questions: Sequence[Question],
    died: Collection[Ask],
    tell: Callable[[Ask], None],
) -> Finding:
    fails: Outcome = "failed" if clause == PLAIN else "broken"
    if (clause, num_tokens) in died:
        return Finding(clause, fails, "died", num_tokens)
    tell((clause, num_tokens))
    try:
        for question in questions:
            _ask(asked, num_tokens, question)
    except _Refused as refusal:
        return Finding(clause, "refused", str(refusal), num_tokens)
    except _Raised as error:
        return Finding(clause, fails, str(error), num_tokens)
    except _Broken as difference:
        return Finding(clause, "broken", str(difference), num_tokens)
    return Finding(clause, "holds")


def _ask(asked: Asked, num_tokens: int, question: Question) -> None:
    """Return where the contract holds.

    Raises:
        _Broken: It does not.
        _Refused: The implementation says that it does not do this.
    """
    case = replace(asked.case, num_tokens=num_tokens)
    generator = torch.Generator(case.device).manual_seed(case.seed)
    posed = Posed(case, asked.layout, asked.source, question, generator)
    posed.prepare()
    with _blamed(case.device):
        # A graph does not keep what its call holds: the call lives as long as the graph is replayed.
        call = asked.op.bind(asked.impl, posed, posed.slot_mapping)
        run = _prepared(case, call)
    once_more = (REPEATS if num_tokens <= SMALL else 1) * question.again
    for changes in [*([True, True] if question.changes else [False]), *[False] * once_more]:
        if changes and question.fresh_inputs:
            posed.draw_inputs()
        if changes and question.fresh_slots:
            posed.draw_slots()
        posed.prepare()
        with _blamed(case.device):
            if changes and hasattr(asked.impl, "refresh"):
                asked.impl.refresh()
            run()
            _wait(case.device)
        if difference := posed.difference():
            raise _Broken(difference)


def _prepared(case: Case, call: Call) -> Call:
    """Return the call as it is timed: in a graph, once it has run outside."""
    if case.mode == "cudagraph":
        call()
        _wait(case.device)
    return mode.prepare(case.mode, [call])


@contextmanager
def _blamed(device: str) -> Iterator[None]:
    """Blame the implementation for what is raised inside; where CUDA is unusable then, the process ends.

    Raises:
        _Raised: Something was raised.
        _Refused: It was a refusal.
        torch.OutOfMemoryError: Others may have the memory that was asked for.
    """
    try:
        yield
    except (Unsupported, NotImplementedError) as refusal:
        raise _Refused(str(refusal)) from refusal
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a kernel or a driver raises
        _wait(device)
        raise _Raised(f"it raised {type(error).__name__}: {error}") from error


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
