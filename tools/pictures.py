"""Compare the pictures that a notebook's cell makes with those that are stored; nbval itself passes over them.

Pictures are decoded, and the root mean square of the differences is taken over all pixels and colours, in levels of 0
to 255. Where the same matplotlib and FreeType made both, LIMIT is pytest-mpl's own, and a single marker that is missing
is seen. Another version places its letters elsewhere, and with them the axes, by some pixels: there both pictures are
first reduced to means over blocks of 16 points, and only what a reader would see at arm's length is seen.

A cell whose picture depends on the device's random numbers has the tag `picture-of-cpu` and is compared on a CPU alone.
So is one with the tag `picture-of-training`, and by blocks only: over thousands of steps the last digits, in which
processors differ, grow to what can be seen (a weight changed by a millionth: 12 levels, of the blocks 2.5). One whose
picture differs from run to run, as that of a measured time, has the tag `picture-varies` and is not compared.
"""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ft2font
from PIL import Image

LIMIT = 2.0  # as pytest-mpl's
OWN_FREETYPE = ft2font.__freetype_build_type__ == "local"  # matplotlib's, and not one of the system's
BLOCK, BLOCK_LIMIT = 32, 25.0  # pixels; between matplotlib 3.11.2 and 3.8.2 or 3.10.0 the blocks differ by 21 at most
SLACK = 0.03  # by which another version may have cut the border otherwise, of the picture's height and width
WHERE = Path("_build") / "pictures"  # what differs is written here, to be looked at


def decode(png: str) -> tuple[Image.Image, str]:
    """Return a PNG in base64 as a picture of three colours on a white ground, and the program that made it."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB"), picture.info.get("Software", "")


def rms(first: Image.Image, second: Image.Image) -> float:
    """Return the root mean square of the differences of two pictures of one size, in levels of 0 to 255."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return float((difference**2).mean() ** 0.5)


def problem(stored: str, made: str, by_blocks: bool = False) -> str | None:
    """Return what is wrong with a picture, or None."""
    (old, old_maker), (new, new_maker) = decode(stored), decode(made)
    same = old_maker == new_maker and OWN_FREETYPE
    slack = 0.0 if same else SLACK
    if any(abs(a - b) > slack * a for a, b in zip(old.size, new.size, strict=True)):
        return f"{old.size[0]} x {old.size[1]} pixels are stored, {new.size[0]} x {new.size[1]} were made"
    if same and not by_blocks:
        found, limit = rms(old, new), LIMIT
    else:
        parts = tuple(max(1, round(size / BLOCK)) for size in old.size)
        found = rms(*(picture.resize(parts, Image.Resampling.BOX) for picture in (old, new)))
        limit = BLOCK_LIMIT
    return None if found <= limit else f"rms difference {found:.1f}, at most {limit:g}"


def pictures(outputs: list[Any]) -> list[str]:
    """Return the PNGs among a cell's outputs."""
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def is_compared(tags: set[str], on_cpu: bool) -> bool:
    of_cpu = set() if on_cpu else {"picture-of-cpu", "picture-of-training"}
    return not tags & {"picture-varies", "nbval-ignore-output", "nbval-skip", *of_cpu}


def check(item: Any) -> None:
    """Compare the pictures of a notebook's cell that nbval has just run; fail as nbval does.

    Raises:
        NbCellError: there are more or fewer pictures than stored, or one of them is another.
    """
    from dvae_lib import default_device

    stored, made = pictures(item.cell.outputs), pictures(item.test_outputs or [])
    tags = set(item.cell.metadata.get("tags", []))
    if not (stored or made) or not is_compared(tags, default_device().type == "cpu"):
        return
    if len(stored) != len(made):
        item.raise_cell_error(f"{len(stored)} pictures are stored, {len(made)} were made")
    for number, (old, new) in enumerate(zip(stored, made, strict=True)):
        if found := problem(old, new, by_blocks="picture-of-training" in tags):
            folder = Path(item.config.rootpath) / WHERE
            folder.mkdir(parents=True, exist_ok=True)
            names = [f"{item.path.stem}-{item.cell_num}-{number}-{which}.png" for which in ("stored", "made")]
            for name, png in zip(names, (old, new), strict=True):
                (folder / name).write_bytes(base64.b64decode(png))
            item.raise_cell_error(
                "The picture is not the stored one", f"{found}; see {WHERE}/{names[0]} and {names[1]}"
            )
