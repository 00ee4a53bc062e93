"""Format numbers and lists, in the same way on the console and on the page."""

from collections.abc import Sequence

DASH = "–"


def number(value: float) -> str:
    """Format with three significant digits, or all of a longer whole number: `1.26`, `70.7`, `6,245`."""
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    if value >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3g}"


def optional(value: float | None) -> str:
    """Format a number, or a dash for None."""
    return DASH if value is None else number(value)


def percent(fraction: float | None) -> str:
    """Format as `94 %`, or a dash for None."""
    return DASH if fraction is None else f"{100 * fraction:.0f} %"


def small_percent(fraction: float) -> str:
    """Format as `2.3 %`, from 10 % on without a decimal."""
    return f"{100 * fraction:.{0 if fraction >= 0.0995 else 1}f} %"


def longer(ratio: float) -> str:
    """Format a ratio of latencies: `2.3 % longer`, `12 % shorter`, `3.1 times as long` or `as fast`."""
    if ratio >= 2 or ratio <= 0.5:
        return f"{number(max(ratio, 1 / ratio))} times as {'long' if ratio > 1 else 'fast'}"
    return f"{small_percent(abs(ratio - 1))} {'longer' if ratio > 1 else 'shorter'}"


def tokens(count: int) -> str:
    """Format as `1 token` or `65,536 tokens`."""
    return f"{count:,} token{'' if count == 1 else 's'}"


def join_words(words: Sequence[str]) -> str:
    """Join to `a`, `a and b` or `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def join_or(words: Sequence[str]) -> str:
    """Join to `a`, `a or b` or `a, b or c`."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def duration(seconds: float) -> str:
    """Format as `0:07`, `12:30` or `1:02:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
