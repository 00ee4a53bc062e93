"""Whether the kernels reach what targets.yaml asks: `python -m tests.gpu.targets [FOLDER] [WORD ...]`.

Measures every case that has one of the words in its name (all without any) and prints a line for each
implementation: what is asked, the worst point, whether it passes. FOLDER gets the rows and the table; the
exit code is 1 when a target is missed.
"""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kvexp.sweep.subprocess_worker import Worker
from tests.helpers import compose

TABLE = Path(__file__).with_suffix(".yaml")
IMPLS = ("cuda", "triton")

Values = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Reached:
    """The worst point of a case, as a figure to hold against the target's."""

    figure: float
    passes: bool
    row: Row


class Measured:
    """Rows by overrides, each curve measured once, all by one process."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._known: dict[tuple[str, ...], list[Row]] = {}

    @cached_property
    def _worker(self) -> Worker:
        worker = Worker("cuda:0")
        worker.wait()
        return worker

    def curve(self, values: Values) -> list[Row]:
        """The rows of the curve.

        Raises:
            RuntimeError: A point of it is not ok.
        """
        overrides = tuple(f"{key}={value}" for key, value in values.items())
        if overrides not in self._known:
            experiment = compose.experiment(*overrides).resolve("cuda:0")
            rows = [row for row, _ in self._worker.run(experiment)]
            for row in rows:
                if row["status"] != "ok":
                    raise RuntimeError(f"{' '.join(overrides)}: {row['status']}: {row['reason']}")
            self.rows += rows
            self._known[overrides] = rows
        return self._known[overrides]


def curves(case: Values, first: Values) -> Iterator[tuple[Values, Values]]:
    """The overrides of each of a case's curves, and those of the one that it is held against.

    Lists of one length that `together` names, and a list in `against`, are walked side by side.
    """
    over = {key: value if isinstance(value, list) else [value] for key, value in case["over"].items()}
    together = case.get("together", [max(over, key=lambda key: len(over[key]))])
    apart = [key for key in over if key not in together]
    against = case.get("against", {})
    for step in range(len(over[together[0]])):
        beside = {key: value[step] if isinstance(value, list) else value for key, value in against.items()}
        fixed = {key: over[key][step] for key in together}
        for chosen in itertools.product(*(over[key] for key in apart)):
            own = first | fixed | dict(zip(apart, chosen, strict=True))
            yield own, own | beside


def reached(case: Values, impl: str, first: Values, measured: Measured) -> Reached:
    """The point of the case that is furthest from what is asked."""
    found = []
    for own, beside in curves(case, first | {"impl": impl}):
        rows = measured.curve(own)
        if "copy_fraction" in case:
            least = case["copy_fraction"][impl]
            found += [(row["copy_fraction"], row["copy_fraction"] / least, row) for row in rows]
        elif "latency_us" in case:
            most = case["latency_us"][impl]
            found += [(row["latency_us"], most / row["latency_us"], row) for row in rows]
        else:
            for row, other in zip(rows, measured.curve(beside), strict=True):
                ratio = row["latency_us"] / other["latency_us"]
                found.append((ratio, case["ratio"] / ratio, row))
    figure, margin, row = min(found, key=lambda entry: entry[1])
    return Reached(figure, margin >= 1, row)


def asked(case: Values, impl: str) -> str:
    """The target in words."""
    if "copy_fraction" in case:
        return f">= {case['copy_fraction'][impl]:.3g} of copy"
    if "latency_us" in case:
        return f"<= {case['latency_us'][impl]} us"
    return f"<= {case['ratio']:.3g} x"


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 1 when a target is missed."""
    folder, *words = arguments or [""]
    table: Any = OmegaConf.to_container(OmegaConf.load(TABLE))
    measured, missed, lines = Measured(), 0, []
    for case in table["cases"]:
        if words and not any(word in case["name"] for word in words):
            continue
        for impl in IMPLS:
            worst = reached(case, impl, table["defaults"], measured)
            missed += not worst.passes
            point = f"{worst.row['layout']} T={worst.row['num_tokens']} {worst.row['latency_us']:.4g} us"
            line = f"{case['name']:<48} {impl:<7} {asked(case, impl):<16} {worst.figure:6.3g} "
            lines.append(f"{line} {'passes' if worst.passes else 'MISSED'}  {point}")
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "targets.txt").write_text("\n".join(lines) + "\n")
        Path(folder, "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in measured.rows))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
