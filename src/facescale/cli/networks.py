"""What commands share that embed: a trained backbone, or an ONNX file."""

from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from facescale.acceleration.folding import inference_copy
from facescale.cli.models import add_model_options, open_model
from facescale.models.onnx_network import OnnxNetwork


def add_network_options(parser: ArgumentParser) -> None:
    """A model of our own, weights and their network, or an ONNX file; and how to run it."""
    add_model_options(parser)
    parser.add_argument(
        "--mean", type=float, help="subtracted from pixels 0..255 before an ONNX file (127.5)"
    )
    parser.add_argument("--std", type=float, help="divides them then (127.5)")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--flip", type=bool, default=True, help="add the mirrored image")


def open_network(chosen: Namespace, device: torch.device) -> nn.Module:
    """The chosen model in eval mode on `device`; an ONNX file runs on the CPU.

    Raises:
        ValueError: `--mean` or `--std` for anything but an ONNX file.
    """
    if chosen.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {chosen.batch_size}")
    if Path(chosen.model).suffix == ".onnx":
        return OnnxNetwork(chosen.model, chosen.mean, chosen.std)
    if (chosen.mean, chosen.std) != (None, None):
        raise ValueError("--mean and --std are for ONNX files; other models know their pixels")
    return inference_copy(open_model(chosen).to(device))
