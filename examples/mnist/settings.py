"""What the experiment does, as one file: ``settings.json`` beside this one, or another."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sparsify import Policy
from sparsify.training import TrainConfig

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Settings:
    """The whole experiment.

    Attributes:
        model: arguments of :func:`examples.mnist.model.make`.
        policy: of the sparse arms.
        budget: the share of the dense GFLOPs that the stage ``search`` finds a policy for.
        dense: how the dense model is trained.
        finetune: how the sparse arms are, for at most a tenth of those steps.
        calibration: images that restore layers are fitted on, in batches of 64 with a timestep each.
        samples: images drawn from each model and seed.
        seeds: of the noise that they are drawn from.
        raw: all of it as it was read.
    """

    model: dict[str, Any]
    policy: Policy
    budget: float
    dense: TrainConfig
    finetune: TrainConfig
    calibration: int
    samples: int
    seeds: tuple[int, ...]
    raw: dict[str, Any]

    @classmethod
    def read(cls, path: Path = FOLDER / "settings.json") -> Settings:
        """From JSON; what fine-tuning does not name it has from the dense training."""
        data = _read(path)
        if missing := [f.name for f in fields(cls) if f.name not in data and f.name != "raw"]:
            raise ValueError(f"{path} lacks {missing[0]}; see {FOLDER / 'settings.json'}.")
        dense = data["dense"]
        made = cls(
            data["model"],
            Policy.from_json(json.dumps(data["policy"])),
            data["budget"],
            TrainConfig.from_dict(dense),
            TrainConfig.from_dict(dense | data["finetune"]),
            data["calibration"],
            data["samples"],
            tuple(data["seeds"]),
            data,
        )
        if made.finetune.steps * 10 > made.dense.steps:
            raise ValueError(f"{path}: fine-tuning for {made.finetune.steps} steps is over a tenth of {made.dense.steps}.")
        return made

    def claim(self, out: Path) -> None:
        """Keep the settings beside what they make; seeds alone may be others the next time.

        Raises:
            ValueError: what lies there was made with others, and would be taken for what these make.
        """
        file = out / "settings.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.raw, indent=1) + "\n")
        self.check_like(file)

    def check_like(self, file: Path) -> None:
        """Check that what was made with the settings of a file is what these make; seeds may be others.

        Raises:
            ValueError: it is not.
        """
        before = _read(file)
        if other := [name for name, value in before.items() if name != "seeds" and value != self.raw.get(name)]:
            raise ValueError(
                f"what lies in {file.parent} was made with another {other[0]} ({file}); give another --out, or those settings."
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return found
