"""A picture of a search: error against GFLOPs, and what was measured of each block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .result import Search


def draw_search(search: Search, path: Path) -> Path:
    """Write a PNG (or what the suffix of ``path`` says); needs matplotlib, the ``plot`` extra."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    _draw_curve(search, left)
    _draw_blocks(search, right)
    figure.suptitle(f"{search.model}: a policy for {search.budget:.0%} of {search.gflops_dense:.4g} GFLOPs")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _draw_curve(search: Search, axes: Any) -> None:
    found = [point for point in search.curve if point.source == "search"]
    fit = [point for point in search.curve if point.source == "fit"]
    axes.scatter([p.gflops for p in found], [p.error for p in found], s=18, color="#a8ddb5", label="measured")
    axes.plot([p.gflops for p in fit], [p.error for p in fit], "o--", color="#525252", label="Policy.fit")
    axes.plot([p.gflops for p in search.front], [p.error for p in search.front], color="#2b8cbe", label="front")
    axes.plot([search.pick.gflops], [search.pick.error], "*", markersize=16, color="#d7301f", label="picked")
    axes.axvline(search.budget * search.gflops_dense, color="grey", linestyle=":", label="budget")
    axes.set(xlabel="GFLOPs, mean over the timesteps", ylabel="relative L2 error of the outputs", ylim=(0, None))
    axes.legend()


def _draw_blocks(search: Search, axes: Any) -> None:
    places = range(len(search.blocks))
    styles = {
        "uniformity": ("s:", "#8c6bb1", "attention, distance from uniform"),
        "pooling": ("o-", "#2b8cbe", "output error if pooling"),
        "module": ("^-", "#fdae6b", "output error in the best module with it"),
    }
    for name, (style, colour, label) in styles.items():
        values = [getattr(block, name) for block in search.blocks]
        axes.plot(places, [float("nan") if v is None else v for v in values], style, color=colour, label=label)
    axes.set_xticks(list(places), [block.role[0].upper() for block in search.blocks])
    axes.set(xlabel="block, bottom to top, with the role it got (P, G, S, R or D)", ylim=(0, None))
    axes.legend()
