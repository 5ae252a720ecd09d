"""What commands share that embed: a trained backbone, or an ONNX file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.models import add_model_options, open_model
from facescale.cli.parser import Parser, check_counts

if TYPE_CHECKING:
    import torch
    from torch import nn


def add_network_options(parser: Parser) -> None:
    """A model of our own, weights and their network, or an ONNX file; and how to run it."""
    add_model_options(parser)
    add = parser.add_argument
    add("--mean", type=float, metavar="X", help="of the pixels of an ONNX file's input [127.5]")
    add("--std", type=float, metavar="X", help="divides them then [127.5]")
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="add the embedding of the mirrored image [--flip]",
    )
    add_run_options(parser)


def add_run_options(parser: Parser) -> None:
    """Where and in which batches a network runs."""
    add = parser.add_argument
    add("--batch_size", type=int, default=64, metavar="N", help="images at a time [64]")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="[auto]")


def check_network_options(chosen: argparse.Namespace) -> None:
    """Find mistakes before torch is imported.

    Raises:
        ValueError: A batch of no image, or `--mean` or `--std` for anything but an ONNX file.
    """
    check_counts(chosen, "batch_size")
    if Path(chosen.model).suffix != ".onnx" and (chosen.mean, chosen.std) != (None, None):
        raise ValueError(
            "--mean and --std are for ONNX files; leave them out, other models know their pixels"
        )


def open_network(chosen: argparse.Namespace, device: "torch.device") -> "nn.Module":
    """The chosen model in eval mode on `device`; an ONNX file runs on the CPU."""
    if Path(chosen.model).suffix == ".onnx":
        from facescale.models.onnx_network import OnnxNetwork

        return OnnxNetwork(chosen.model, chosen.mean, chosen.std)
    from facescale.acceleration.folding import inference_copy

    return inference_copy(open_model(chosen).to(device))
