"""The files of the binarised MNIST: looked for, fetched, compared with their sha256, and kept packed in one."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dvae_lib.runs.downloads import download, sha256
from dvae_lib.runs.files import remove_leftovers, write_bytes

MNIST_ADDRESS = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
MNIST_SHA256 = {  # of binarized_mnist_SPLIT.amat
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
MNIST_SIZE = 28  # pixels, height and width
MNIST_PACKED = "binarized_mnist_larochelle_packbits.npz"  # all three, eight pixels a byte


def read_mnist(split: str, root: str | os.PathLike[str] | None) -> NDArray[np.uint8]:
    """Return the bits of `binarized_mnist`, (n, 784); arguments and errors are those of it."""
    folder = _mnist_folder(root)
    path = folder / MNIST_PACKED
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        file = io.BytesIO()
        np.savez_compressed(file, **{name: _packed_mnist(name, folder) for name in MNIST_SHA256})  # type: ignore[arg-type]
        write_bytes(path, file.getvalue())
    content = path.read_bytes()
    try:
        bits = np.unpackbits(np.load(io.BytesIO(content))[split], axis=1)  # (n, 98) -> (n, 784)
        found = sha256(_mnist_text(bits))
    except Exception as error:  # NumPy, zipfile and zlib have many words for it
        raise ValueError(f"{path} is damaged, remove it to have it made again: {error!r}") from error
    if found != MNIST_SHA256[split]:
        raise ValueError(f"{path} does not hold the {split} images, by their sha256; remove it to have it made again")
    return bits


def mnist_is_at_hand(root: str | os.PathLike[str] | None = None) -> bool:
    """Whether `binarized_mnist` finds the packed file, or the three public ones, and would download nothing."""
    folder = _mnist_folder(root)
    return (folder / MNIST_PACKED).exists() or all((folder / _mnist_name(split)).exists() for split in MNIST_SHA256)


def _mnist_folder(root: str | os.PathLike[str] | None) -> Path:
    if root is not None and not isinstance(root, str | os.PathLike):
        raise TypeError(f"root must be a path or None, got {type(root).__name__} {root!r}")
    default = os.environ.get("DVAE_DATA") or Path("~", ".cache", "dvae_lib")
    return Path(default if root is None else root).expanduser()


def _mnist_name(split: str) -> str:
    return f"binarized_mnist_{split}.amat"


def _packed_mnist(split: str, folder: Path) -> NDArray[np.uint8]:
    """Return a split of the public files, eight pixels a byte, (n, 98), from the folder or from the network."""
    path = folder / _mnist_name(split)
    if path.exists():
        source, text = str(path), path.read_bytes()
    else:
        source = f"{MNIST_ADDRESS}/{path.name}"
        try:
            text = download(source)
        except OSError as error:
            raise OSError(
                f"the binarised MNIST is not in {folder} and cannot be downloaded ({error}); put "
                f"{', '.join(map(_mnist_name, MNIST_SHA256))} from {MNIST_ADDRESS}/ there, or set DVAE_DATA to a "
                f"folder that holds them or {MNIST_PACKED}"
            ) from error
    if (found := sha256(text)) != MNIST_SHA256[split]:
        raise ValueError(f"{source} has the sha256 {found}, it must have {MNIST_SHA256[split]}")
    return np.packbits(np.frombuffer(text, np.uint8).reshape(-1, 2 * MNIST_SIZE**2)[:, ::2] - ord("0"), axis=1)


def _mnist_text(bits: NDArray[np.uint8]) -> bytes:
    """Return images, (n, 784), as the public files hold them: a line each, of 0s and 1s with a space between."""
    text = np.full((len(bits), 2 * bits.shape[1]), ord(" "), np.uint8)
    text[:, ::2] = bits + ord("0")
    text[:, -1:] = ord("\n")
    return text.tobytes()
