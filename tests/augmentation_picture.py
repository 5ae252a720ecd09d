"""Draws docs/images/augmentation.jpg: `python tests/augmentation_picture.py FILE`.

A row for each augmentation, on faces of the AT&T set. They are grey, so they get a skin tone here:
else changes of colour could not be seen.
"""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from facescale.data.att import AttFaces
from facescale.data.transforms import Augment

AMOUNTS = {
    "flip": 1.0,
    "shift": 12,
    "scale": 0.2,
    "rotate": 20.0,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.9,
    "grey": 1.0,
    "blur": 2.5,
    "erase": 50,
    "crop": 1.0,
    "low_resolution": 1.0,
    "downscale": 1.0,
    "soften": 1.0,
    "hsv": 1.0,
    "photometric": 1.0,
    "jpeg": 1.0,
}
FACES = 4


def tinted_faces() -> Tensor:
    """Faces (FACES, 3, 112, 112) of as many people, in a skin tone."""
    att = AttFaces(range(FACES))
    pixels = [np.asarray(att.read(10 * person).encoded) for person in range(FACES)]
    light = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return (255 * light ** torch.tensor([0.75, 1.0, 1.2])[:, None, None]).round().byte()


def rows() -> dict[str, Tensor]:
    """The faces, and what becomes of them, by the name of the augmentation."""
    faces, off = tinted_faces(), dict.fromkeys(AMOUNTS, 0)
    changed = {
        name: Augment(**(off | {name: amount}))(faces, seed=5, position=0)  # type: ignore[arg-type]
        for name, amount in AMOUNTS.items()
    }
    return {"as they are": faces} | changed


def draw(path: Path) -> None:
    """Write the picture: two rows side by side, each face in its own pixels."""
    shown = list(rows().items())
    figure = Figure(figsize=(12.6, len(shown) * 0.6), layout="constrained", dpi=96)
    grid = figure.subplots(len(shown) // 2, 2 * FACES).reshape(len(shown), FACES)
    for line, (name, faces) in zip(grid, shown, strict=True):
        for axes, face in zip(line, faces, strict=True):
            axes.imshow(face.permute(1, 2, 0).byte().numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        amount = AMOUNTS.get(name)
        label = name if amount is None else f"{name}\n{amount:g}"
        line[0].set_ylabel(label.replace("_", "\n"), rotation=0, ha="right", va="center")
    file = io.BytesIO()
    figure.savefig(file)
    Image.open(file).convert("RGB").save(path, quality=92, subsampling="4:4:4")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
