"""Draw what several clocks say of one call: `python -m examples.clocks FIGURE.svg SWEEP ...`.

Prints the same as a table in Markdown: microseconds by clock and num_tokens.
"""

import sys
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd

import kvexp


def name_clock(row: pd.Series) -> str:
    """Name the clock of a row, and what the L2 held of slots and inputs."""
    states = row["cache_state"], row["inputs_state"]
    return f"{row['timer']}: " + (
        f"all {states[0]}" if len({*states}) == 1 else f"slots {states[0]}, inputs {states[1]}"
    )


def tabulate(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the microseconds of the points that are `ok`, a line for each clock, a column for num_tokens."""
    timed = rows[rows["status"] == "ok"]
    named = timed.assign(clock=timed.apply(name_clock, axis=1))
    table = named.pivot_table(index="clock", columns="num_tokens", values="latency_us", aggfunc="median")
    return table.sort_values(table.columns[0])


def draw(table: pd.DataFrame, file: str) -> None:
    """Draw each clock's microseconds against num_tokens, both axes logarithmic."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    table.T.plot(ax=axes, logx=True, logy=True, marker="o", grid=True, xlabel="num_tokens", ylabel="µs")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(file, metadata={"Date": None, "Creator": None})


def main(arguments: Sequence[str]) -> int:
    """Print the table and draw the figure; return 2 without a figure's name and a sweep."""
    if len(arguments) < 2:
        print("python -m examples.clocks FIGURE.svg SWEEP ...", file=sys.stderr)
        return 2
    file, *sweeps = arguments
    table = tabulate(pd.concat([kvexp.load(sweep) for sweep in sweeps]))
    draw(table, file)
    print("| clock |" + "".join(f" {size:,} |" for size in table.columns))
    print("|---|" + "---:|" * len(table.columns))
    for clock, found in table.iterrows():
        print(f"| {clock} |" + "".join(f" {value:.3g} |" for value in found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
