"""A comparison shown: tables in the terminal, and one HTML page that loads nothing from anywhere."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Sized

    from rich.console import Group

    from dojo_kernel.evaluate import Difficulty, Evaluation, Interval, Section, Summary
    from dojo_kernel.rows import Failures, Row

By = Literal["agent", "domain", "competition"]

Cells = list[list[str]]


class Grid(NamedTuple):
    """A table before anyone knows where it is shown; the first `words` columns hold words, the others numbers."""

    title: str
    head: list[str]
    body: Cells
    words: int


# --- what stands in a cell -----------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 1) -> str:
    """A dash for what is not known."""
    return "-" if value is None else f"{value:,.{digits}f}"


def interval(figure: Interval | None, digits: int = 1) -> str:
    """With its 95 % interval, if it has one."""
    if figure is None:
        return "-"
    if figure.low is None or figure.high is None:
        return number(figure.value, digits)
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def rate(failures: Failures) -> str:
    """Per cent failed, and of how many."""
    return "-" if failures.rate is None else f"{100 * failures.rate:.1f} % of {failures.steps}"


def cost(dollars: float | None) -> str:
    """Unknown stays unknown."""
    return "unknown" if dollars is None else f"${dollars:.2f}" if dollars >= 1 else f"${dollars:.4f}"


def kinds(failures: Failures) -> str:
    """Most frequent first."""
    if not failures.steps:
        return "-"
    ordered = sorted(failures.kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered) or "none"


def _medals(one: Summary) -> str:
    return "/".join(str(one.medals[name]) for name in ("gold", "silver", "bronze")) if one.medals else "-"


def _letters(evaluation: Evaluation) -> dict[str, str]:
    """Protocol -> a short name for tables."""
    found = sorted({str(row.protocol) for row in evaluation.rows if not row.left_out})
    return {protocol: f"P{place}" for place, protocol in enumerate(found, start=1)}


# --- tables --------------------------------------------------------------------------------------------------------------


def grids(evaluation: Evaluation, by: By = "agent") -> list[Grid]:
    """The tables of a report, the most asked for first."""
    letters = _letters(evaluation)
    if by == "competition":
        return [_by_competition(evaluation)]
    if by == "domain":
        return [_by_domain(evaluation, letters)]
    return [_comparison(evaluation.overall, letters), _spent(evaluation.overall), _failures(evaluation.overall)]


def _comparison(section: Section, letters: dict[str, str]) -> Grid:
    ks = sorted({k for one in section.agents for k in one.best_of if k > 1})
    shown = [k for k in ks if k in {2, 3, 5, ks[-1]}]
    head = ["agent", "protocol", "comp.", "episodes", "H-Rank %", *(f"best of {k}" for k in shown), *_HEAD_END]
    body = [
        [
            one.agent,
            "+".join(letters[protocol] for protocol in one.disclosures) or "-",
            str(one.competitions),
            str(one.episodes),
            interval(one.h_rank),
            *(number(one.best_of.get(k)) for k in shown),
            _medals(one),
            interval(one.elo, 0),
            interval(one.aup, 3),
        ]
        for one in section.agents
    ]
    return Grid(f"agents over {_count(section.competitions, 'competition')}", head, body, 2)


_HEAD_END: Final = ("medals g/s/b", "Elo", "AUP")


def _spent(section: Section) -> Grid:
    head = ["agent", "steps", "seconds", "tokens", "cost", "no score", "bad calls", "feedback - final H-Rank"]
    body = [
        [
            one.agent,
            number(one.steps),
            number(one.seconds),
            "unknown" if one.tokens is None else number(one.tokens, 0),
            cost(one.cost),
            f"{one.unscored} of {one.episodes}",
            str(one.bad_calls),
            "-" if one.gap is None else f"{one.gap:+.1f}",
        ]
        for one in section.agents
    ]
    return Grid("an episode takes, on average", head, body, 1)


def _failures(section: Section) -> Grid:
    head = ["agent", "all failed", "validate_code failed", "execute_code failed", "kinds"]
    body = [
        [
            one.agent,
            rate(one.validations.plus(one.executions)),
            rate(one.validations),
            rate(one.executions),
            kinds(one.validations.plus(one.executions)),
        ]
        for one in section.agents
    ]
    return Grid("failed steps", head, body, 5)


def _by_domain(evaluation: Evaluation, letters: dict[str, str]) -> Grid:
    body: Cells = []
    head: list[str] = []
    for section in (*evaluation.domains, evaluation.overall):
        grid = _comparison(section, letters)
        short = [name for name in grid.head if not name.startswith("best of")]
        keep = [grid.head.index(name) for name in short]
        head = ["domain", *short]
        body += [[section.title, *(line[place] for place in keep)] for line in grid.body]
    return Grid("agents by domain", head, body, 3)


_BOARDS: Final = {
    "people": "people", "percentiles": "people (percentiles)", "programs": "programs", "none": "none", "unknown": "unknown",
}  # fmt: skip


def _by_competition(evaluation: Evaluation) -> Grid:
    agents = [one.agent for one in evaluation.overall.agents]
    head = ["competition", "domain", "board", "better", "mean H-Rank %", *agents]

    def cell(one: Difficulty, agent: str) -> str:
        score, rank, without = one.by_agent.get(agent), one.ranks.get(agent), one.unscored.get(agent, 0)
        parts = ["" if score is None else f"{score:.5g}", "" if rank is None else f"({rank:.1f} %)"]
        parts.append(f"{without} unscored" if without else "")
        return " ".join(part for part in parts if part) or "-"

    body = [
        [one.competition, one.domain, _BOARDS[one.board], one.better, number(one.h_rank), *(cell(one, agent) for agent in agents)]
        for one in evaluation.competitions
    ]
    return Grid("competitions: mean score (and H-Rank) of each agent", head, body, 4)


def render(evaluation: Evaluation, by: By = "agent") -> Group:
    """For a terminal."""
    from rich import box  # noqa: PLC0415 - only where people read
    from rich.console import Group  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    from dojo_kernel.feedback import clean  # noqa: PLC0415 - as above

    parts: list[Table | Text] = [Text(clean(f"! {line}"), style="yellow") for line in evaluation.notices]
    for grid in grids(evaluation, by):
        table = Table(
            box=box.SIMPLE, title=grid.title, title_justify="left", title_style="bold", pad_edge=False, collapse_padding=True
        )
        for place, name in enumerate(grid.head):
            table.add_column(Text(clean(name)), justify="left" if place < grid.words else "right", no_wrap=place == 0)
        for line in grid.body:
            table.add_row(*(Text(clean(cell)) for cell in line))
        parts.append(table)
    parts += [Text(clean(f"{name}: {protocol}")) for protocol, name in _letters(evaluation).items()]
    left = sum(bool(row.left_out) for row in evaluation.rows)
    parts.append(Text(f"{len(evaluation.rows)} episodes, {left} left out of these figures; every row: --json, or --html FILE"))
    return Group(*parts)


# --- the page ------------------------------------------------------------------------------------------------------------

_STYLE: Final = """
:root { color-scheme: light dark;

  --ink: #1c2330;
  --soft: #5b6575;
  --line: #dfe3ea;
  --back: #ffffff;
  --card: #f6f8fb;
  --warn: #8a5a00;
  --warnback: #fff6e0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef;
  --soft: #9aa5b5;
  --line: #303846;
  --back: #14181f;
  --card: #1b212b;
  --warn: #f2c46b;
  --warnback: #2b2415 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: var(--ink);
  background: var(--back); margin: 0 auto; max-width: 1240px; padding: 28px 28px 60px }
