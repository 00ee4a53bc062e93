"""Send to MLflow the curves on disk that it does not have, each curve once.

DIR is a sweep's folder or one that holds several; default: multirun/. The default store is mlruns/.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kvexp import tracking
from kvexp.cli import say, schema
from kvexp.cli.commands._parser import Parser
from kvexp.errors import TrackingError
from kvexp.host import terminal
from kvexp.host.addresses import mask_address
from kvexp.tracking import Tracker
from kvexp.tracking.subprocess_tracker import SubprocessTracker
from kvexp.tracking.sync import sync

NOT_SENT = 1


def main(argv: Sequence[str]) -> int:
    """Return 0 when everything is in the store, NOT_SENT when something could not be sent.

    Raises:
        ConfigError: What was typed is wrong, or there is no sweep.
    """
    typed = _parse(argv)
    kind = "server" if typed.to and not typed.to.startswith("sqlite") else "local"
    settings = tracking.settings(kind, typed.to, None, tracking.EXPERIMENT, os.environ, typed.experiment)
    with closing(SubprocessTracker()) as store:

        def connect() -> Tracker:
            store.connect(settings)
            return store.wait()

        try:
            done = sync(typed.dir, connect, terminal.say)
        except TrackingError as error:
            terminal.say(f"kvexp: {error}; what is on disk stays, so sync again later")
            return NOT_SENT
    left = f", {done.refused} left out" if done.refused else ""
    address = mask_address(settings.uri or "")
    say(f"{done.sent} curves sent, {done.already_sent} were there{left}: {address}\n")
    return NOT_SENT if done.refused else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("kvexp sync", description=__doc__)
    parser.add_argument("dir", nargs="?", type=Path, default=Path("multirun"), metavar="DIR")
    parser.add_argument(
        "--to", metavar="ADDRESS", help="the store; default: MLFLOW_TRACKING_URI, else mlruns/"
    )
    parser.add_argument(
        "--experiment",
        help="the MLflow experiment's name; default: MLFLOW_EXPERIMENT_NAME, else kvexp",
    )
    typed = parser.parse_args(argv)
    if typed.experiment is not None:
        schema.read("--experiment", schema.TRACKING["experiment"], typed.experiment)
    return typed
