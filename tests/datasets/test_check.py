"""Each kind of flaw is found and named, to the end of a damaged file, and can be left out."""

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damage import (
    cut,
    face,
    offsets_of,
    overwrite,
    records,
    saved,
    saved_again,
    with_noise,
    with_zeros,
)
from facescale.cli import main
from facescale.data.dataset import open_dataset
from facescale.data.recordfile import RecordFile, write_record
from facescale.data.recordio import RecordIO
from facescale.data.skip import leave_out
from facescale.datasets.check import Report, check, good_records
from facescale.datasets.examine import Flaw
from facescale.datasets.frames import Salvaged, find_frames
from facescale.datasets.subset import Subset, write_subset
from records import ycck
from shared_data import shared_data


def kinds(report_flaws: int) -> set[str]:
    return {str(flaw.name) for flaw in Flaw if report_flaws & int(flaw)}


def grey(seed: int) -> bytes:
    return saved(Image.open(io.BytesIO(face(seed))).convert("L"), "JPEG")


def deep(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 2**16, (112, 112)).astype(np.uint16)
    return saved(Image.fromarray(pixels), "PNG")


IMAGES = {
    "whole": (face(0), set()),
    "whole png": (saved(Image.open(io.BytesIO(face(1))), "PNG"), set()),
    "progressive": (face(2, progressive=True), set()),
    "data behind the end": (face(3) + b"more", set()),
    "half": (face(4)[:2000], {"CUT"}),
    "half and the end marker": (cut(face(5)), {"CUT"}),
    "half, saved again": (saved_again(face(6)), {"GREY"}),
    "a sector of zeros": (with_zeros(face(7)), {"ZEROED"}),
    "zeros": (bytes(3000), {"ZEROED"}),
    "noise in its data": (with_noise(face(8)), {"BROKEN"}),
    "text": (b"no image at all", {"BROKEN"}),
    "cut png": (saved(Image.open(io.BytesIO(face(10))), "PNG")[:9000], {"BROKEN"}),
    "larger": (face(11, 128), {"SIZE"}),
    "grey": (grey(12), {"DEPTH"}),
    "16 bits": (deep(13), {"DEPTH"}),
    "of print": (ycck(saved(Image.open(io.BytesIO(face(15))).convert("CMYK"), "JPEG")), {"DEPTH"}),
    "larger, and cut": (cut(face(14, 160)), {"SIZE", "CUT"}),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 112 112\n", {"BROKEN"}),
}


def test_each_kind_of_image_is_told(tmp_path: Path) -> None:
    records(tmp_path, [(image, 0) for image, _ in IMAGES.values()], 1)
    report = check(tmp_path, num_threads=2)
    found = [kinds(flaws) for flaws in report.walked.flaws.tolist()]
    assert dict(zip(IMAGES, found, strict=True)) == {n: want for n, (_, want) in IMAGES.items()}
    assert set(report.walked.reasons) == set(report.bad.tolist())
    assert report.frames is not None
    assert (report.files, report.frames.num_lost) == ([], 0)


def test_copies_are_told_within_and_across_identities(tmp_path: Path) -> None:
    a, b, c = face(0), face(1), face(2)
    first, second = [(a, 0), (b, 0), (a, 0)], [(c, 1), (b, 1), (c, 1), (c, 1)]
    records(tmp_path, [*first, *second, (face(3), 2)], 3)
    report = check(tmp_path)
    assert report.records_with(Flaw.DUPLICATE).tolist() == [2, 5, 6]
    assert report.records_with(Flaw.CONFLICT).tolist() == [1, 4]
    assert report.walked.reasons[2].endswith("the same image as " + report.dataset.describe(0))
    for index, other in ((1, 4), (4, 1)):
        assert f"the same image as {report.dataset.describe(other)} " in report.reason(index)
    assert not report.is_clean
    lenient = check(tmp_path, allowed=Flaw.DUPLICATE | Flaw.CONFLICT)
    assert lenient.is_clean
    repair(report, tmp_path / "clean")
    assert [RecordIO(tmp_path / "clean").read(i).label for i in range(3)] == [0, 1, 2]
    assert check(tmp_path / "clean").is_clean


def test_labels_out_of_range_are_told(tmp_path: Path) -> None:
    records(tmp_path, [(face(i), i) for i in range(4)], 4)
    places = offsets_of(tmp_path)
    (tmp_path / "property").write_text("3,112,112\n")
    overwrite(tmp_path / "train.rec", places[1] + 12, struct.pack("<f", 0.5))
    report = check(tmp_path)
    assert report.records_with(Flaw.LABEL).tolist() == [0, 3]
    assert report.reason(0) == "label 0.5 is not a whole number"
    assert report.reason(3) == "label 3, but there are 3 classes"


