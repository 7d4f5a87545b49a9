"""The results as a table in Markdown and as pictures."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from .arms import ARMS


def table(results: dict[str, Any]) -> str:
    """Means over the seeds, with the smallest and largest value, in Markdown."""
    held_out = results["held_out"]
    lines = [
        "| model | GFLOPs | seeds | FID | of dense | precision | recall | accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    dense = seeds_of(results, "dense")
    for arm in results["arms"].values():
        fids = {seed: scores["fid"] for seed, scores in arm["seeds"].items()}
        ratios = [fids[seed] / dense[seed]["fid"] for seed in fids if seed in dense]
        cells = [_spread([scores[name] for scores in arm["seeds"].values()]) for name in ("precision", "recall", "accuracy")]
        share = f"{statistics.mean(ratios):.2f}x" if ratios else ""
        fid = _spread([*fids.values()])
        lines.append(f"| {arm['title']} | {arm['gflops']:.3f} | {len(fids)} | {fid} | {share} | {' | '.join(cells)} |")
    real = [f"{held_out[name]:.3f}" for name in ("precision", "recall", "accuracy")]
    lines.append(f"| 1,000 real images, not in the training | | | {held_out['fid']:.3f} | | {' | '.join(real)} |")
    lines += [
        "",
        f"{results['samples']:,} samples for each seed. FID, precision and recall are against the 4,000 images that the models were trained "
        f"on, in the features of a classifier that was trained on the 1,000 others and is right on {results['classifier_accuracy']:.1%} of "
        f"the 4,000. The fewer images, the higher is FID: 1,000 and 5,000 do not compare.",
    ]
    return "\n".join(lines)


def seeds_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    """The scores of an arm in results, by seed; none if it has not been scored."""
    arm = results.get("arms", {}).get(name)
    return arm["seeds"] if arm else {}


def _spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


def grid_picture(images: dict[str, torch.Tensor], path: Path) -> None:
    """A row of digits for each model, drawn from the same noise."""
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    figure, rows = pyplot.subplots(len(images), 1, figsize=(11, 0.75 * len(images)), layout="constrained", squeeze=False)
    for axes, (title, pixels) in zip(rows[:, 0], images.items(), strict=True):
        axes.imshow(torch.cat([*pixels[:, 0]], dim=-1), cmap="gray", vmin=-1, vmax=1)
        axes.set_title(title, fontsize=8, loc="left", pad=2)
        axes.axis("off")
    _saved(figure, path)


def one_step_picture(errors: dict[str, list[float]], times: list[int], path: Path) -> None:
    """The error of one forward pass against the dense model over the timesteps."""
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for name, values in errors.items():
        axes.semilogy(times, values, label=ARMS[name].title)
    axes.set(xlabel="timestep (0 is data)", ylabel="squared error / squared length")
    axes.legend()
    _saved(figure, path)


def loss_picture(runs: dict[str, Path], path: Path) -> None:
    """The training loss of runs, out of their ``metrics.jsonl``."""
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    figure, panels = pyplot.subplots(1, len(runs), figsize=(4.2 * len(runs), 3.2), layout="constrained", squeeze=False)
    for axes, (title, file) in zip(panels[0], runs.items(), strict=True):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        axes.semilogy([record["step"] for record in records], [record["loss"] for record in records])
        axes.set(title=title, xlabel="step", ylabel="loss")
    _saved(figure, path)


def _saved(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
