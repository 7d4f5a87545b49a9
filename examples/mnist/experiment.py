"""The stages of the experiment; each leaves a file, and one whose file is there is done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch._inductor import config as inductor_config

from sparsify.search import Search

from . import arms, classifier
from .arms import ARMS
from .choosing import choose
from .data import parts
from .metrics import scores
from .report import seeds_of
from .sampling import BATCH, drawn, labels_of, noise_of
from .settings import Settings

_CHUNK = 1000  # samples in one file
_SHOWN = 20  # images of each model that are shown
TIMES = range(25, 1000, 50)  # of the one-step error


class Experiment:
    """All stages over one folder."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self.console = Console(stderr=True)
        self.data, self.held_out = parts()

    @property
    def dense(self) -> Path:
        """The trained dense weights."""
        return self.out / "weights" / "dense.safetensors"

    def weights(self, name: str) -> Path | None:
        """Of an arm; token merging has the dense ones."""
        return self.out / "weights" / f"{name}.safetensors" if ARMS[name].kind == "sparse" else None

    def train(self) -> None:
        """The dense model."""
        if not self.dense.exists():
            self._say("training the dense model")
            arms.train_dense(self.settings, self.data, self.out / "train" / "dense", self.dense)

    def search(self) -> Search:
        """Policies measured on the trained dense model, as numbers and as a picture."""
        found = choose(self.settings, self.data, self.dense)
        _write(self.out / "search.json", json.loads(found.to_json()))
        found.plot(self.out / "search.png")
        return found

    def sparse(self, names: list[str]) -> None:
        """Those of the four sparse arms that are named."""
        for name in names:
            arm, weights = ARMS[name], self.weights(name)
            if weights is not None and not weights.exists():
                self._say(f"making: {arm.title}")
                found = arms.make_sparse_arm(arm, self.settings, self.data, self.dense, self.out / "train" / name, weights)
                _write(self.out / "calibration" / f"{name}.json", found)

    def one_step(self) -> dict[str, list[float]]:
        """Of each sparse arm that is made, the error of one forward pass against the dense model's, by timestep, on images it may have seen.

        Squared difference over squared length of what is predicted: the velocity, or the noise without the variance.
        """
        found: dict[str, list[float]] = dict(self.results().get("one_step", {}))
        made = {name: weights for name in ARMS if (weights := self.weights(name)) is not None and weights.exists()}
        if missing := made.keys() - found.keys():
            dense, _ = arms.dense_model(self.settings, self.dense)
            batches = arms.noised_batches(self.settings, self.data, TIMES, seed=12345)  # other noise than the calibration's
            with torch.no_grad():
                want = [dense.eval()(**batch)[:, :1] for batch in batches]
                for name in missing:
                    sparse = arms.sparse_model(self.settings, self.dense, made[name])
                    got = [sparse(**batch)[:, :1] for batch in batches]
                    found[name] = [float((a - b).square().sum() / b.square().sum()) for a, b in zip(got, want, strict=True)]
        return {name: found[name] for name in ARMS if name in found}

    def sample(self, names: list[str]) -> None:
        """Draw the samples of arms, a file for each thousand, but those that have been scored."""
        known = self.results()
        for seed in self.settings.seeds:
            for name in names:
                if str(seed) not in seeds_of(known, name):
                    self._sample(name, seed)

    def _sample(self, name: str, seed: int) -> None:
        noise, labels = noise_of(self.settings.samples, seed), labels_of(self.settings.samples)
        files = [
            (self._file(name, seed, i), n, y)
            for i, (n, y) in enumerate(zip(noise.split(_CHUNK), labels.split(_CHUNK), strict=True))
        ]
        if all(file.exists() for file, _, _ in files):
            return
        model, gflops = arms.callable_of(ARMS[name], self.settings, self.dense, self.weights(name))
        for file, some, asked in files:
            if file.exists():
                continue
            started, what = time.perf_counter(), f"{ARMS[name].title}, seed {seed}, {file.stem}"
            batches = drawn(model, some, asked, self.settings.dense.objective)
            with inductor_config.patch(freezing=True):  # weights as constants, laid out for the processor
                images = torch.cat([*track(batches, what, len(some) // BATCH or 1, console=self.console)])
            seconds = torch.tensor((time.perf_counter() - started) / len(some))
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"pixels": _bytes(images), "seconds": seconds, "gflops": torch.tensor(gflops)}, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)

    def _file(self, name: str, seed: int, index: int) -> Path:
        return self.out / "samples" / name / f"{seed}-{index}.safetensors"

    def pixels(self, name: str, seed: int) -> torch.Tensor | None:
        """The samples of an arm in [-1, 1], or None while some are missing."""
        files = [self._file(name, seed, i) for i in range(-(-self.settings.samples // _CHUNK))]
        if not all(file.exists() for file in files):
            return None
        return _images(torch.cat([load_file(file)["pixels"] for file in files]))

    def shown(self) -> dict[str, torch.Tensor]:
        """A few samples of each arm in [-1, 1], all of the same noise; they outlive the files they come from."""
        file = self.out / "shown.safetensors"
        kept = load_file(file) if file.exists() else {}
        for name in ARMS:
            if (pixels := self.pixels(name, self.settings.seeds[0])) is not None:
                kept[name] = _bytes(pixels[:_SHOWN])
        save_file(kept, file)
        return {name: _images(pixels) for name, pixels in kept.items()}

    def judge(self) -> tuple[classifier.Classifier, float]:
        """The classifier, and its accuracy on the images of the model, none of which it has been trained on."""
        file = self.out / "classifier.safetensors"
        if not file.exists():
            self._say("training the classifier that judges samples")
            save_file(classifier.train(self.held_out).state_dict(), file)
        model = classifier.Classifier()
        model.load_state_dict(load_file(file))
        _, seen = classifier.judged(model.eval(), self.data.images)
        return model, float((seen == self.data.labels).double().mean())

    def results(self) -> dict[str, Any]:
        """What has been scored so far; empty at first."""
        file = self.out / "results.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def score(self) -> dict[str, Any]:
        """Scores of all that has been sampled so far, by arm and seed; those that are known are kept."""
        judge, accuracy = self.judge()
        real, _ = classifier.judged(judge, self.data.images)
        held_out, _ = classifier.judged(judge, self.held_out.images)
        known, found = self.results(), {}
        for name in ARMS:
            per_seed = dict(seeds_of(known, name))
            for seed in self.settings.seeds:
                pixels = None if str(seed) in per_seed else self.pixels(name, seed)
                if pixels is not None:
                    fake, seen = classifier.judged(judge, pixels)
                    per_seed[str(seed)] = scores(real, fake, seen, labels_of(len(pixels)))._asdict()
            if per_seed:
                gflops = known["arms"][name]["gflops"] if seeds_of(known, name) else self._gflops(name)
                found[name] = {"title": ARMS[name].title, "gflops": gflops, "seeds": per_seed}
        result = {
            "samples": self.settings.samples,
            "classifier_accuracy": accuracy,
            "held_out": scores(real, held_out, self.held_out.labels, self.held_out.labels)._asdict(),
            "arms": found,
            "one_step": self.one_step(),
        }
        _write(self.out / "results.json", result)
        return result

    def _gflops(self, name: str) -> float:
        file = next((self.out / "samples" / name).glob("*.safetensors"))
        return float(load_file(file)["gflops"])

    def _say(self, what: str) -> None:
        self.console.print(f"[bold]{what}[/]")


def _bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as they lie in files."""
    return ((images + 1) * 127.5).round().to(torch.uint8)


def _images(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


def _write(file: Path, data: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data, indent=1) + "\n")
