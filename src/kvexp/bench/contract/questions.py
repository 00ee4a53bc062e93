"""Define the questions of each clause: how a call, its data and its cache differ from a plain one."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

STATES = 5
"""How many parts of its row a slot may hold beforehand; see `QuestionTensors.prepare`."""


@dataclass(frozen=True)
class Question:
    """How a call differs from a plain one.

    Attributes:
        padding: Some tokens have the slot -1, the last one among them.
        first_none: The first token has the slot -1, too.
        all_padding: All tokens have the slot -1.
        negatives: Some tokens have other negative slots.
        past_end: Some tokens have slots past the last.
        wrapped: The lower 32 bits of slots that are negative or past the last name the last slot.
        extra_rows: Key and value have rows past the last token's.
        rows: How key and value lie in memory; see `workload.inputs`.
        gaps: Items between two rows of key, and of value.
        shifted: The caches begin one item past an aligned address.
        other_blocks: Slots lie in blocks all over the cache, the first and the last included. By default they
            follow one another from the beginning of a block.
        partly_there: The cache holds some of the rows already, the first token's included.
        turn: Shifts which slots hold how much of their row then; from 0 to STATES - 1.
        special_values: Keys and values hold NaN, infinities, -0.0, subnormals, ties and any other bits.
        again: The call runs again with the same inputs and another cache.
        fresh_inputs: Keys, values and scales change in place once the call is bound, and again after a run.
        fresh_slots: So do the slots.
    """

    padding: bool = False
    first_none: bool = False
    all_padding: bool = False
    negatives: bool = False
    past_end: bool = False
    wrapped: bool = False
    extra_rows: bool = False
    rows: str = "contiguous"
    gaps: tuple[int, int] = (0, 0)
    shifted: bool = False
    other_blocks: bool = False
    partly_there: bool = False
    turn: int = 0
    special_values: bool = False
    again: bool = False
    fresh_inputs: bool = False
    fresh_slots: bool = False

    @property
    def changes(self) -> bool:
        """Return whether data change in place after the call was bound."""
        return self.fresh_inputs or self.fresh_slots


QUESTIONS: dict[str, tuple[Question, ...]] = {
    "padding": (
        Question(padding=True),
        Question(padding=True, first_none=True),
        Question(all_padding=True),
    ),
    "negatives": (Question(negatives=True), Question(negatives=True, wrapped=True)),
    "past_end": (Question(past_end=True), Question(past_end=True, wrapped=True)),
    "extra_rows": (Question(extra_rows=True),),
    "strided_rows": (
        Question(gaps=(64, 128)),
        Question(rows="qkv"),
        Question(gaps=(0, 64)),
        Question(gaps=(64, 0)),
    ),
    "no_tokens": (Question(),),
    "other_blocks": (Question(other_blocks=True),),
    "special_values": (Question(special_values=True),),
    "again": (Question(again=True),),
    "partly_there": tuple(Question(partly_there=True, turn=turn) for turn in range(STATES)),
    "fresh_inputs": (Question(fresh_inputs=True),),
    "fresh_slots": (Question(fresh_slots=True),),
    # Last, since it changes inputs too: posed so to implementations that are known to read them anew.
    "misaligned": (
        Question(rows="misaligned", fresh_inputs=True),
        Question(gaps=(1, 1)),
        Question(shifted=True),
    ),
}
"""The questions that pose each clause alone, in order. A later one could do harm where an earlier one fails:
slots that look valid in 32 bits are for implementations that check both ends."""


def combine(clauses: Iterable[str]) -> Question:
    """Return the first questions of these clauses as one."""
    plain = asdict(Question())
    changed: dict[str, object] = {}
    for clause in clauses:
        asked = asdict(QUESTIONS[clause][0])
        changed.update((name, value) for name, value in asked.items() if value != plain[name])
    return Question(**changed)  # type: ignore[arg-type]  # fields of questions