def test_a_copy_without_a_valid_label_costs_no_good_record(tmp_path: Path) -> None:
    records(tmp_path, [(face(0), 0), (face(1), 1), (face(0), 2)], 3)
    (tmp_path / "property").write_text("2,112,112\n")
    report = check(tmp_path)
    assert report.bad.tolist() == report.records_with(Flaw.LABEL).tolist() == [2]
    repair(report, tmp_path / "clean")
    assert len(RecordIO(tmp_path / "clean")) == 2


def test_a_jpeg_of_a_thousand_scans_is_not_decoded(tmp_path: Path) -> None:
    large = face(0, 2000, progressive=True)
    scan = large[large.rindex(b"\xff\xda") : -2]
    records(tmp_path, [(large[:-2] + scan[:20] * 1000 + large[-2:], 0)], 1)
    report = check(tmp_path)
    assert report.records_with(Flaw.BROKEN).tolist() == [0]
    assert "too many scans for 2000 x 2000 pixels" in report.reason(0)


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    return records(tmp_path / "ten", [(face(i), i // 2) for i in range(10)], 5)


def test_a_damaged_header_costs_its_record_alone(ten: Path, tmp_path: Path) -> None:
    places = offsets_of(ten)
    overwrite(ten / "train.rec", places[3], b"oops")
    overwrite(ten / "train.rec", places[5], bytes(16))
    overwrite(ten / "train.rec", places[8] + 4, struct.pack("<I", 2**28))  # a length
    report = check(ten)
    assert report.records_with(Flaw.MAGIC).tolist() == [2]
    assert report.records_with(Flaw.ZEROED).tolist() == [4]
    assert report.records_with(Flaw.TRUNCATED).tolist() == [7]
    assert report.frames is not None
    assert [(one.start, one.stop) for one in report.frames.lost] == [
        (places[record], places[record + 1]) for record in (3, 5, 8)
    ]
    assert report.files[0].endswith("no whole record (record 3)")
    (ten / "train.idx").unlink()  # which makes the set unreadable for training
    report = check(ten)
    assert isinstance(report.dataset, Salvaged)
    assert len(report.dataset) == 7
    assert report.files[0].startswith("cannot be opened for training: ")
    made = repair(report, tmp_path / "clean")
    assert (len(made), made.num_classes, made.old_labels) == (7, 5, None)
    clean, whole = open_dataset(tmp_path / "clean"), [i for i in range(10) if i not in (2, 4, 7)]
    assert [clean.read(i) for i in range(7)] == [(face(i), i // 2) for i in whole]


def test_dense_damage_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "any.rec").write_bytes(struct.pack("<II", 0xCED7230A, 1 << 29) * 2000)
    read, asked = os.pread, list[int]()

    def count(descriptor: int, size: int, offset: int) -> bytes:
        asked.append(size)
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", count)
    frames = find_frames(RecordFile(tmp_path / "any.rec"))
    assert (len(frames.offsets), frames.lost_bytes) == (0, 16_000)
    assert sum(asked) < 20 * 16_000


def test_a_length_that_swallows_others_or_ends_early_costs_its_record_alone(ten: Path) -> None:
    places = offsets_of(ten)
    overwrite(ten / "train.rec", places[2] + 4, struct.pack("<I", places[5] - places[2]))
    overwrite(ten / "train.rec", places[7] + 4, struct.pack("<I", 1000))
    (ten / "train.idx").unlink()
    report = check(ten)
    assert isinstance(report.dataset, Salvaged)
    labels = report.walked.labels.tolist()
    assert labels == [0, 1, 1, 2, 2, 3, 3, 4, 4]  # the seventh is short, and kept as far as it goes
    assert report.records_with(Flaw.CUT).tolist() == [5]
    assert [one.start for one in report.frames.lost] == [places[2], places[7] + 1008]  # type: ignore[union-attr]


def test_a_file_that_breaks_off_is_read_to_its_end(ten: Path, tmp_path: Path) -> None:
    places = offsets_of(ten)
    with (ten / "train.rec").open("r+b") as file:
        file.truncate(places[7] + 500)
    report = check(ten)
    assert report.walked.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert report.files[0].startswith("cannot be opened for training: ")
    assert report.files[1].startswith(f"train.rec bytes {places[7]:,} to {places[7] + 500:,}")
    repair(report, tmp_path / "clean", renumber=True)
    clean = open_dataset(tmp_path / "clean")
    assert (len(clean), clean.num_classes) == (6, 3)
    assert (tmp_path / "clean" / "classes.txt").read_text().split() == ["0", "1", "2"]


def test_records_that_the_index_lacks_are_counted(ten: Path) -> None:
    lines = (ten / "train.idx").read_text().splitlines()
    (ten / "train.idx").write_text("\n".join([*lines[:4], *lines[6:]]) + "\n")
    report = check(ten)
    assert len(report.dataset) == 8
    assert report.files[0].startswith("train.idx lacks 2 records of train.rec, the first one at ")


def test_labels_with_gaps_are_numbered_anew(tmp_path: Path) -> None:
    with (tmp_path / "train.rec").open("wb") as file:
        for key, label in enumerate([3, 3, 900_000, 900_000]):
            write_record(file, struct.pack("<IfQQ", 0, label, key, 0) + face(key))
    with pytest.raises(ValueError, match="--repair OUT --renumber"):
        open_dataset(tmp_path)
    report = check(tmp_path)
    assert not len(report.bad)
    repair(report, tmp_path / "clean", renumber=True)
    clean = open_dataset(tmp_path / "clean")
    assert [clean.read(index) for index in range(4)] == [(face(i), i // 2) for i in range(4)]
    assert (tmp_path / "clean" / "classes.txt").read_text().split() == ["3", "900000"]


def repair(report: Report, folder: Path, renumber: bool = False) -> Subset:
    subset = good_records(report, renumber)
    write_subset(subset, folder, num_threads=1)
    return subset


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(["data", "check", *words])
    assert isinstance(ending.value.code, int)
    return ending.value.code


def test_the_command_says_it_all(
    ten: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "check", str(ten)])
    assert capsys.readouterr().out.endswith("nothing is wrong\n")
    overwrite(ten / "train.rec", offsets_of(ten)[4], b"oops")
    skip, saved_as = tmp_path / "skip.txt", tmp_path / "report.json"
    words = (str(ten), "--skip-list", str(skip), "--repair", str(tmp_path / "clean"))
    assert run(*words, "--report", str(saved_as), "--threads", "2") == 1
    said = capsys.readouterr().out
    assert "train.rec record 4: no record begins at byte" in said
    assert "1 of 10 records are bad" in said
    assert "--repair" not in said
    assert "9 images of 5 classes; labels as before" in said
    told = json.loads(saved_as.read_text())
    assert told["flaws"]["magic"]["records"][0]["index"] == 3
    assert told["lost"][0]["zeros"] is False
    kept = leave_out(open_dataset(ten), skip)
    assert [kept.read(i).label for i in range(9)] == [0, 0, 1, 2, 2, 3, 3, 4, 4]
    assert run(str(ten), "--json") == 1
    assert json.loads(capsys.readouterr().out)["bad"] == 1
    assert run(str(ten)) == 1
    assert "1 of 10 records are bad\n  --repair OUT writes the others" in capsys.readouterr().out
    assert run(str(ten), "--allow", "nonsense") == 2
    assert "unknown kind of flaw 'nonsense'" in capsys.readouterr().err
    assert run(str(ten), "--repair", str(tmp_path / "clean")) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_folder_and_foreign_sets_are_checked(tmp_path: Path) -> None:
    for name, image in (("a/0", face(0)), ("a/1", cut(face(1))), ("b/0", face(0))):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)
    report = check(tmp_path)
    assert [kinds(flaws) for flaws in report.walked.flaws.tolist()] == [
        {"CONFLICT"},
        {"CUT"},
        {"CONFLICT"},
    ]
    assert check("att", allowed=Flaw.GREY).is_clean


@pytest.mark.parametrize(
    ("case", "flaw", "count"),
    [
        ("05_sixteen_bit/F", Flaw.DEPTH, 1),
        ("hostile/eps_gs/set", Flaw.BROKEN, 1),
        ("hostile/jpeg_bomb/rec_jpeg_30000", Flaw.BROKEN, 1),
        ("hostile/jpeg_bomb/rec_jpeg_65500", Flaw.BROKEN, 1),
        ("hostile/jpeg_bomb/rec_png_13000", Flaw.BROKEN, 1),
    ],
)
def test_cases_from_the_field(case: str, flaw: Flaw, count: int) -> None:
    report = check(shared_data(f"cases/{case}"))
    assert len(report.records_with(flaw)) == count, report.walked.reasons


def test_a_skip_list_replaces_no_other_file(
    ten: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overwrite(ten / "train.rec", offsets_of(ten)[4], b"oops")
    mine = tmp_path / "run.yaml"
    mine.write_text("data: {skip: skip.txt}\n")
    assert run(str(ten), "--skip-list", str(mine)) == 2
    assert f"{mine} exists and is not a skip list" in capsys.readouterr().err
    assert mine.read_text() == "data: {skip: skip.txt}\n"
    skip = tmp_path / "skip.txt"
    for _ in range(2):  # its own list it writes again
        assert run(str(ten), "--skip-list", str(skip)) == 1
    assert len(skip.read_text().splitlines()) == 2
