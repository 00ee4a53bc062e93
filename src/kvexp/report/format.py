"""Numbers and lists as words: the same on the console and on the page."""

from collections.abc import Sequence

DASH = "–"


def number(value: float) -> str:
    """Three significant digits, or all of a longer whole number: `1.26`, `70.7`, `6,245`."""
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    if value >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3g}"


def optional(value: float | None) -> str:
    """The number, or a dash where there is none."""
    return DASH if value is None else number(value)


def percent(fraction: float | None) -> str:
    """`94 %`, or a dash where there is none."""
    return DASH if fraction is None else f"{100 * fraction:.0f} %"


def tokens(count: int) -> str:
    """`1 token`, `65,536 tokens`."""
    return f"{count:,} token{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def duration(seconds: float) -> str:
    """`0:07`, `12:30` or `1:02:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
