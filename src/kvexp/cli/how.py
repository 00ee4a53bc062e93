"""How a sweep is run, from the composed configuration: typed once, as what it measures is."""

from kvexp.cli.schema import Config, positive, shown, whole, word
from kvexp.errors import ConfigError
from kvexp.sweep.settings import ISOLATIONS, SweepSettings
from kvexp.tracking import TrackingSettings

MOST_ROUNDS = 1000


def settings(config: Config, tracking: TrackingSettings, resumes: bool) -> SweepSettings:
    """How the sweep is run.

    Args:
        config: The composed configuration.
        tracking: Where its runs go.
        resumes: Whether `resume=` was typed; it says where, so it is read before anything is composed.

    Raises:
        ConfigError: A key is of the wrong type or out of range, or `resume` is set where it was not typed.
    """
    timeout_s, fail_fast = config["timeout_s"], config["fail_fast"]
    if config["resume"] not in (False, None):
        raise ConfigError("resume must be typed on the command line, not set in a file")
    if not isinstance(fail_fast, bool):
        raise ConfigError(f"fail_fast must be true or false, not {shown(fail_fast)}")
    repeat = whole("repeat", config["repeat"], most=MOST_ROUNDS)
    isolation = ISOLATIONS[ISOLATIONS.index(word("isolation", config["isolation"], ISOLATIONS))]
    if repeat > 1 and isolation == "inline":
        raise ConfigError("repeat wants a fresh process each time, and isolation=inline has none; choose one")
    return SweepSettings(
        tracking=tracking,
        timeout_s=None if timeout_s is None else positive("timeout_s", timeout_s),
        fail_fast=fail_fast,
        isolation=isolation,
        resumes=resumes,
        repeat=repeat,
    )
