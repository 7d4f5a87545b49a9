"""Train a DiT on MNIST, make it sparse in four ways, and compare what they draw: one command, which goes on where it was stopped.

examples:
  python -m examples.mnist                                  # everything; some hours on two cores
  python -m examples.mnist --stages train                   # the dense model alone
  python -m examples.mnist --stages sample score --arms dense calibrated-finetuned
  python -m examples.mnist --settings quick.json --out /tmp/mnist
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from . import report
from .arms import ARMS
from .experiment import TIMES, Experiment
from .settings import FOLDER, Settings

STAGES = ("train", "sparse", "sample", "score", "publish")
WEIGHTS = {"dense": "dense", "calibrated-finetuned": "sparse"}


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.mnist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--settings", type=Path, default=FOLDER / "settings.json", help="what to do (default: settings.json here)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/mnist"), help="folder for everything (default: out/mnist)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES[:4], help="default: all but publish")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="whose samples to draw (default: all)")
    options = parser.parse_args(words)
    experiment = Experiment(Settings.read(options.settings), options.out)
    if "train" in options.stages:
        experiment.train()
    if "sparse" in options.stages:
        experiment.sparse()
    if "sample" in options.stages:
        experiment.sample(options.arms)
    if "score" in options.stages:
        Console().print(Markdown(score(experiment)))
    if "publish" in options.stages:
        publish(experiment)
    return 0


def score(experiment: Experiment) -> str:
    """Scores, as a table, and the pictures of samples, one-step errors and losses."""
    results, out = experiment.score(), experiment.out
    shown = {arm.title: experiment.pixels(name, experiment.settings.seeds[0]) for name, arm in ARMS.items()}
    if drawn := {title: pixels for title, pixels in shown.items() if pixels is not None}:
        report.grid_picture(drawn, out / "samples.png")
    report.one_step_picture(results["one_step"], [*TIMES], out / "one_step.png")
    runs = {name: out / "train" / name / "metrics.jsonl" for name in ARMS}
    report.loss_picture({name: file for name, file in runs.items() if file.exists()}, out / "losses.png")
    text = report.table(results)
    (out / "results.md").write_text(text + "\n")
    return text


def publish(experiment: Experiment) -> None:
    """Copy results, pictures and the weights of two models beside this file, where the demo finds them."""
    score(experiment)
    for name in ("results.json", "results.md", "samples.png", "one_step.png", "losses.png"):
        if (experiment.out / name).exists():
            shutil.copy(experiment.out / name, FOLDER / name)
    (FOLDER / "weights").mkdir(exist_ok=True)
    for arm, name in WEIGHTS.items():
        shutil.copy(experiment.weights(arm) or experiment.dense, FOLDER / "weights" / f"{name}.safetensors")


if __name__ == "__main__":
    sys.exit(main())
