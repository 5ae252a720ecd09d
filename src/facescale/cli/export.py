"""`facescale export`: a trained backbone as an ONNX graph."""

import argparse

from facescale.cli.models import add_model_options, open_model
from facescale.cli.parser import Parser
from facescale.cli.terminal import file_to_write

USAGE = "facescale export MODEL [--output model.onnx] [options]"


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add_model_options(parser)
    parser.add_argument(
        "--output", default="model.onnx", metavar="FILE", help="of the graph [model.onnx]"
    )
    parser.add_argument(
        "--opset", type=int, metavar="N", help="of ONNX's operators, 15 or newer [20]"
    )


def run(chosen: argparse.Namespace) -> None:
    """Write the graph, and say how well it answers."""
    output = file_to_write(chosen.output)
    backbone = open_model(chosen)
    from facescale.models import onnx as export

    opset = export.OPSET if chosen.opset is None else chosen.opset
    difference = export.export_onnx(backbone, output, opset)
    print(output)
    print(f"input   {export.INPUT}: RGB (b, 3, 112, 112), (pixel - {export.MEAN}) / {export.STD}")
    print(f"output  {export.OUTPUT}, not normalised; {difference:.0e} from torch's on noise")
