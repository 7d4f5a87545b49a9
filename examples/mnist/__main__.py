"""Train a DiT on MNIST, make it sparse in four ways, and compare what they draw: one command, which goes on where it was stopped.

examples:
  python -m examples.mnist                                  # everything; some hours on two cores
  python -m examples.mnist --stages train                   # the dense model alone
  python -m examples.mnist --published --stages search      # policies measured on the dense model: ten minutes
  python -m examples.mnist --stages sample score --arms dense calibrated-finetuned
  python -m examples.mnist --published --arms dense         # on from the weights and scores that lie here: nothing is trained
  python -m examples.mnist --settings quick.json --out /tmp/mnist
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from . import report
from .arms import ARMS
from .experiment import TIMES, Experiment
from .published import fetch, publish
from .settings import FOLDER, Settings

STAGES = ("train", "search", "sparse", "sample", "score", "publish")
BY_DEFAULT = ("train", "sparse", "sample", "score")


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.mnist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--settings", type=Path, default=FOLDER / "settings.json", help="what to do (default: settings.json here)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/mnist"), help="folder for everything (default: out/mnist)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=BY_DEFAULT, help="default: all but search and publish")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which models to make and draw with (default: all)"
    )
    parser.add_argument("--published", action="store_true", help="begin with the committed weights and scores")
    options = parser.parse_args(words)
    try:
        settings = Settings.read(options.settings)
        settings.claim(options.out)
        experiment = Experiment(settings, options.out)
        if options.published:
            fetch(experiment)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if "train" in options.stages:
        experiment.train()
    if "search" in options.stages:
        Console().print(experiment.search())
    if "sparse" in options.stages:
        experiment.sparse(options.arms)
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
    if shown := experiment.shown():
        report.grid_picture({ARMS[name].title: shown[name] for name in ARMS if name in shown}, out / "samples.png")
    report.one_step_picture(results["one_step"], [*TIMES], out / "one_step.png")
    runs = {name: out / "train" / name / "metrics.jsonl" for name in ARMS}
    if runs := {name: file for name, file in runs.items() if file.exists()}:
        report.loss_picture(runs, out / "losses.png")
    text = report.table(results)
    (out / "results.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    sys.exit(main())
