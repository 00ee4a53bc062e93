"""Show a sweep while it runs, until it ends: its curves so far, how much is left, the last rows."""

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live

from kvexp.cli.commands._parser import Parser
from kvexp.errors import ConfigError
from kvexp.report import PrintableConsole, live
from kvexp.results.sweep_dir import find_last, is_sweep
from kvexp.results.sweep_state import SweepWatcher

_MULTIRUN = Path("multirun")


def main(argv: Sequence[str]) -> int:
    """Show the sweep until it has ended, or once; return 0.

    Raises:
        ConfigError: There is no sweep, or its folder holds something else than rows.
    """
    parser = Parser("kvexp watch", description=__doc__, epilog=live.LEGEND)
    parser.add_argument(
        "sweep", nargs="?", type=Path, metavar="SWEEP", help="default: the last of ./multirun"
    )
    parser.add_argument("--once", action="store_true", help="show it as it is now, and end")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="default: 2")
    typed = parser.parse_args(argv)
    if not 0.1 <= typed.every <= 3600:
        raise ConfigError(f"watch: --every {typed.every:g} must be from 0.1 to 3600 seconds")
    watched, console = SweepWatcher(_find_sweep(typed.sweep)), PrintableConsole()
    if console.is_terminal and not (console.is_dumb_terminal or typed.once):
        _draw(watched, console, typed.every)
    else:
        _print(watched, console, typed.once, typed.every)
    return 0


def _find_sweep(sweep: Path | None) -> Path:
    if sweep is None:
        sweep = find_last(_MULTIRUN)
        if sweep is None:
            raise ConfigError(f"there is no sweep below {_MULTIRUN}; start one in another terminal")
    if not is_sweep(sweep):
        raise ConfigError(f"{sweep} is not the folder of a sweep; an example is multirun/<date>/<time>")
    return sweep


def _draw(watched: SweepWatcher, console: Console, every_s: float) -> None:
    """Redraw the sweep's state in place; the last state stays on the screen."""
    with Live(console=console, auto_refresh=False) as screen:
        while True:
            state = watched.read(time.time)
            screen.update(live.render_state(state, datetime.now(), console), refresh=True)
            if state.worker is None:
                return
            time.sleep(every_s)


def _print(watched: SweepWatcher, console: Console, once: bool, every_s: float) -> None:
    """Print a line each time that there are more points, and everything at the end."""
    seen = None
    while True:
        state = watched.read(time.time)
        if once or state.worker is None:
            console.print(live.render_state(state, datetime.now(), console), soft_wrap=True)
            return
        if len(state.rows) != seen:
            console.print(live.describe_progress(state, datetime.now()), highlight=False, soft_wrap=True)
            seen = len(state.rows)
        time.sleep(every_s)
