"""The report's pictures, each as SVG and PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

mpl.rcParams.update({
    "svg.hashsalt": "onehop",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.autolayout": True,
})  # fmt: skip
_BLUE, _RED, _GREY = "#2563eb", "#dc2626", "#9ca3af"


def draw(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Draws into `folder` what `results` (as in results.json) hold; the answer is the names without their endings."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if climbs := results.get("ladder"):
        drawn.append(_save(_ladder(climbs), folder / "ladder"))
    if limits := results.get("limits"):
        drawn.append(_save(_limits(limits), folder / "limits"))
    if points := results.get("growth"):
        drawn.append(_save(_growth(points), folder / "growth"))
    return drawn


def _ladder(climbs: Sequence[Mapping[str, Any]]) -> Figure:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    names = [f"{climb['stage']} {climb['fix']}" for climb in climbs]
    panels = (
        (left, "overview, requests per second", [climb["overview"]["rate"] for climb in climbs], _BLUE),
        (middle, "overview, p95 in ms", [climb["overview"]["p95"] for climb in climbs], _RED),
        (right, "order with PDF, e-mail, webhook: p50 in ms", [climb["order_p50"] for climb in climbs], _GREY),
    )
    for axes, title, values, color in panels:
        bars = axes.barh(names, values, color=color)
        axes.bar_label(bars, [f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in values], padding=3)
        axes.set_xscale("log")
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.3)
    left.invert_yaxis()
    return figure


def _limits(limits: Mapping[str, Mapping[str, Any]]) -> Figure:
    names = list(limits)
    rates = [limits[name]["rate"] for name in names]
    colors = [_BLUE if name.startswith("P") else _GREY for name in names]
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(names) + 1))
    bars = axes.barh(names, rates, color=colors)
    axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title("requests per second on one core: Onehop in blue, references in grey", fontsize=10)
    return figure


def _growth(points: Sequence[Mapping[str, Any]]) -> Figure:
    curves = list(dict.fromkeys(point["curve"] for point in points))
    figure, panels = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 3.6), squeeze=False)
    for axes, curve in zip(panels[0], curves, strict=True):
        for what in dict.fromkeys(point["what"] for point in points if point["curve"] == curve):
            mine = [point for point in points if (point["curve"], point["what"]) == (curve, what)]
            axes.plot([max(point["size"], 1) for point in mine], [point["p50"] for point in mine], "o-", label=what)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(f"p50 in ms by {curve}", fontsize=10)
        axes.legend(fontsize=7)
    return figure


def _save(figure: Figure, path: Path) -> str:
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)
    return path.name
