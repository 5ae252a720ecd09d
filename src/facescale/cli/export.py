"""`facescale export`: a trained backbone as an ONNX graph."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from facescale.cli.models import add_model_options, open_model
from facescale.models import onnx as export

HELP = "write a trained backbone as an ONNX graph"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    add_model_options(parser)
    parser.add_argument("--output", type=str, default="model.onnx", help="file of the graph")
    parser.add_argument(
        "--opset", type=int, default=export.OPSET, help="version of ONNX's operators"
    )


def run(chosen: Namespace) -> None:
    """Write the graph, and say how well it answers."""
    output = Path(chosen.output)
    difference = export.export_onnx(open_model(chosen), output, chosen.opset)
    print(output)
    print(f"input   {export.INPUT}: RGB (b, 3, 112, 112), (pixel - {export.MEAN}) / {export.STD}")
    print(f"output  {export.OUTPUT}, not normalised; {difference:.0e} from torch's on noise")
