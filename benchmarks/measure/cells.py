"""Formats figures as the text of a table's cell; a missing figure is an empty cell."""

from collections.abc import Mapping

from benchmarks.publish.records import Baseline, Spread


def count(value: float | None) -> str:
    """Return a whole number: `12,345`."""
    return "" if value is None else f"{value:,.0f}"


def thousands(value: float) -> str:
    """Return a large number with two or three digits.

    >>> thousands(348_211), thousands(23_310_000), thousands(930)
    ('348 k', '23.3 M', '930')
    """
    if value >= 1e6:
        return f"{value / 1e6:.{1 if value >= 1e7 else 2}f} M"
    return f"{value / 1e3:.0f} k" if value >= 1e4 else f"{value:,.0f}"


def spread(value: Spread | None) -> str:
    """Return the percentiles and n: `12,000–13,000 (5)`."""
    return f"{value.p10:,.0f}–{value.p90:,.0f} ({value.n})" if value else ""


def percent(fraction: float | None) -> str:
    """Return a fraction in per cent: `38.2 %`."""
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def memory(num_bytes: int | None) -> str:
    """Return bytes in GiB: `1.25 GiB`."""
    return "" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with this many digits after the point."""
    return "" if value is None else f"{value:.{digits}f}"


def significant(value: float | None) -> str:
    """Return a number with three significant digits."""
    return "" if value is None else f"{value:.3g}"


def parts(timeline: Mapping[str, float] | None) -> str:
    """Return the parts of a time, in seconds: `imports 4.1, data 0.3`."""
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in (timeline or {}).items())


def comparison(baseline: Baseline | None) -> str:
    """Return the ratio to a baseline with its name: `1.004 × NAME (0.998–1.007)`."""
    if baseline is None:
        return ""
    ratio, digits = baseline.ratio, 3 if baseline.ratio.median < 2 else 2
    return f"{ratio.median:.{digits}f} × {baseline.variant} ({ratio.p10:.{digits}f}–{ratio.p90:.{digits}f})"


def speed_up(baseline: Baseline | None) -> str:
    """Return the ratio to a baseline that is the same for all rows: `1.93 (1.92–1.95)`."""
    if baseline is None:
        return ""
    ratio = baseline.ratio
    return f"{ratio.median:.2f} ({ratio.p10:.2f}–{ratio.p90:.2f})"


def accuracy(mean: float | None, std: float | None, n: int | None = None) -> str:
    """Return an accuracy in per cent, with its deviation and n if they are given.

    >>> accuracy(0.9401, 0.0012, 5), accuracy(0.9401, None, 1), accuracy(0.9401, 0.0012)
    ('94.01 ± 0.12 % (5)', '94.01 % (1)', '94.01 ± 0.12 %')
    """
    if mean is None:
        return ""
    deviation = f" ± {100 * std:.2f}" if std is not None else ""
    runs = f" ({n})" if n is not None else ""
    return f"{100 * mean:.2f}{deviation} %{runs}"


def p_value(p: float | None) -> str:
    """Return a probability with two significant digits.

    >>> p_value(0.0312), p_value(3e-9), p_value(None)
    ('0.031', '< 0.0001', '')
    """
    if p is None:
        return ""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"
