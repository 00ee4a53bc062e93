"""Pose the clauses of the contract to an implementation: in small calls, and at the sizes of a curve.

A plain call comes first at each size. Wrong bytes in it are a breach. Where it raises or is refused, no
clause is posed at that size, since measuring says more. In small calls each clause is posed alone. At a
curve's own sizes, on the path that is timed, one call poses most clauses at once; where it is wrong each is
posed alone, to name the broken one.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from kvexp.bench import mode
from kvexp.bench.contract import CLAUSES, PLAIN, SMALL, Contract, Finding, Outcome
from kvexp.bench.contract.question_tensors import QuestionTensors
from kvexp.bench.contract.questions import QUESTIONS, STATES, Question, combine
from kvexp.bench.describe_error import describe_error
from kvexp.case import Case
from kvexp.errors import Unsupported
from kvexp.layout import Layout
from kvexp.op import Call
from kvexp.op.cache_write import CacheWrite

MIXED = "mixed"

EDGE_CLAUSES = ("negatives", "past_end", "special_values")
"""Clauses that a mixed call leaves out: two are optional, and NaN hides one that skips equal rows."""
FEW_TOKENS = 8
"""Tokens of a call too small to show all of these at once."""
SMALL_ONLY = ("no_tokens", "misaligned")
"""Clauses that are posed in small calls only."""
SEED = 0
"""Seed of every question's data, whatever the workload's: a curve with other data is not asked again."""
REPEATS = 16
"""Further runs of a small call with the same inputs; of a larger one there is one."""

Pose = Callable[..., Finding]
"""Pose questions, given a clause, a number of tokens and the questions."""

Key = tuple[str, int]
"""A clause, PLAIN or MIXED, and the number of tokens."""


@dataclass(frozen=True)
class Subject:
    """The implementation and the combination in which it is asked.

    Attributes:
        impl: The implementation.
        op: The op that it implements.
        layout: The cache's layout.
        source: Type of keys and values.
        case: The other sizes, types, mode and device.
    """

    impl: Any
    op: CacheWrite
    layout: Layout
    source: torch.dtype
    case: Case


def pose_clauses(
    subject: Subject,
    sizes: Sequence[int],
    died: Collection[Key] = (),
    on_question: Callable[[Key], None] = lambda key: None,
    skip: Collection[str] = (),
) -> Contract:
    """Pose every clause.

    Args:
        subject: The implementation and its combination.
        sizes: Numbers of tokens at which clauses are posed besides the small ones.
        died: Questions that have ended a process: broken, and not asked again.
        on_question: Called before each question.
        skip: Clauses that are not posed.
    """
    refreshed = hasattr(subject.impl, "refresh")
    found: dict[str, Finding] = {}
    posed: list[int] = []

    def pose(clause: str, num_tokens: int, *questions: Question) -> Finding:
        return _pose_clause(subject, clause, num_tokens, questions, died, on_question)

    plain = pose(PLAIN, SMALL, Question())
    if plain.outcome != "holds":
        return Contract((), (), refreshed, (plain,))
    wrong: list[Finding] = []
    for clause, questions in QUESTIONS.items():
        if clause not in skip:
            own = _drop_broken(questions, found) if clause == "misaligned" else questions
            found[clause] = pose(clause, 0 if clause == "no_tokens" else SMALL, *own)
    found.update(_pose_mixed(pose, SMALL, found, holds_alone=True))
    for num_tokens in sizes:
        try:
            plain = pose(PLAIN, num_tokens, Question())
            if plain.outcome != "holds":
                wrong.append(plain)
                continue
            found.update(_pose_edges(pose, num_tokens, found))
            found.update(_pose_mixed(pose, num_tokens, found))
        except torch.OutOfMemoryError:  # nothing is said of this size
            torch.cuda.empty_cache()
        else:
            posed.append(num_tokens)
    findings = tuple(found[clause] for clause in CLAUSES if clause in found)
    return Contract(findings, tuple(posed), refreshed, tuple(wrong))


def _drop_broken(questions: Sequence[Question], found: Mapping[str, Finding]) -> Sequence[Question]:
    """Return the questions without clauses that are known to be broken whatever the addresses."""
    if not _is_held(found, "strided_rows"):
        questions = [question for question in questions if question.gaps == (0, 0)]
    if not _is_held(found, "fresh_inputs"):
        questions = [replace(question, fresh_inputs=False) for question in questions]
    return questions


def _is_held(found: Mapping[str, Finding], clause: str) -> bool:
    return clause in found and found[clause].outcome == "holds"


def _pose_edges(pose: Pose, num_tokens: int, found: Mapping[str, Finding]) -> dict[str, Finding]:
    """Pose those of EDGE_CLAUSES that held so far; return the ones that do not hold at this size."""
    clauses = [clause for clause in EDGE_CLAUSES if _is_held(found, clause)]
    if num_tokens <= FEW_TOKENS or len(clauses) < 2:
        return _pose_each(pose, num_tokens, clauses)
    edges = combine(clauses)
    together = pose(MIXED, num_tokens, edges, replace(edges, wrapped=True))
    return _narrow_down(together, pose, num_tokens, clauses)


def _pose_mixed(
    pose: Pose, num_tokens: int, found: Mapping[str, Finding], holds_alone: bool = False
) -> dict[str, Finding]:
    """Pose the clauses that held so far together; return the ones that do not hold at this size."""
    together = [c for c in found if _is_held(found, c) and c not in (*EDGE_CLAUSES, *SMALL_ONLY)]
    contiguous = [clause for clause in together if clause != "strided_rows"]
    none = [Question(all_padding=True)] if "padding" in together else []
    broken: dict[str, Finding] = {}
    # Few tokens need several turns until the first token has found every part of its row in its slot.
    turns = range(0, STATES, 2) if num_tokens < STATES else range(1)
    for clauses in filter(None, [contiguous, together] if contiguous != together else [contiguous]):
        questions = [replace(combine(clauses), turn=turn) for turn in turns]
        outcome = pose(MIXED, num_tokens, *questions, *none)
        none, turns = [], range(1)
        if not broken:
            broken = _narrow_down(outcome, pose, num_tokens, clauses, holds_alone)
    return broken


def _narrow_down(
    together: Finding,
    pose: Pose,
    num_tokens: int,
    clauses: list[str],
    holds_alone: bool = False,
) -> dict[str, Finding]:
    """Return the clauses to blame for the finding of several that were posed together."""
    if together.outcome == "holds":
        return {}
    found = {} if holds_alone else _pose_each(pose, num_tokens, clauses)
    if together.outcome == "broken" and not found:
        least = _find_smallest(pose, num_tokens, clauses, together)
        found = {least.clause: least}
    return found


def _pose_each(pose: Pose, num_tokens: int, clauses: list[str]) -> dict[str, Finding]:
    """Pose each clause alone; return those that do not hold."""
    findings = (pose(clause, num_tokens, *QUESTIONS[clause]) for clause in clauses)
    return {finding.clause: finding for finding in findings if finding.outcome != "holds"}


def _find_smallest(pose: Pose, num_tokens: int, clauses: list[str], together: Finding) -> Finding:
    """Drop clauses while the rest is still broken together; return the finding of those left."""
    for clause in list(clauses):
        rest = [other for other in clauses if other != clause]
        if rest and pose(MIXED, num_tokens, combine(rest)).outcome == "broken":
            clauses = rest
    finding = pose(MIXED, num_tokens, combine(clauses))
    words = finding.words or together.words
    others = ", ".join(clauses[:-1])
    return Finding(clauses[-1], "broken", f"together with {others}: {words}" if others else words, num_tokens)


class _Broken(Exception):
    """The implementation did something wrong."""


class _Raised(_Broken):
    """It raised an error."""


class _Refused(Exception):
    """It refuses this call."""


def _pose_clause(
    subject: Subject,
    clause: str,
    num_tokens: int,
    questions: Sequence[Question],
    died: Collection[Key],
    on_question: Callable[[Key], None],
) -> Finding:
    fails: Outcome = "failed" if clause == PLAIN else "broken"
    if (clause, num_tokens) in died:
        return Finding(clause, fails, "died", num_tokens)
    on_question((clause, num_tokens))
    try:
        for question in questions:
            _pose_question(subject, num_tokens, question)
    except _Refused as refusal:
        return Finding(clause, "refused", str(refusal), num_tokens)
    except _Raised as error:
        return Finding(clause, fails, str(error), num_tokens)
    except _Broken as difference:
        return Finding(clause, "broken", str(difference), num_tokens)
    return Finding(clause, "holds")


def _pose_question(subject: Subject, num_tokens: int, question: Question) -> None:
    """Make the calls of one question and check what they wrote.

    Raises:
        _Broken: The contract does not hold.
        _Refused: The implementation refuses this call.
    """
    case = replace(subject.case, num_tokens=num_tokens)
    generator = torch.Generator(case.device).manual_seed(SEED)
    posed = QuestionTensors(case, subject.op, subject.layout, subject.source, question, generator)
    posed.prepare()
    with _blame_implementation(subject):
        # A graph does not keep what its call holds: the call lives as long as the graph is replayed.
        call = subject.op.bind(subject.impl, posed, posed.slot_mapping)
        run = _prepare_call(case, call)
    once_more = (REPEATS if num_tokens <= SMALL else 1) * question.again
    for changes in [*([True, True] if question.changes else [False]), *[False] * once_more]:
        if changes and question.fresh_inputs:
            posed.draw_inputs()
        if changes and question.fresh_slots:
            posed.draw_slots()
        posed.prepare()
        with _blame_implementation(subject):
            if changes and hasattr(subject.impl, "refresh"):
                subject.impl.refresh()
            run()
            _synchronize(case.device)
        if difference := posed.describe_difference():
            raise _Broken(difference)


def _prepare_call(case: Case, call: Call) -> Call:
    """Prepare the call as it is timed: in mode cudagraph in a graph, after one run outside."""
    if case.mode == "cudagraph":
        call()
        _synchronize(case.device)
    return mode.prepare(case.mode, [call])


@contextmanager
def _blame_implementation(subject: Subject) -> Iterator[None]:
    """Blame the implementation for what the block raises; where CUDA is unusable then, the process ends.

    Raises:
        _Raised: An error was raised.
        _Refused: A refusal was raised.
        torch.OutOfMemoryError: Another process may hold the memory.
    """
    try:
        yield
    except (Unsupported, NotImplementedError) as refusal:
        raise _Refused(str(refusal)) from refusal
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a kernel or a driver raises
        _synchronize(subject.case.device)
        raise _Raised(f"it raised {describe_error(error, type(subject.impl).__module__)}") from error


def _synchronize(device: str) -> None:
    """Wait for the GPU; raise what a kernel, or a launch that nobody checked, has failed at."""
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.zeros((), device=device)  # torch asks after its launch, and would ask in the next question
