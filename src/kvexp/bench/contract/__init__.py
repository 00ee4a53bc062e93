"""Pose the clauses of the contract (docs/semantics.md) to an implementation, and keep what was found.

Imports what bench imports; this file and `ask` import no torch, `process` and what it imports do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
"""The clauses; each says what an implementation that breaks it does."""

PLAIN = "plain"
"""Asked before any clause: a call without anything unusual."""
WRONG = "writes wrong bytes"

SMALL = 7
"""Tokens of a small call; in the smallest cache it has a slot in every block but the spare ones."""

OPTIONAL = ("negatives", "past_end", "misaligned", "no_tokens")
NEEDED = tuple(clause for clause in CLAUSES if clause not in OPTIONAL)
"""Clauses that every engine relies on: breaking one is incorrect; a broken optional one is reported."""

FULL = "full"
"""The column `contract` where every clause holds."""
REFRESHED = "needs refresh()"
"""In that column: `refresh()` must be called after each change, since the host derives something from it."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one clause.

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
        """Return what is broken, and where it was seen first."""
        does = CLAUSES.get(self.clause, WRONG)
        return f"{does} (clause {self.clause}, {self.num_tokens} tokens): {self.words}"


@dataclass(frozen=True)
class Contract:
    """What is known of one implementation, in one combination of op, layout, types, sizes, mode and device.

    Attributes:
        findings: One for each clause; empty where even a plain call of SMALL tokens is not right.
        sizes: The `num_tokens` at which clauses were posed, besides SMALL.
        refreshed: The implementation has declared `refresh()`.
        wrong: Plain calls that are wrong, failed or refused.
    """

    findings: tuple[Finding, ...]
    sizes: tuple[int, ...] = ()
    refreshed: bool = False
    wrong: tuple[Finding, ...] = ()

    def column(self, num_tokens: int) -> str | None:
        """Return the column of a row of that many tokens; None where no clause was posed at that size."""
        if not self.findings or num_tokens not in self.sizes:
            return None
        broken = [finding.clause for finding in self.findings if finding.outcome == "broken"]
        refused = [f"refuses {finding.clause}" for finding in self.findings if finding.outcome == "refused"]
        return ", ".join([*broken, *refused, *[REFRESHED] * self.refreshed]) or FULL

    def breach(self, also_needed: Iterable[str] = ()) -> str:
        """Return the sentence about what makes the implementation incorrect; empty where nothing does.

        Besides NEEDED the measured workload may rely on further clauses.
        """
        needed = {PLAIN, *NEEDED, *also_needed}
        findings = (*self.wrong, *self.findings)
        broken = [found for found in findings if found.outcome == "broken" and found.clause in needed]
        return f"the call {broken[0].sentence}" if broken else ""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Contract":
        """Make a contract of its fields as JSON values, which `asdict` gives.

        Raises:
            TypeError: Fields are missing or unknown.
        """
        findings, wrong = (
            tuple(Finding(**finding) for finding in fields[name]) for name in ("findings", "wrong")
        )
        return cls(findings, tuple(fields["sizes"]), bool(fields["refreshed"]), wrong)


UNASKED = Contract(())
"""Contract of an implementation that was not asked, or could not be."""


def describe_column(column: str | None) -> str:
    """Describe a right row's column `contract` in words; empty where every clause holds."""
    if column in (None, FULL):
        return ""
    return "; ".join(CLAUSES.get(part, part) for part in column.split(", "))
