"""A picture of a model before and after: tokens per block over the timesteps."""

from __future__ import annotations

import math
from pathlib import Path

from .density import Density
from .ends import Grid
from .report import Report

_ROLE_COLOURS = {"pooling": "#8c6bb1", "generate": "#2b8cbe", "sparse": "#a8ddb5", "recover": "#fdae6b", "dense": "#525252"}


def draw(report: Report, density: Density, path: Path) -> Path:
    """Write a PNG (or what the suffix of ``path`` says); needs matplotlib, the ``plot`` extra."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch

    full = math.prod(report.grid)
    steps = [density.timesteps * index / 100 for index in range(101)]
    at_grid = {d.grid: index for index, d in enumerate(report.densities)}
    # T itself may have a grid of its own that no whole timestep below it has; it is drawn as the last one.
    columns = [at_grid.get(density.grid_at(t, report.grid), len(report.densities) - 1) for t in steps]
    after = [[block.tokens[column] for block in report.blocks] for column in columns]
    before = [[full] * len(report.blocks) for _ in steps]

    figure, panels = pyplot.subplots(1, 2, figsize=(13, 5.2), sharey=True, layout="constrained")
    norm = LogNorm(max(1, min(min(row) for row in after)), full)
    extent = (-0.5, len(report.blocks) - 0.5, 0, density.timesteps)
    titles = (f"dense: {report.gflops_dense:.1f} GFLOPs", f"sparse: {report.gflops:.1f} GFLOPs, mean over the timesteps")
    for panel, rows, title in zip(panels, (before, after), titles, strict=True):
        image = panel.imshow(rows, origin="lower", aspect="auto", extent=extent, norm=norm, cmap="viridis")
        panel.set(title=title, xlabel="block, bottom to top")
    panels[0].set_ylabel(_time_label(density))
    for index, block in enumerate(report.blocks):
        panels[1].add_patch(
            pyplot.Rectangle((index - 0.5, 1.005), 1, 0.03, transform=panels[1].get_xaxis_transform(), clip_on=False,
                             color=_ROLE_COLOURS[block.role])
        )  # fmt: skip
    panels[1].set_title(titles[1], pad=16)
    figure.colorbar(image, ax=panels, label="tokens that the block updates")
    roles = [Patch(color=colour, label=role) for role, colour in _ROLE_COLOURS.items()]
    figure.legend(handles=roles, loc="outside lower center", ncols=len(roles))
    figure.suptitle(f"{report.model} on a {'x'.join(map(str, report.grid))} token grid")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def draw_density(density: Density, dense: Grid, path: Path) -> None:
    """Draw how many tokens the sparse blocks see over the timesteps, on a dense grid; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [density.timesteps * index / 1000 for index in range(1001)]
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    axes.step(steps, [math.prod(density.grid_at(t, dense)) for t in steps], where="post", label=str(density))
    axes.axhline(math.prod(dense), color="grey", linestyle=":", label=f"dense, {'x'.join(map(str, dense))}")
    axes.set(xlabel=_time_label(density), ylabel="tokens in sparse blocks", ylim=(0, None))
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _time_label(density: Density) -> str:
    return f"timestep ({'0 is noise, the other end data' if density.reversed else '0 is data, the other end noise'})"
