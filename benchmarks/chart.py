"""Two charts as SVG, readable on light and dark pages: bars in panels, and lines on logarithmic axes."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

WIDTH = 860
STYLE = """<style>
  text { font: 12px -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .panel { font-weight: 600 }
  .soft { fill: #59636e }
  .ours { font-weight: 600 }
  .bar { fill: #8c959f } .bar.ours { fill: #0969da } .bar.floor { fill: #c8ced5 }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .line { fill: none; stroke: #8c959f; stroke-width: 2 } .line.ours { stroke: #0969da; stroke-width: 3 }
  .dot { fill: #8c959f } .dot.ours { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .soft { fill: #9198a1 }
    .bar { fill: #767e88 } .bar.ours { fill: #4493f8 } .bar.floor { fill: #4a5058 }
    .grid { stroke: #3d444d }
    .line { stroke: #767e88 } .line.ours { stroke: #4493f8 }
    .dot { fill: #767e88 } .dot.ours { fill: #4493f8 }
  }
</style>"""


class Panel(NamedTuple):
    """One row: a title and a value for each peer."""

    title: str
    bars: list[tuple[str, float]]


def _kind(peer: str) -> str:
    return "ours" if peer == "fastproxy" else "floor" if peer.startswith("floor") else "peer"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _svg(height: float, title: str, body: list[str]) -> str:
    open_tag = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(title)}">'
    )
    heading = f'<text class="title" x="12" y="24">{escape(title)}</text>'
    return "\n".join([open_tag, STYLE, heading, *body, "</svg>", ""])


def _soft(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def bars(title: str, panels: list[Panel]) -> str:
    """Panels in two columns; bars by value, each with its own figure, scaled to its panel."""
    column, label, step = WIDTH / 2, 122, 20
    body: list[str] = []
    top = 44.0
    for pair in range(0, len(panels), 2):
        tall = 0.0
        for place, panel in enumerate(panels[pair : pair + 2]):
            left = 12 + place * column
            most = max(value for _, value in panel.bars)
            room = column - label - 90
            body.append(f'<text class="panel" x="{left:.0f}" y="{top + 14:.0f}">{escape(panel.title)}</text>')
            y = top + 24
            for peer, value in sorted(panel.bars, key=lambda bar: bar[1]):
                kind, wide = _kind(peer), max(1.0, room * value / most)
                middle = y + 13
                body.append(
                    f'<text class="{kind}" x="{left + label - 8:.0f}" y="{middle:.0f}" text-anchor="end">'
                    f"{escape(peer)}</text>"
                    f'<rect class="bar {kind}" x="{left + label:.0f}" y="{y + 2:.0f}" width="{wide:.1f}" '
                    f'height="{step - 6}" rx="2"/>'
                    f'<text class="{kind}" x="{left + label + wide + 6:.1f}" y="{middle:.0f}">'
                    f"{_number(value)}</text>"
                )
                y += step
            tall = max(tall, y - top)
        top += tall + 14
    return _svg(top, title, body)


def lines(title: str, across: str, series: dict[str, list[tuple[float, float]]]) -> str:
    """One line for each peer, both axes logarithmic, named at its end."""
    height, left, right, top, bottom = 400, 62, 190, 44, 52
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    first, last = math.log10(xs[0]), math.log10(xs[-1])

    def at_x(x: float) -> float:
        return left + (math.log10(x) - first) / ((last - first) or 1) * (WIDTH - left - right)

    def at_y(y: float) -> float:
        return height - bottom - (math.log10(y) - low) / ((high - low) or 1) * (height - top - bottom)

    body = []
    for power in range(low, high + 1):
        y = at_y(10.0**power)
        body.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_soft(left - 8, y + 4, "end", f"{10.0**power:,.0f} µs"))
    for x in xs:
        body.append(_soft(at_x(x), height - bottom + 20, "middle", f"{x:,.0f}"))
    middle = left + (WIDTH - left - right) / 2
    body.append(_soft(middle, height - 12, "middle", across))
    ends = sorted((at_y(points[-1][1]), peer) for peer, points in series.items())
    taken = -math.inf
    for y, peer in ends:  # labels are pushed down until none covers another
        points, kind = series[peer], _kind(peer)
        path = " ".join(f"{at_x(x):.1f},{at_y(v):.1f}" for x, v in points)
        body.append(f'<polyline class="line {kind}" points="{path}"/>')
        body += [
            f'<circle class="dot {kind}" cx="{at_x(x):.1f}" cy="{at_y(v):.1f}" r="3.5"/>' for x, v in points
        ]
        taken = max(y, taken + 17)
        end_x = at_x(points[-1][0])
        body.append(
            f'<text class="{kind}" x="{end_x + 12:.1f}" y="{taken + 4:.1f}">'
            f"{escape(peer)} {_number(points[-1][1])}</text>"
        )
    return _svg(height, title, body)