h1 { font-size: 26px; margin: 0 0 2px; letter-spacing: -0.01em } h2 { font-size: 18px; margin: 36px 0 10px }
p.lead { color: var(--soft); margin: 0 0 18px }
.notices { background: var(--warnback); color: var(--warn); border-radius: 8px; padding: 10px 16px; margin: 0 0 8px;
  list-style: none }
.notices li { margin: 2px 0 } .notices li::before { content: "! "; font-weight: 700 }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); padding: 6px 12px 6px 0;
  vertical-align: bottom }
td { border-bottom: 1px solid var(--line); padding: 6px 12px 6px 0; vertical-align: top } tr:last-child td { border-bottom: 0 }
.n { text-align: right; white-space: nowrap } td:first-child { font-weight: 600; white-space: nowrap }
td.d { font-size: 12px; color: var(--soft); font-weight: 400; min-width: 340px }
.out td { color: var(--soft) } .out td:first-child { font-weight: 400 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 18px; align-items: start }
figure { margin: 0; background: var(--card); border-radius: 10px; padding: 14px 14px 8px } figcaption { font-weight: 600;
  margin-bottom: 2px }
figcaption small { display: block; font-weight: 400; color: var(--soft) } svg { display: block; width: 100%; height: auto }
svg text { font-size: 12px; fill: var(--soft) } svg text.k { fill: var(--ink) } svg .g { stroke: var(--line); stroke-width: 1 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 14px;
  font-size: 13.5px } dt { font-weight: 600 } dd { margin: 0 }
