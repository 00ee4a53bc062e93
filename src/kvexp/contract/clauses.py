"""Pose the clauses of the contract to an implementation: in small calls, and at the sizes of a curve.

A plain call comes first at each size; where that is not right, nothing is said of the clauses there, since
measuring says it. In a small call each clause is posed alone. At a curve's own sizes, on the path that is
timed, one call poses most clauses at once; where it is wrong each is posed alone, so that the one which is
broken can be named.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from kvexp import mode
from kvexp.case import Case
from kvexp.contract import CLAUSES, SMALL, Contract, Finding
from kvexp.contract.pose import Posed, Question
from kvexp.errors import Unsupported
from kvexp.layout import Layout
from kvexp.op import Call, Op

PLAIN = "plain"
MIXED = "mixed"

QUESTIONS: dict[str, tuple[Question, ...]] = {
    "padding": (Question(padding=True), Question(all_padding=True)),
    "negatives": (Question(negatives=True),),
    "past_end": (Question(past_end=True),),
    "extra_rows": (Question(extra_rows=True),),
    "strided_rows": (Question(rows="qkv"),),
    "misaligned": (Question(rows="misaligned"), Question(shifted=True)),
    "no_tokens": (Question(),),
    "other_blocks": (Question(other_blocks=True),),
    "partly_there": (Question(partly_there=True),),
    "fresh_inputs": (Question(fresh_inputs=True),),
    "fresh_slots": (Question(fresh_slots=True),),
}
"""How each clause is posed alone."""

ALONE = ("strided_rows", "negatives", "past_end")
"""Clauses that the mixed call leaves out: one needs other tensors, and of the others little hangs on."""
ONCE = ("no_tokens", "misaligned")
"""Clauses that small calls decide."""

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
            found[clause] = pose(clause, 0 if clause == "no_tokens" else SMALL, *questions)
    for num_tokens in sizes:
        try:
            plain = pose(PLAIN, num_tokens, Question())
            if plain.outcome != "holds":
                wrong.append(plain)
                continue
            found |= _at_own_size(pose, num_tokens, found)
        except torch.OutOfMemoryError:  # nothing is said of this size
            torch.cuda.empty_cache()
        else:
            posed.append(num_tokens)
    findings = tuple(found[clause] for clause in CLAUSES if clause in found)
    return Contract(findings, tuple(posed), refreshed, tuple(wrong))


def _at_own_size(
    pose: Callable[..., Finding], num_tokens: int, found: dict[str, Finding]
) -> dict[str, Finding]:
    """Return the clauses that do not hold at this size, of those that held so far.

    Where the mixed call is wrong and each of its clauses holds alone, all of them together break the first.
    """
    holds = [clause for clause in found if found[clause].outcome == "holds" and clause not in ONCE]
    together = [clause for clause in holds if clause not in ALONE]
    mixed: dict[str, Any] = {name: True for clause in together for name in _changes(clause)}
    alone = [clause for clause in holds if clause in ALONE]
    of_all = pose(MIXED, num_tokens, Question(**mixed)) if together else Finding(MIXED, "holds")
    if of_all.outcome != "holds":
        alone += together
    findings = [pose(clause, num_tokens, *QUESTIONS[clause]) for clause in alone]
    fails = {finding.clause: finding for finding in findings if finding.outcome != "holds"}
    if of_all.outcome == "broken" and not fails.keys() & {*together}:
        words = f"in one call with {', '.join(together[1:])}: {of_all.words}"
        fails[together[0]] = replace(of_all, clause=together[0], words=words)
    return fails


def _changes(clause: str) -> list[str]:
    """Return the names of what the clause's first question changes of a plain one."""
    return [name for name, value in vars(QUESTIONS[clause][0]).items() if value is True]


class _Broken(Exception):
    """What the implementation did wrong."""


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
    if (clause, num_tokens) in died:
        return Finding(clause, "broken", "died", num_tokens)
    tell((clause, num_tokens))
    try:
        for question in questions:
            _ask(asked, num_tokens, question)
    except _Refused as refusal:
        return Finding(clause, "refused", str(refusal), num_tokens)
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
    changes = question.fresh_inputs or question.fresh_slots
    for _ in range(2 if changes else 1):
        if question.fresh_inputs:
            posed.draw_inputs()
        if question.fresh_slots:
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
        _Broken: Something was raised.
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
        raise _Broken(f"it raised {type(error).__name__}: {error}") from error


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
