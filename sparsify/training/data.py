"""Images or latents in memory, with or without labels, checked when they are made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError

_CHUNK = 1024  # images that are looked at together
_SAMPLES = 64  # images that stand for all in a fingerprint


@dataclass(frozen=True, eq=False)
class Images:
    """What a model is trained on.

    Attributes:
        pixels: (N, C, H, W), or another layout with the images along the first axis that the model takes. uint8 are
            pixels from 0 to 255, and reach the model in [-1, 1]; floating-point numbers reach it as they are.
        labels: (N,) whole numbers from 0 on, or None.

    Raises:
        InputError: another shape or dtype, no images, a number that is not finite, or labels that do not fit.
    """

    pixels: torch.Tensor
    labels: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check_pixels(self.pixels)
        if self.pixels.is_floating_point() and self.pixels.dtype != torch.float32:
            object.__setattr__(self, "pixels", self.pixels.float())
        _check_finite(self.pixels)
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(self.labels, len(self.pixels)))

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return tuple(self.pixels.shape[1:])

    @property
    def classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The images of these numbers, as float32, and their labels."""
        pixels = self.pixels[index]
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().div_(127.5).sub_(1)
        return pixels, None if self.labels is None else self.labels[index]

    def fingerprint(self) -> str:
        """A text that differs for other data, as far as their number, shape and a sample of them tell."""
        index = torch.linspace(0, len(self) - 1, min(_SAMPLES, len(self))).long()
        digest = hashlib.sha256(self.pixels[index].contiguous().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().tobytes())
        kind = str(self.pixels.dtype).removeprefix("torch.")
        return f"{len(self)} x {'x'.join(map(str, self.shape))} {kind} {digest.hexdigest()[:16]}"


def images_of(pixels: Any, labels: Any = None) -> Images:
    """Images out of an array or a tensor; uint8 with colours last, (N, H, W, 1 or 3), or without, (N, H, W), is turned.

    Raises:
        InputError: as for :class:`Images`, or it is no array.
    """
    found = _tensor("the images", pixels)
    if found.dtype == torch.uint8:
        if found.ndim == 3:
            found = found.unsqueeze(1)
        elif found.ndim == 4 and found.shape[-1] in (1, 3) and found.shape[1] not in (1, 3, 4):
            found = found.permute(0, 3, 1, 2).contiguous()
    return Images(found, None if labels is None else _tensor("the labels", labels))


def _tensor(what: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} are a {type(value).__name__} that is no array of numbers: {error}") from error


def _check_pixels(pixels: torch.Tensor) -> None:
    if not 3 <= pixels.ndim <= 5 or 0 in pixels.shape:
        raise InputError(
            f"the data have the shape {tuple(pixels.shape)}; it must be (N, C, H, W) with at least one image of at least one pixel."
        )
    if not (pixels.is_floating_point() or pixels.dtype == torch.uint8):
        raise InputError(f"the data are {pixels.dtype}; they must be uint8 pixels from 0 to 255, or floating-point numbers.")


def _check_finite(pixels: torch.Tensor) -> None:
    if not pixels.is_floating_point():
        return
    for number, chunk in enumerate(pixels.split(_CHUNK)):
        fine = chunk.flatten(1).isfinite().all(dim=1)
        if not fine.all():
            first = number * _CHUNK + int((~fine).nonzero()[0])
            bad = pixels[first][~pixels[first].isfinite()][0].item()
            raise InputError(f"image {first} of the data holds {bad}; all numbers must be finite. Leave it out or mend it.")


def _checked_labels(labels: torch.Tensor, count: int) -> torch.Tensor:
    if labels.shape != (count,):
        raise InputError(f"the labels have the shape {tuple(labels.shape)}; for {count} images it must be ({count},).")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"the labels are {labels.dtype}; they must be whole numbers, the classes from 0 on.")
    if int(labels.min()) < 0:
        raise InputError(f"a label is {int(labels.min())}; labels are the classes from 0 on.")
    return labels.long()
