"""The contract of docs/semantics.md as clauses, and what is known of an implementation that was asked them.

`clauses` poses them, in a process of its own (`process`), which `ask` starts and whose answers it remembers.
This module imports none of the others, and no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["holds", "broken", "refused", "failed"]

CLAUSES = {
    "padding": "writes for a token whose slot is -1",
    "negatives": "writes for a token whose slot is negative and not -1",
    "past_end": "writes slots past the end",
    "extra_rows": "goes by the rows of key, not by the length of slot_mapping",
    "strided_rows": "takes rows of key and value for contiguous that are not",
    "misaligned": "needs aligned addresses",
    "no_tokens": "fails where there are no tokens",
    "other_blocks": "does not keep to the slots that it is given, all over the cache",
    "special_values": "does not copy or convert every value, such as NaN, -0.0 and what is out of range",
    "again": "does not write the same rows each time that it is called",
    "partly_there": "does not write all rows where some are there already",
    "fresh_inputs": "keeps the keys, values or scales that it saw when it was bound",
    "fresh_slots": "keeps the slots that it saw when it was bound",
}
"""Each clause, and what an implementation that breaks it does."""

PLAIN = "plain"
"""What is asked before any clause: a call without anything unusual."""
WRONG = "writes wrong bytes"

SMALL = 7
"""Tokens of a small call; in the smallest cache it has a slot in every block but the spare ones."""

TOLD = ("negatives", "past_end", "misaligned", "no_tokens")
NEEDED = tuple(clause for clause in CLAUSES if clause not in TOLD)
"""What every engine relies on: whoever breaks one of these is incorrect. That others are broken is told."""

FULL = "full"
"""The column `contract` where every clause holds."""
REFRESHED = "needs refresh()"
"""In that column: the implementation is told of each change, and derives something from it on the host."""


@dataclass(frozen=True)
class Finding:
    """What one clause came to.

    Attributes:
        clause: Its name.
        outcome: Whether it holds. `failed`: a plain call raised, or ended its process.
        words: The first wrong element, how the process died, or why it was refused; empty where it holds.
        num_tokens: Tokens of the call that broke it.
    """

    clause: str
    outcome: Outcome
    words: str = ""
    num_tokens: int | None = None

    @property
    def sentence(self) -> str:
        """What is broken, and where it was seen first."""
        does = CLAUSES.get(self.clause, WRONG)
        return f"{does} (clause {self.clause}, {self.num_tokens} tokens): {self.words}"


@dataclass(frozen=True)
class Contract:
    """What is known of one implementation, in one combination of op, layout, types, sizes, mode and device.

    Attributes:
        findings: One for each clause; none where even a plain call of SMALL tokens is not right.
        sizes: The `num_tokens` at which clauses were posed, besides SMALL.
        refreshed: The implementation has declared `refresh()`.
        wrong: Plain calls that are wrong, failed, or refused. Measuring those that failed says more.
    """

    findings: tuple[Finding, ...]
    sizes: tuple[int, ...] = ()
    refreshed: bool = False
    wrong: tuple[Finding, ...] = ()

    def column(self, num_tokens: int) -> str | None:
        """Return what a row of that many tokens says; None where the clauses were not posed at that size."""
        if not self.findings or num_tokens not in self.sizes:
            return None
        broken = [finding.clause for finding in self.findings if finding.outcome == "broken"]
        refused = [f"refuses {finding.clause}" for finding in self.findings if finding.outcome == "refused"]
        return ", ".join([*broken, *refused, *[REFRESHED] * self.refreshed]) or FULL

    def breach(self, also_needed: Iterable[str] = ()) -> str:
        """Return what makes the implementation incorrect, in words; empty where nothing does.

        Args:
            also_needed: Clauses that the measured workload relies on, besides NEEDED.
        """
        needed = {PLAIN, *NEEDED, *also_needed}
        findings = (*self.wrong, *self.findings)
        broken = [found for found in findings if found.outcome == "broken" and found.clause in needed]
        return f"the call {broken[0].sentence}" if broken else ""

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Contract":
        """Return what `to_json` gave.

        Raises:
            TypeError: Fields are missing, or there are others.
        """
        findings, wrong = (
            tuple(Finding(**finding) for finding in fields[name]) for name in ("findings", "wrong")
        )
        return cls(findings, tuple(fields["sizes"]), bool(fields["refreshed"]), wrong)


UNASKED = Contract(())
"""Of an implementation that was not asked, or could not be."""


def words_of(column: str | None) -> str:
    """Return what the column `contract` of a right row says beside `ok`, in words; empty for a full one."""
    if column in (None, FULL):
        return ""
    return "; ".join(CLAUSES.get(part, part) for part in column.split(", "))
