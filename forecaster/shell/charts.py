"""Numbers -> SVG, in plain strings: lines, bands, bars and areas over two axes.

Colours and weights are classes, which the page's style sheet gives a light and a dark form. Knows nothing of
forecasts.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import ceil, floor, isfinite, log10

WIDE = 8  # of a digit where numbers are largest, on a phone

Format = Callable[[float], str]


def short(value: float) -> str:
    """A number as an axis shows it."""
    text = (
        f"{value / 1e6:g}M"
        if abs(value) >= 1e6
        else f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.6g}"
    )
    return text.replace("-", "\N{MINUS SIGN}")


def percent(value: float) -> str:
    """A share as an axis shows it."""
    if not isfinite(value):
        return "\N{EN DASH}"
    return f"{100 * value:.3g}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in [low, high], at most about so many.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** floor(log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    digits = max(0, -floor(log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def span(values: Iterable[float], margin: float = 0.06) -> tuple[float, float]:
    """The range of what is finite, and a little more."""
    finite = [value for value in values if isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room


class Plot:
    """A drawing area with its axes; what is drawn first lies below."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        width: int = 520,
        height: int = 230,
        bottom: int = 36,
    ) -> None:
        self._x, self._y = x, y
        self._width, self._height = width, height
        self._left, self._right, self._top, self._bottom = 54, 26, 10, bottom
        self._parts: list[str] = []

    def axes(
        self,
        x_label: str = "",
        y_label: str = "",
        *,
        x_format: Format = short,
        y_format: Format = short,
        x_ticks: Sequence[float] | None = None,
    ) -> "Plot":
        """Grid lines with numbers, and what the axes mean: y's meaning on top, so that it is in no number's way."""
        numbers = {value: y_format(value) for value in ticks(*self._y)}
        self._left = max(self._left, 6 + WIDE * max(map(len, numbers.values())))
        self._top += 16 if y_label else 0
        bottom, right = self._height - self._bottom, self._width - self._right
        self._text(0, 11, y_label, "start", "label")
        for value, number in numbers.items():
            y = self._at_y(value)
            self._parts.append(f'<path class="grid" d="M{self._left} {y:.1f}H{right}"/>')
            self._text(self._left - 6, y + 3.5, number, "end")
        for value in ticks(*self._x, most=8) if x_ticks is None else x_ticks:
            self._text(self._at_x(value), bottom + 15, x_format(value))
        self._text((self._left + right) / 2, self._height - 5, x_label, css="label")
        return self

    def line(self, xs: Sequence[float], ys: Sequence[float], css: str) -> "Plot":
        """A line through the points; it breaks where a value is not finite."""
        path, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if not isfinite(y):
                pen = "M"
                continue
            path.append(f"{pen}{self._at_x(x):.1f} {self._at_y(y):.1f}")
            pen = "L"
        self._parts.append(f'<path class="line {css}" d="{"".join(path)}"/>')
        return self

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], css: str) -> "Plot":
        """The area between two lines."""
        there = [f"{self._at_x(x):.1f} {self._at_y(y):.1f}" for x, y in zip(xs, high, strict=True)]
        back = [f"{self._at_x(x):.1f} {self._at_y(y):.1f}" for x, y in zip(xs, low, strict=True)][::-1]
        self._parts.append(f'<path class="area {css}" d="M{"L".join([*there, *back])}Z"/>')
        return self

    def bar(self, left: float, right: float, value: float, css: str, note: str = "") -> "Plot":
        """A bar from 0, or from the edge of the plot nearest to it."""
        if not isfinite(value):
            return self
        foot = self._at_y(min(max(0.0, self._y[0]), self._y[1]))
        top = self._at_y(value)
        x, width = self._at_x(left), self._at_x(right) - self._at_x(left)
        title = f"<title>{escape(note)}</title>" if note else ""
        self._parts.append(
            f'<rect class="area {css}" x="{x:.1f}" y="{min(top, foot):.1f}" width="{max(width, 0.5):.1f}"'
            f' height="{abs(top - foot):.1f}">{title}</rect>'
        )
        return self

    def dots(self, points: Iterable[tuple[float, float, str]], css: str) -> "Plot":
        """Dots with a note each, shown on hover."""
        for x, y, note in points:
            if isfinite(y):
                self._parts.append(
                    f'<circle class="dot {css}" cx="{self._at_x(x):.1f}" cy="{self._at_y(y):.1f}" r="3">'
                    f"<title>{escape(note)}</title></circle>"
                )
        return self

    def rule(self, y: float, css: str = "target") -> "Plot":
        """A line across, for what is aimed at."""
        return self.line(self._x, (y, y), css)

    def mark(self, x: float, css: str, note: str) -> "Plot":
        """A line from top to bottom, with a note shown on hover."""
        at = self._at_x(x)
        self._parts.append(
            f'<path class="mark {css}" d="M{at:.1f} {self._top}V{self._height - self._bottom}">'
            f"<title>{escape(note)}</title></path>"
        )
        return self

    def svg(self, label: str) -> str:
        """The drawing; `label` is read out where nothing can be seen."""
        return (
            f'<svg viewBox="0 0 {self._width} {self._height}" role="img" aria-label="{escape(label)}">'
            + "".join(self._parts)
            + "</svg>"
        )

    def _text(self, x: float, y: float, text: str, anchor: str = "middle", css: str = "number") -> None:
        if text:
            self._parts.append(
                f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
            )

    def _at_x(self, value: float) -> float:
        low, high = self._x
        share = (value - low) / (high - low) if high > low else 0.5
        return self._left + share * (self._width - self._left - self._right)

    def _at_y(self, value: float) -> float:
        low, high = self._y
        share = (min(max(value, low), high) - low) / (high - low) if high > low else 0.5
        bottom = self._height - self._bottom
        return bottom - share * (bottom - self._top)
