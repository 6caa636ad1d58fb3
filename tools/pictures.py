"""Compare the pictures that a notebook's cell makes with those that are stored; nbval itself passes over them.

As in pytest-mpl, a picture is decoded and the root mean square of the differences is taken, in levels of 0 to 255. Both
pictures are first reduced to blocks of 4 x 4 pixels, two points of the page, as another version of matplotlib or FreeType
moves the edges of letters by less than that. A figure is mostly white, so that a curve that is missing changes little of
the whole: beside the whole, each tile of 16 x 16 blocks has a limit of its own.

A cell whose picture depends on the device's random numbers has the tag `picture-of-cpu` and is compared on a CPU alone;
one whose picture differs from run to run, as that of a measured time, has the tag `picture-varies`.
"""

import base64
import io
import itertools
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np

BLOCK, TILE = 2, 32  # pixels, blocks
SHIFTS = range(-6, 7)  # blocks by which another version may have moved a part of a figure
SLACK = 12  # pixels by which it may have cut the border otherwise
LIMIT, TILE_LIMIT = 6.0, 20.0
WHERE = Path("_build") / "pictures"  # what differs is written here, to be looked at


def decode(png: str) -> np.ndarray:
    """Return a PNG in base64 as levels from 0 to 255, (height, width, 3), on a white ground."""
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png").astype(np.float64)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None].repeat(3, 2)
    if pixels.shape[2] == 4:
        opacity = pixels[:, :, 3:]
        pixels = pixels[:, :, :3] * opacity + (1 - opacity)
    return 255 * pixels


def blocks(pixels: np.ndarray) -> np.ndarray:
    """Return the means of blocks, the last incomplete ones left out: (height // BLOCK, width // BLOCK, 3)."""
    height, width = (size // BLOCK for size in pixels.shape[:2])
    pixels = pixels[: height * BLOCK, : width * BLOCK]
    return pixels.reshape(height, BLOCK, width, BLOCK, 3).mean((1, 3))


def difference(stored: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    """Return the root mean square of the differences, of the whole picture and of its worst tile.

    Where the pictures are not equal, each tile of the stored one may lie up to SHIFTS elsewhere in the other.

    Raises:
        ValueError: the sizes differ by more than SLACK pixels.
    """
    if max(abs(a - b) for a, b in zip(stored.shape, made.shape, strict=True)) > SLACK:
        raise ValueError(f"{stored.shape[1]} x {stored.shape[0]} pixels stored, {made.shape[1]} x {made.shape[0]} made")
    height, width = (min(sizes) for sizes in zip(stored.shape[:2], made.shape[:2], strict=True))
    first, second = blocks(stored[:height, :width]), blocks(made[:height, :width])
    tiles = tile_means((first - second) ** 2)
    if tiles.any():
        for shift in itertools.product(SHIFTS, SHIFTS):
            tiles = np.minimum(tiles, tile_means((first - np.roll(second, shift, (0, 1))) ** 2))
    return float(tiles.mean() ** 0.5), float(tiles.max() ** 0.5)


def tile_means(squares: np.ndarray) -> np.ndarray:
    """Return the mean of each tile, filled up with the picture's edge."""
    rows, columns = (-size % TILE for size in squares.shape[:2])
    squares = np.pad(squares.mean(2), ((0, rows), (0, columns)), mode="edge")
    return squares.reshape(squares.shape[0] // TILE, TILE, -1, TILE).mean((1, 3))


def problem(stored: str, made: str) -> str | None:
    """Return what is wrong with a picture, or None."""
    try:
        whole, tile = difference(decode(stored), decode(made))
    except ValueError as error:
        return f"its size: {error}"
    if whole <= LIMIT and tile <= TILE_LIMIT:
        return None
    return f"rms difference {whole:.1f} (at most {LIMIT:g}), in the worst tile {tile:.1f} (at most {TILE_LIMIT:g})"


def pictures(outputs: list[Any]) -> list[str]:
    """Return the PNGs among a cell's outputs."""
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def is_compared(cell: Any, on_cpu: bool) -> bool:
    tags = cell.metadata.get("tags", [])
    uncompared = {"picture-varies", "nbval-ignore-output", "nbval-skip"} | (set() if on_cpu else {"picture-of-cpu"})
    return not uncompared & set(tags)


def check(item: Any) -> None:
    """Compare the pictures of a notebook's cell that nbval has just run; fail as nbval does.

    Raises:
        NbCellError: there are more or fewer pictures than stored, or one of them is another.
    """
    from dvae_lib import default_device

    stored, made = pictures(item.cell.outputs), pictures(item.test_outputs or [])
    if not (stored or made) or not is_compared(item.cell, default_device().type == "cpu"):
        return
    if len(stored) != len(made):
        item.raise_cell_error(f"{len(stored)} pictures are stored, {len(made)} were made")
    for number, (old, new) in enumerate(zip(stored, made, strict=True)):
        if found := problem(old, new):
            folder = Path(item.config.rootpath) / WHERE
            folder.mkdir(parents=True, exist_ok=True)
            names = [f"{item.path.stem}-{item.cell_num}-{number}-{which}.png" for which in ("stored", "made")]
            for name, png in zip(names, (old, new), strict=True):
                (folder / name).write_bytes(base64.b64decode(png))
            item.raise_cell_error("The picture is not the stored one", f"{found}; see {WHERE}/{names[0]} and {names[1]}")
