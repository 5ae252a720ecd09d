"""Of the sub-centres of an identity, that of most of its images is exported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from facescale.checkpoint import folder as checkpoint
from facescale.checkpoint import unpack
from facescale.cli import main
from facescale.config import HeadConfig
from facescale.evaluation.embedded import Embedded, write_embedded
from facescale.training import train
from runs import small_run


def images_near(centres: torch.Tensor, places: list[int], labels: list[int]) -> Embedded:
    return Embedded(
        embeddings=centres[places].numpy() * 3,
        labels=np.array(labels),
        people=[],
        files=[],
        model={},
    )


def test_the_centre_of_most_images_wins() -> None:
    centres = torch.eye(6).view(3, 2, 6)
    # class 10: two images near its second centre; class 11: one each; class 12: none
    images = images_near(torch.eye(6), [1, 1, 0, 2, 3], [10, 10, 10, 11, 11])
    found = unpack.dominant(centres, images, first_class=10)
    assert found.argmax(dim=1).tolist() == [1, 2, 4]
    with pytest.raises(ValueError, match="embeddings of 4 numbers, the class centres 6"):
        unpack.dominant(centres, images_near(torch.eye(4), [0], [10]), 10)


@pytest.mark.usefixtures("tiny_y1")
def test_a_checkpoint_is_unpacked_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_run(head=HeadConfig(subcentres=2)), tmp_path / "run")
    path = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1]
    (file,) = unpack.unpack_centres(path, tmp_path)
    centres = load_file(file)["centres"].view(50, 2, -1)
    second = centres[:, 1]
    names = [str(label) for label in range(50)]
    write_embedded(tmp_path / "x.npz", iter([second]), 50, np.arange(50), names, names, {})
    words = ["--output", str(tmp_path / "out"), "--dominant", str(tmp_path / "x.npz")]
    main(["unpack", str(tmp_path / "run"), *words])
    (file,) = (tmp_path / "out").glob("centres-*")
    assert torch.equal(load_file(file)["centres"], second)
    names.append("50")
    write_embedded(tmp_path / "x.npz", iter([second[:1]]), 1, np.array([50]), names, names[:1], {})
    with pytest.raises(SystemExit):
        main(["unpack", str(tmp_path / "run"), *words])
    assert "the images have labels up to 50, but the run has 50 classes" in capsys.readouterr().err