details summary { cursor: pointer; color: var(--soft) } ul.how { font-size: 13.5px; color: var(--soft); padding-left: 18px }
"""
_COLOURS: Final = ("#3568d4", "#e07b1a", "#2a9d5c", "#c2417c", "#7b57c9", "#0f96a8", "#b33a3a", "#7a7f12", "#5b6b82", "#9c6644")


_HEAD: Final = """<!doctype html><html lang='en'><head><meta charset='utf-8'>
<meta name='viewport' content='width=device-width, initial-scale=1'>
<meta http-equiv='Content-Security-Policy' content="default-src 'none'; style-src 'unsafe-inline'"><title>dojo report</title>"""


def _count(ones: Sized, noun: str) -> str:
    return f"{len(ones)} {noun}{'' if len(ones) == 1 else 's'}"


def page(evaluation: Evaluation) -> str:
    """The whole report as one HTML page: text, tables, plots as SVG; no script, no font, no request."""
    names = sorted(one.agent for one in evaluation.overall.agents)
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    letters = _letters(evaluation)
    counted = (names, "agent"), (evaluation.overall.competitions, "competition"), (evaluation.rows, "episode")
    lead = ", ".join(_count(ones, noun) for ones, noun in counted)
    notices = "".join(f"<li>{html.escape(line)}</li>" for line in evaluation.notices)
    plots = "".join(_plots(evaluation, colours))
    first, *others = grids(evaluation)
    parts = [
        f"{_HEAD}<style>{_STYLE}</style></head><body>",
        f"<h1>Agents compared</h1><p class='lead'>{lead}</p>",
        f"<ul class='notices'>{notices}</ul>" if notices else "",
        _grid(first),
        _protocols(letters),
        f"<h2>Plots</h2><div class='plots'>{plots}</div>" if plots else "",
        *map(_grid, others),
        _grid(_by_domain(evaluation, letters)) if len(evaluation.domains) > 1 else "",
        _grid(_by_competition(evaluation)),
        _episodes(evaluation.rows),
        "<h2>How these figures are made</h2><ul class='how'>",
        *(f"<li>{html.escape(line)}</li>" for line in evaluation.methods),
        "</ul></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _protocols(letters: dict[str, str]) -> str:
    lines = "".join(f"<dt>{name}</dt><dd>{html.escape(protocol)}</dd>" for protocol, name in letters.items())
    return f"<h2>Protocols</h2><dl>{lines}</dl>" if lines else ""


def _cell(tag: str, text: str, kind: str = "") -> str:
    return f"<{tag} class='{kind}'>{html.escape(text)}</{tag}>" if kind else f"<{tag}>{html.escape(text)}</{tag}>"


def _row(cells: Iterable[str], words: int, tag: str = "td") -> str:
    """The first `words` cells are words, the others numbers."""
    return f"<tr>{''.join(_cell(tag, cell, '' if place < words else 'n') for place, cell in enumerate(cells))}</tr>"


def _table(head: str, body: Iterable[str]) -> str:
    return f"<div class='wide'><table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table></div>"


def _grid(grid: Grid) -> str:
    title = html.escape(grid.title[:1].upper() + grid.title[1:])
    return f"<h2>{title}</h2>" + _table(_row(grid.head, grid.words, "th"), (_row(line, grid.words) for line in grid.body))


_EPISODE: Final = {
    "agent": "", "competition": "", "seed": "n", "score": "n", "HumanRank": "n", "medal": "", "ended": "", "seconds": "n",
    "cost": "n", "disclosure": "d",
}  # fmt: skip
"""Columns of the table of episodes, and what they are to the style."""


def _episodes(rows: Sequence[Row]) -> str:
    head = "".join(_cell("th", name, kind) for name, kind in _EPISODE.items())
    table = _table(f"<tr>{head}</tr>", map(_episode, rows))
    return f"<h2>Every episode</h2><details open><summary>{len(rows)} rows</summary>{table}</details>"


def _episode(row: Row) -> str:
    why = f"LEFT OUT: {row.left_out}; " if row.left_out else ""
    score = "-" if row.score is None else f"{row.score:.6g}"
    cells = [
        row.agent, row.competition, str(row.seed), score, number(row.human_rank, 3), row.medal or "-", row.ended,
        number(row.seconds), cost(row.cost), why + row.disclosure,
    ]  # fmt: skip
    made = "".join(_cell("td", text, kind) for text, kind in zip(cells, _EPISODE.values(), strict=True))
    return f"<tr class='out'>{made}</tr>" if row.left_out else f"<tr>{made}</tr>"


# --- plots ---------------------------------------------------------------------------------------------------------------


def _plots(evaluation: Evaluation, colours: dict[str, str]) -> Iterable[str]:
    agents = evaluation.overall.agents
    if ranked := [(one.agent, one.h_rank) for one in agents if one.h_rank is not None]:
        yield _figure("H-Rank", "per cent, with 95 % interval", _bars(ranked, colours, Axis(0, 100, ""), 0, 1))
    if rated := [(one.agent, one.elo) for one in agents if one.elo is not None]:
        under = "median and 95 % interval of 100 bootstraps; 1000 is the mean"
        values = [value for _, one in rated for value in (one.value, one.low, one.high) if value is not None]
        axis = Axis(math.floor(min(*values, 900) / 100) * 100, math.ceil(max(*values, 1100) / 100) * 100, "")
        yield _figure("Elo", under, _bars(rated, colours, axis, 1000, 0))
    if curves := {one.agent: _counted(one.curve) for one in agents if len(one.curve) > 1}:
        under = "best so far on the feedback rows, mean over episodes; steps that only ask left out"
        across = Axis(1, max(len(points) for points in curves.values()), "step")
        yield _figure("HumanRank step by step", under, _lines(curves, colours, across, Axis(0, 1, "HumanRank")))
    if profiled := {one.agent: _staircase(one.profile) for one in agents if one.profile}:
        under = "share of competitions within a factor 10^tau of the best score; AUP is the area"
        yield _figure("Performance profile", under, _lines(profiled, colours, Axis(0, 2, "tau"), Axis(0, 1, "share")))
    if deeper := {one.agent: _counted(list(one.best_of.values())) for one in agents if len(one.best_of) > 1}:
        across = Axis(1, max(len(points) for points in deeper.values()), "k")
        yield _figure("Best of k runs", "H-Rank in per cent", _lines(deeper, colours, across, Axis(0, 100, "H-Rank %")))
    if failing := [one for one in agents if one.validations.steps + one.executions.steps]:
        yield _figure("Failed steps", "per cent of validate_code and execute_code, by kind", _stacks(failing))


def _counted(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(place), value) for place, value in enumerate(values, start=1)]


def _staircase(steps: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    points, share = [(0.0, 0.0)], 0.0
    for tau, grown in steps:
        points += [(tau, share), (tau, grown)]
        share = grown
    return [*points, (2.0, share)]


def _figure(title: str, under: str, drawing: str) -> str:
    return f"<figure><figcaption>{html.escape(title)}<small>{html.escape(under)}</small></figcaption>{drawing}</figure>"


class Axis(NamedTuple):
    """From where to where, and what."""

    low: float
    high: float
    name: str

    def ticks(self) -> list[float]:
        """About five round numbers."""
        span = max(self.high - self.low, 1e-9)
        raw = span / 5
        power = 10 ** math.floor(math.log10(raw))
        step = next(power * one for one in (1, 2, 2.5, 5, 10) if power * one >= raw * 0.999)
        if self.name in {"step", "k"}:
            step = max(1.0, math.ceil(step))
        first = math.ceil(self.low / step - 1e-9) * step
        return [first + i * step for i in range(int((self.high - first) / step + 1e-9) + 1)]

    def at(self, start: float, end: float) -> Callable[[float], float]:
        """A place on the paper for each value."""
        span = (self.high - self.low) or 1.0
        return lambda value: start + (min(max(value, self.low), self.high) - self.low) / span * (end - start)


_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDE, _HIGH = 46, 540, 12, 250, 560, 290


def _svg(height: float, body: str) -> str:
    return f"<svg viewBox='0 0 {_WIDE} {height:.0f}' role='img' xmlns='http://www.w3.org/2000/svg'>{body}</svg>"


def _text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' class='{kind}'>{html.escape(words)}</text>"


def _lines(series: dict[str, list[tuple[float, float]]], colours: dict[str, str], across: Axis, up: Axis) -> str:
    x, y = across.at(_LEFT, _RIGHT), up.at(_BOTTOM, _TOP)
    drawn = []
    for tick in up.ticks():
        line = f"<line class='g' x1='{_LEFT}' x2='{_RIGHT}' y1='{y(tick):.1f}' y2='{y(tick):.1f}'/>"
        drawn += [line, _text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end")]
    drawn += [_text(x(tick), _BOTTOM + 18, f"{tick:g}", "middle") for tick in across.ticks()]
    drawn.append(_text(_RIGHT, _BOTTOM + 34, across.name, "end"))
    for agent, points in series.items():
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        style = f"fill='none' stroke='{colours[agent]}' stroke-width='2.2' stroke-linejoin='round'"
        drawn.append(f"<polyline points='{path}' {style}/>")
    legend, height = _legend([(agent, colours[agent]) for agent in series], _HIGH + 6)
    return _svg(height, "".join(drawn) + legend)


def _legend(entries: Sequence[tuple[str, str]], top: float) -> tuple[str, float]:
    """Swatches with names, as many on a line as fit; and where they end."""
    drawn, x, y = [], float(_LEFT), top
    for name, colour in entries:
        width = 26 + 6.6 * len(name)
        if x + width > _RIGHT and x > _LEFT:
            x, y = float(_LEFT), y + 20
        drawn.append(f"<rect x='{x:.1f}' y='{y - 10:.1f}' width='12' height='12' rx='3' fill='{colour}'/>")
        drawn.append(_text(x + 18, y, name, kind="k"))
        x += width + 14
    return "".join(drawn), y + 12


class _Bars:
    """Horizontal bars, one a name, on a scale of their own; drawn from top to bottom."""

    def __init__(self, names: Sequence[str], axis: Axis) -> None:
        self._left = min(200.0, 16 + 6.8 * max(len(name) for name in names))
        self.x = axis.at(self._left, _RIGHT - 58)
        self.bottom = 14 + 30 * len(names)
        self.drawn = []
        for tick in axis.ticks():
            line = f"<line class='g' x1='{self.x(tick):.1f}' x2='{self.x(tick):.1f}' y1='8' y2='{self.bottom}'/>"
            self.drawn += [line, _text(self.x(tick), self.bottom + 18, f"{tick:g}", "middle")]

    def name(self, place: int, words: str) -> None:
        """At the left of a bar."""
        half = _MARGIN // 2
        shown = words if len(words) <= _MARGIN else f"{words[: half - 1]}…{words[-half:]}"
        self.drawn.append(_text(self._left - 8, 28 + 30 * place, shown, "end", "k"))

    def bar(self, place: int, start: float, end: float, style: str) -> None:
        """Between two values."""
        one, other = sorted((self.x(start), self.x(end)))
        size = f"x='{one:.1f}' y='{16 + 30 * place}' width='{max(other - one, 1.5):.1f}' height='16'"
        self.drawn.append(f"<rect {size} {style}/>")

    def whisker(self, place: int, low: float, high: float) -> None:
        """Over an interval."""
        one, other, y = self.x(low), self.x(high), 24 + 30 * place
        path = f"M{one:.1f} {y}H{other:.1f}M{one:.1f} {y - 5}v10M{other:.1f} {y - 5}v10"
        self.drawn.append(f"<path d='{path}' stroke='var(--ink)' stroke-width='1.4' fill='none'/>")

    def label(self, place: int, value: float, words: str) -> None:
        """At the right of a value."""
        self.drawn.append(_text(self.x(value) + 8, 28 + 30 * place, words, kind="k"))


_MARGIN: Final = 28
"""Letters of a name beside a bar."""


def _bars(figures: Sequence[tuple[str, Interval]], colours: dict[str, str], axis: Axis, origin: float, digits: int) -> str:
    """A bar a name, from `origin` to its value, with a whisker over its interval."""
    bars = _Bars([name for name, _ in figures], axis)
    for place, (name, figure) in enumerate(figures):
        bars.name(place, name)
        bars.bar(place, origin, figure.value, f"rx='3' fill='{colours[name]}' fill-opacity='.85'")
        reach = max(origin, figure.value)
        if figure.low is not None and figure.high is not None:
            bars.whisker(place, figure.low, figure.high)
            reach = max(reach, figure.high)
        bars.label(place, reach, f"{figure.value:.{digits}f}")
    return _svg(bars.bottom + 28, "".join(bars.drawn))


def _stacks(agents: Sequence[Summary]) -> str:
    """Failure rates by kind, as shares of all steps that ran code."""
    both = {one.agent: one.validations.plus(one.executions) for one in agents}
    names = sorted({kind for one in both.values() for kind in one.kinds})
    colours = {name: _COLOURS[(place + 6) % len(_COLOURS)] for place, name in enumerate(names)}
    worst = max((one.rate or 0.0) for one in both.values())
    bars = _Bars(list(both), Axis(0, 10 * min(10, max(1, math.ceil(10 * worst))), ""))
    for place, (agent, one) in enumerate(both.items()):
        bars.name(place, agent)
        so_far = 0.0
        for name in names:
            if share := 100 * one.kinds.get(name, 0) / one.steps:
                bars.bar(place, so_far, so_far + share, f"fill='{colours[name]}'")
                so_far += share
        bars.label(place, so_far, f"{so_far:.1f}")
    legend, height = _legend(list(colours.items()), bars.bottom + 44) if names else ("", bars.bottom + 28)
    return _svg(height, "".join(bars.drawn) + legend)
