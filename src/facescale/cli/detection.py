"""Options that commands share which find faces on photographs."""

import argparse
from typing import TYPE_CHECKING

from facescale.cli.parser import Parser

if TYPE_CHECKING:
    from facescale.detection.detector import Detector


def add_detection_options(parser: Parser) -> None:
    """Which detector, and which face of several."""
    add = parser.add_argument
    add("--detector", metavar="FILE", help="YuNet or SCRFD as ONNX [$FACESCALE_DETECTOR]")
    add(
        "--face",
        choices=["largest", "central", "only"],
        default="largest",
        help="of several; only: use photographs with one face [largest]",
    )
    add("--min_score", type=float, metavar="X", help="of a face [0.6 for YuNet, 0.5 for SCRFD]")
    add("--longest", type=int, default=640, metavar="N", help="pixels a side to detect in [640]")


def check_detection_options(chosen: argparse.Namespace) -> None:
    """Find mistakes before anything is imported.

    Raises:
        ValueError: A size or a score that cannot be.
    """
    if chosen.longest < 32:
        raise ValueError(f"--longest must be at least 32, got {chosen.longest}")
    if chosen.min_score is not None and not 0 <= chosen.min_score <= 1:
        raise ValueError(f"--min_score must be in [0, 1], got {chosen.min_score}")


def detection_options(chosen: argparse.Namespace) -> list[str]:
    """Which of the options are given, apart from those that say what is the default."""
    usual = {"detector": None, "face": "largest", "min_score": None, "longest": 640}
    return [f"--{name}" for name, value in usual.items() if getattr(chosen, name) != value]


def open_chosen_detector(chosen: argparse.Namespace) -> "Detector":
    """The detector that the options name, or the environment."""
    from facescale.detection.opening import open_detector

    return open_detector(chosen.detector, chosen.min_score)
