"""How far fresh processes differ that measure the same: `python -m tests.gpu.repeatability impl=cuda ...`.

The overrides describe one curve. It is measured by as many processes as PROCESSES, one after the other; for
each point the spread is (largest - smallest) / median of their medians. The exit code is 1 when a spread is
above 2 % from 512 tokens on, or 5 % below.
"""

import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from kvexp.results import row_file

PROCESSES = 5
MANY_TOKENS = 512


def medians(overrides: Sequence[str], folder: Path) -> dict[int, list[float]]:
    """For each num_tokens the latency in microseconds of each process.

    Raises:
        RuntimeError: A process failed, or a point of it is not ok.
    """
    found: dict[int, list[float]] = defaultdict(list)
    for number in range(PROCESSES):
        sweep = folder / str(number)
        command = [sys.executable, "-m", "kvexp", *overrides, "tracking=none", f"hydra.sweep.dir={sweep}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"process {number} ended with {done.returncode}: {done.stderr}{done.stdout}")
        for row in row_file.read(sweep):
            if row["status"] != "ok":
                raise RuntimeError(f"num_tokens {row['num_tokens']} is {row['status']}: {row['reason']}")
            found[row["num_tokens"]].append(row["latency_us"])
    return dict(sorted(found.items()))


def spread(latencies_us: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    return (max(latencies_us) - min(latencies_us)) / median(latencies_us)


def promised(num_tokens: int) -> float:
    """The spread that processes may have."""
    return 0.02 if num_tokens >= MANY_TOKENS else 0.05


def main(overrides: Sequence[str]) -> int:
    """Prints a line for each point; 1 when a point's processes differ by more than is promised."""
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        for num_tokens, latencies_us in medians(overrides, Path(folder)).items():
            found = spread(latencies_us)
            held = found <= promised(num_tokens)
            worst |= not held
            line = f"{num_tokens:>7} {median(latencies_us):12.4g} us {100 * found:6.2f} %"
            sys.stdout.write(line + ("" if held else f"  above {100 * promised(num_tokens):.0f} %") + "\n")
            sys.stdout.flush()
    return int(worst)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
