"""Check an implementation against each clause of the contract, without measuring.

kvexp verify [OVERRIDE ...] takes what `kvexp` takes, for example impl=mine --config-dir my_conf. Each clause
of docs/semantics.md holds, is broken (with the first wrong element), or is refused. Exit code 0 when at least
one holds and none is broken, 1 when one is broken, 3 when the implementation refuses everything.
"""

from collections.abc import Sequence

from kvexp.bench.contract import SMALL
from kvexp.bench.contract.ask import Asker
from kvexp.cli import say
from kvexp.cli.commands._parser import make_sweep_parser
from kvexp.errors import ConfigError, KvexpError
from kvexp.experiment import Experiment
from kvexp.host import terminal

BROKEN = 1
REFUSED = 3
SHOWN = ("op", "impl", "layout", "dtype", "kv_cache_dtype", "scale", "mode", "workload")
"""The choices in a curve's heading."""


def main(argv: Sequence[str]) -> int:
    """Return 0, 1 or 3; see above.

    Raises:
        ConfigError: What was typed is wrong.
    """
    from kvexp.cli.compose import compose_experiments  # here, since --help does without Hydra

    _, words = make_sweep_parser("verify", __doc__).parse_known_args(argv)
    asker = Asker(_report_wait)
    try:
        codes = [_verify(asker, experiment) for experiment in compose_experiments(words)]
    finally:
        asker.close()
    if BROKEN in codes:
        return BROKEN
    return 0 if 0 in codes else REFUSED


def _report_wait(holder: str | None) -> None:
    if holder:
        terminal.say(f"kvexp: waiting for {holder}, which measures a curve on this GPU")


def _verify(asker: Asker, experiment: Experiment) -> int:
    """Check one curve, print the findings, and return the exit code for it alone."""
    say(" ".join(f"{name}={getattr(experiment, name).name}" for name in SHOWN) + "\n")
    try:
        found = asker.ask(experiment)
    except ConfigError:
        raise
    except KvexpError as refusal:
        say(f"  refused: {refusal}\n")
        return REFUSED
    findings = [*found.wrong, *found.findings]
    width = max(len(finding.clause) for finding in findings)
    for finding in findings:
        said = f"{finding.words} ({finding.num_tokens} tokens)" if finding.words else ""
        say(f"  {finding.clause:{width}}  {finding.outcome:7}  {said}".rstrip() + "\n")
    sizes = ", ".join(map(str, found.sizes))
    say(f"  tested with {SMALL} tokens{f' and with {sizes}' if sizes else ' alone'}\n")
    outcomes = {finding.outcome for finding in findings}
    return BROKEN if outcomes & {"broken", "failed"} else 0 if "holds" in outcomes else REFUSED
