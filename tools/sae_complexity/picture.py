"""One SVG picture of small multiples: mean L0 per tenth of every measure, a line per method. It has both colour schemes."""

from xml.sax.saxutils import escape

WIDTH, HEIGHT = 252, 196  # of a panel
LEFT, TOP, RIGHT, BOTTOM = 38, 30, 10, 38  # of a panel's drawing area
COLUMNS = 3
HEAD = 30  # above the panels of a data set
LEGEND = 34
# Those of the other plots here: told apart by most kinds of colour vision, and readable on white and on black.
COLOURS = ("#2f81d6", "#d9822b", "#239b6e", "#c457a5", "#8a6fd1", "#a08a1f")
STYLE = (
    "text{font:12px sans-serif;fill:#1f2328}.t{font-weight:bold}.s{font-size:11px}.g{stroke:#d0d7de}.b{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{stroke:#3d444d}.b{fill:#0d1117}}"
)


def steps(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, with at most `most` steps."""
    span = max(high - low, 1e-9)
    size = 1e-12
    while True:
        for factor in (1, 2, 5):
            step = size * factor
            first, last = int(low // step), -int(-high // step)
            if last - first <= most and step * most >= span:
                return [i * step for i in range(first, last + 1)]
        size *= 10


def short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


class Panel:
    """One measure: x is the place of rows in its order, y the mean L0, with the same scale in all panels of a data set."""

    def __init__(self, entry: dict, left: float, top: float, ticks: list[float]):
        self.entry, self.ticks = entry, ticks
        self.area = (left + LEFT, top + TOP, left + WIDTH - RIGHT, top + HEIGHT - BOTTOM)

    def x(self, share: float) -> float:
        return self.area[0] + share * (self.area[2] - self.area[0])

    def y(self, l0: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.area[3] - (l0 - low) / (high - low) * (self.area[3] - self.area[1])

    def axes(self) -> list[str]:
        left, top, right, bottom = self.area
        name = self.entry["name"] + (" (control)" if self.entry["control"] else "")
        out = [text(left, top - 10, name, "t")]
        for tick in self.ticks:
            y = self.y(tick)
            out += [f'<path class="g" d="M{left:.1f} {y:.1f}H{right:.1f}"/>', text(left - 6, y + 4, short(tick), "s", "end")]
        end = -1e9  # of the label before
        for group in self.entry["tenths"]:
            x, label = self.x(group["middle"]), short(group["median"])
            if x - 3.5 * len(label) >= end + 6:
                out.append(text(x, bottom + 16, label, "s", "middle"))
                end = x + 3.5 * len(label)
        return out

    def line(self, name: str, colour: str, shift: float) -> list[str]:
        """The line of one method with its intervals; `shift` keeps the intervals of methods beside each other."""
        points = [(self.x(group["middle"]) + shift, group["l0"][name]) for group in self.entry["tenths"]]
        path = " ".join(f"{x:.1f},{self.y(l0['value']):.1f}" for x, l0 in points)
        bars = "".join(f"M{x:.1f} {self.y(l0['low']):.1f}V{self.y(l0['high']):.1f}" for x, l0 in points)
        out = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
        out.append(f'<path d="{bars}" stroke="{colour}" stroke-width="1.5" fill="none"/>')
        return out + [f'<circle cx="{x:.1f}" cy="{self.y(l0["value"]):.1f}" r="2.4" fill="{colour}"/>' for x, l0 in points]


def data_set(result: dict, top: float, colours: dict[str, str]) -> tuple[list[str], float]:
    """The panels of one result, and where they end."""
    entries = result["measures"]
    every = [own for entry in entries for group in entry["tenths"] for own in group["l0"].values()]
    ticks = steps(min(own["low"] for own in every), max(own["high"] for own in every))
    out = [text(12, top + 18, result["title"], "t")]
    for i, entry in enumerate(entries):
        panel = Panel(entry, i % COLUMNS * WIDTH + 8, top + HEAD + i // COLUMNS * HEIGHT, ticks)
        out += panel.axes()
        names = list(entry["methods"])
        for j, name in enumerate(names):
            out += panel.line(name, colours[name], 2.0 * (j - (len(names) - 1) / 2))
    return out, top + HEAD + -(-len(entries) // COLUMNS) * HEIGHT


def picture(results: list[dict]) -> str:
    names = list(dict.fromkeys(name for result in results for entry in result["measures"] for name in entry["methods"]))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    body, x = [], 12.0
    for name in names:
        body += [f'<path d="M{x:.1f} 18h22" stroke="{colours[name]}" stroke-width="3"/>', text(x + 28, 22, name)]
        x += 48 + 7.0 * len(name)
    bottom = float(LEGEND)
    for result in results:
        panels, bottom = data_set(result, bottom, colours)
        body += panels
    foot = "Mean L0 with its interval of 95 %, per tenth of the held-out rows in the order of a measure; below: its median."
    body.append(text(12, bottom + 14, foot, "s"))
    width, height = COLUMNS * WIDTH + 16, int(bottom + 26)
    title = "Mean L0 per tenth of every measure: " + "; ".join(result["title"] for result in results)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="b" width="{width}" height="{height}"/>\n' + "\n".join(body) + "\n</svg>\n"
    )
