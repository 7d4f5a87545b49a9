"""What is committed beside this file: results, pictures, and the small trained weights; the demo draws with them."""

from __future__ import annotations

import shutil
from pathlib import Path

from .experiment import Experiment
from .settings import FOLDER

PICTURES = ("samples.png", "one_step.png", "losses.png", "search.png")
TABLES = ("search.json", "results.json", "results.md", "shown.safetensors", "classifier.safetensors")
WEIGHTS = ("dense", "identity-finetuned", "calibrated-finetuned")  # those that took training


def weights_of(name: str) -> Path:
    """The committed weights of a model, in half precision."""
    return FOLDER / "weights" / f"{name}.safetensors"


def publish(experiment: Experiment) -> None:
    """Copy the results from the experiment's folder to this one."""
    for name in (*TABLES, *PICTURES):
        _copy(experiment.out / name, FOLDER / name)
    for name in WEIGHTS:
        _copy(experiment.weights(name) or experiment.dense, weights_of(name))


def fetch(experiment: Experiment) -> None:
    """Copy what is committed into the experiment's folder, so that it goes on from there; nothing there is overwritten.

    Raises:
        ValueError: it was made with other settings.
    """
    if (made_with := FOLDER / "settings.json").exists():
        experiment.settings.check_like(made_with)
    for name in TABLES:
        _copy(FOLDER / name, experiment.out / name, keep=True)
    for name in WEIGHTS:
        _copy(weights_of(name), experiment.weights(name) or experiment.dense, keep=True)


def _copy(source: Path, to: Path, keep: bool = False) -> None:
    if source.exists() and not (keep and to.exists()):
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, to)
