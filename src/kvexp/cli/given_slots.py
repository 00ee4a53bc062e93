"""Take the keys of a workload that a batch or a file of slots gives: how many tokens there are, and where."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvexp.case import BATCH, NO_SLOT, SLOTS, Slots, format_batch, parse_batch
from kvexp.cli.slot_file import SUFFIXES, hash_slots, read_slots
from kvexp.errors import ConfigError
from kvexp.results.overrides import get_key


def take_slots(
    config: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[Mapping[str, Any], tuple[int, ...]]:
    """Return the keys of the workload with those that its batch or file gives, and the file's slots.

    `overrides` are what was typed or swept.

    Raises:
        ConfigError: The batch or the file is wrong, or one of these keys was typed as well.
    """
    batch, slots = config.get("batch"), config.get("slots")
    recorded: tuple[int, ...] = ()
    if isinstance(batch, str) and batch:
        requests = parse_batch(batch)
        tokens = sum(one.count * one.new for one in requests)
        given = {"batch": format_batch(requests), "slots": BATCH, "num_tokens": tokens}
        what = f"workload.batch={batch}"
    elif isinstance(slots, str) and slots.endswith(SUFFIXES):
        recorded = read_slots(Path(slots))
        given = {"slots": hash_slots(recorded), "num_tokens": len(recorded), **_describe_padding(recorded)}
        what = f"workload.slots={slots}"
    elif isinstance(slots, str) and slots not in SLOTS:  # rows have more words, which nobody types
        raise ConfigError(f"workload.slots must be {Slots().describe()}, not {slots!r}")
    else:
        return config, recorded
    typed = {get_key(text) for text in overrides}
    for key in given:
        name = f"workload.{key}"
        if name in typed and not what.startswith(f"{name}="):
            raise ConfigError(f"{name} is refused beside {what}, which gives it; leave it out")
    return {**config, **given}, recorded


def _describe_padding(slots: tuple[int, ...]) -> dict[str, Any]:
    """Return the keys of the padding of recorded slots."""
    count = slots.count(NO_SLOT)
    is_at_end = NO_SLOT not in slots[: len(slots) - count]
    return {"padding": count / len(slots), "padding_at": "end" if is_at_end else "scattered"}
