"""`facescale import weights`: another project's weights as a model of this package."""

import argparse
from pathlib import Path

from facescale.cli.models import add_weights_options
from facescale.cli.parser import Parser
from facescale.cli.terminal import file_to_write
from facescale.files import printable

USAGE = "facescale import weights FILE OUT.safetensors [options]"
ABOUT = """
FILE is of arcface_torch, AdaFace, CVLface or face.evoLVe (.pt, .pth, .ckpt, .safetensors) or of
MXNet (.params). Network, family and size are found from the names and shapes of its tensors."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    parser.add_argument("file", metavar="FILE", help="the weights")
    parser.add_argument("output", metavar="OUT.safetensors", help="the file to write")
    add_weights_options(parser)


def run(chosen: argparse.Namespace) -> None:
    """Write the file, and say what it holds and what was left out."""
    output = file_to_write(chosen.output, ".safetensors")
    if output.resolve() == Path(chosen.file).resolve():
        raise ValueError(f"{output} is the file that is read; give OUT another name")
    from facescale.models.weights import beside_network, load_backbone, save_backbone

    backbone = load_backbone(chosen.file, chosen.backbone, chosen.family)
    save_backbone(output, backbone)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    spec = ", ".join(
        f"{name} {value}" for name, value in backbone.spec.items() if name != "name" and value
    )
    print(f"{output}: {backbone.name}, {spec}; {count:,} parameters")
    if left := beside_network(Path(chosen.file)):
        told = f"{', '.join(left[:5])}{', ...' * (len(left) > 5)}"
        print(printable(f"left out, not of the network: {told}"))
