"""Pictures are drawn whole, from few points and from many, and leave no trace behind."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from confined import file_size_limit
from facescale.evaluation.plots import _draw_curve, plot_roc, plot_training, rendered, save
from facescale.evaluation.verification import Roc, Verification, normalise, roc, verify


def verified(n: int, noise: float, seed: int) -> Verification:
    rng = np.random.default_rng(seed)
    same = np.arange(n) % 2 == 0
    first = normalise(rng.standard_normal((n, 16)))
    other = np.where(same[:, None], first, normalise(rng.standard_normal((n, 16))))
    return verify(first, normalise(other + noise * rng.standard_normal((n, 16))), same)


def training(n: int, names: list[str]) -> list[dict[str, float]]:
    rng = np.random.default_rng(n)
    lines = []
    for step in range(1, n + 1):
        loss = 30 * np.exp(-3 * step / n) + 4 + rng.standard_normal()
        line = {"step": step, "loss": loss, "lr": 0.1 if 2 * step < n else 0.01}
        if step % max(1, n // 10) == 0:
            line |= {f"{name}/accuracy": 0.9 - 0.1 * k for k, name in enumerate(names)}
        lines.append(line)
    return lines


def assert_whole(path: Path) -> None:
    """A PNG with something in it, and nothing cut off: its outermost pixels are white."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 800 < image.width < 1300
        pixels = np.asarray(image.convert("L"))
    assert pixels.min() < 80
    for border in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
        assert border.min() == 255


CURVES: dict[str, dict[str, Roc | Verification]] = {
    "one": {"lfw": verified(6000, 0.15, 0)},
    "three": {
        "lfw": verified(600, 0.1, 1),
        "cfp_fp": verified(700, 0.3, 2),
        "x": roc([1, 0], [1, 0]),
    },
    "perfect": {"lfw": verified(6000, 0.0, 3)},
    "small": {"AT&T, ten people never seen": verified(40, 0.3, 4)},
    "chance": {"untrained": verified(400, 30.0, 5)},
    "tiny": {"two scores": roc([0.0, 1.0], [True, False])},
}


@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES)
def test_roc_is_drawn_whole(tmp_path: Path, curves: dict[str, Roc | Verification]) -> None:
    plot_roc(tmp_path / "roc.png", curves)
    assert_whole(tmp_path / "roc.png")


def test_a_curve_of_millions_of_pairs_is_drawn_with_a_point_a_rise() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(20_000) % 1000 == 0
    curve = roc(np.round(rng.standard_normal(20_000) + 2 * same, 4), same)
    line = _draw_curve(Figure().add_subplot(), curve)
    far, tar = (np.asarray(values) for values in line.get_data(orig=True))
    assert len(far) < 25
    for target in np.append(rng.uniform(curve.resolution, 1, 100), [curve.resolution, 1]):
        drawn = tar[np.searchsorted(far, target, side="right") - 1]
        assert drawn == curve.tar_at(target)


@pytest.mark.parametrize("n", [1, 5, 41, 5000])
@pytest.mark.parametrize("names", [[], ["lfw"], ["lfw", "cfp_fp", "agedb_30"]], ids=len)
def test_training_is_drawn_whole(tmp_path: Path, n: int, names: list[str]) -> None:
    plot_training(tmp_path / "loss.png", training(n, names))
    assert_whole(tmp_path / "loss.png")


def test_losses_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    lines = training(100, [])
    lines[50]["loss"], lines[51]["loss"], lines[52]["loss"] = np.nan, np.inf, 1e9
    plot_training(tmp_path / "loss.png", lines)
    assert_whole(tmp_path / "loss.png")


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no curve"):
        plot_roc(tmp_path / "roc.png", {})
    with pytest.raises(ValueError, match="no loss"):
        plot_training(tmp_path / "loss.png", [{"step": 1, "lr": 0.1}])


def test_the_style_stays_in_the_pictures(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_roc(tmp_path / "roc.png", CURVES["small"])
    assert dict(matplotlib.rcParams) == before


def test_a_picture_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "roc.png"
    path.write_text("the old picture")
    with file_size_limit(1000), pytest.raises(OSError, match=r"roc\.png could not be written"):
        plot_roc(path, CURVES["one"])
    assert path.read_text() == "the old picture"
    assert [file.name for file in tmp_path.iterdir()] == ["roc.png"]


@pytest.mark.filterwarnings("error")
def test_a_name_in_letters_that_the_font_lacks_gives_no_warning() -> None:
    figure = Figure()
    figure.suptitle("人脸")
    assert rendered(figure, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_suffix_is_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    save(Figure(), path)
    assert path.read_bytes().startswith(start)
