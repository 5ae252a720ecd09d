"""`facescale export`: a trained backbone as an ONNX graph, or as a package for InsightFace."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.cli.models import add_model_options, open_model
from facescale.cli.parser import Parser
from facescale.cli.terminal import escape, file_to_write, say, show, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from facescale.backbones import Backbone
    from facescale.data.pairs import PairSet
    from facescale.evaluation.parity import Parity

USAGE = "facescale export MODEL [OUT.onnx] [--package FOLDER] [options]"
ABOUT = """
A package is a folder that insightface.app.FaceAnalysis(FOLDER) loads: the graph, a face detector,
and a manifest with checksums."""
CALIBRATION = 256  # faces that int8 finds its ranges on


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add_model_options(parser)
    add = parser.add_argument
    add("output", nargs="?", metavar="OUT.onnx", help="the file of the graph [model.onnx]")
    add("--opset", type=int, metavar="N", help="of ONNX's operators, 15 or newer [20]")
    add("--ir_version", type=int, metavar="N", help="of ONNX's format [the oldest with the opset]")
    add("--dtype", choices=["float32", "float16", "int8"], default="float32", help="[float32]")
    add("--measure", metavar="SET", help="say what is lost on this verification set, a .bin file")
    add("--calibrate", metavar="SET", help="faces for the ranges of int8 [those of --measure]")
    add("--package", metavar="FOLDER", help="write a package for InsightFace")
    add("--detector", metavar="ONNX", help="of the package: YuNet, which is rewritten, or SCRFD")
    add(
        "--manifest",
        type=int,
        choices=[1, 2],
        default=2,
        help="of the package: 2 is insightface's, 1 InsightFace Server's [2]",
    )


def run(chosen: argparse.Namespace) -> None:
    """Write the graph, and say how well it answers."""
    _check(chosen)
    output = _output(chosen)
    detector = _read_detector(chosen)
    measured, faces = _open_sets(chosen)
    backbone = open_model(chosen)
    from facescale.models import onnx as export

    difference = export.export_onnx(
        backbone,
        output,
        export.OPSET if chosen.opset is None else chosen.opset,
        ir_version=chosen.ir_version,
        dtype=chosen.dtype,
        faces=faces,
    )
    print(output)
    print(f"input   {export.INPUT}: RGB (b, 3, 112, 112), (pixel - {export.MEAN}) / {export.STD}")
    on = "faces" if chosen.dtype == "int8" else "noise"
    print(f"output  {export.OUTPUT}, not normalised; {difference:.0e} from torch's on {on}")
    if measured is not None:
        _show_loss(chosen.dtype, _measure(backbone, output, measured))
    if chosen.package is not None:
        _complete(chosen, backbone.embedding_dim, detector)


def _check(chosen: argparse.Namespace) -> None:
    """Find mistakes before torch is imported."""
    if chosen.package is None:
        if chosen.detector is not None or chosen.manifest != 2:
            raise ValueError("--detector and --manifest are for a package; give --package FOLDER")
    elif chosen.output is not None:
        raise ValueError("give OUT.onnx or --package FOLDER, not both")
    if chosen.manifest == 1 and chosen.detector is None:
        raise ValueError("InsightFace Server needs a detector; give --detector")
    if chosen.calibrate is not None and chosen.dtype != "int8":
        raise ValueError("--calibrate is for --dtype int8; leave it out, or give both")
    if chosen.dtype == "int8" and chosen.calibrate is None and chosen.measure is None:
        raise ValueError("int8 finds its ranges on faces; give --calibrate SET or --measure SET")


def _output(chosen: argparse.Namespace) -> Path:
    if chosen.package is None:
        return file_to_write(chosen.output or "model.onnx", ".onnx")
    from facescale.models.package import RECOGNISER, check_name

    check_name(Path(chosen.package))
    return file_to_write(str(Path(chosen.package) / RECOGNISER))


def _read_detector(chosen: argparse.Namespace) -> bytes | None:
    if chosen.detector is None:
        return None
    from facescale.models.onnx import require_extra
    from facescale.models.package import read_detector

    require_extra()
    return read_detector(Path(chosen.detector))


def _open_sets(
    chosen: argparse.Namespace,
) -> "tuple[PairSet | None, NDArray[np.uint8] | None]":
    """The set to measure on, and the faces to calibrate on."""
    from facescale.training.sets import open_sets

    measured = None if chosen.measure is None else open_sets([chosen.measure])[0]
    if chosen.dtype != "int8":
        return measured, None
    source = measured if chosen.calibrate is None else open_sets([chosen.calibrate])[0]
    assert source is not None
    images, _ = source.distinct()
    return measured, source.decode(images[:: max(1, len(images) // CALIBRATION)][:CALIBRATION])


def _measure(backbone: "Backbone", graph: Path, pairs: "PairSet") -> "Parity":
    from facescale.acceleration.folding import inference_copy
    from facescale.evaluation.parity import measure_parity
    from facescale.models.onnx_network import OnnxNetwork

    return measure_parity(inference_copy(backbone), OnnxNetwork(graph), pairs)


def _show_loss(dtype: str, parity: "Parity") -> None:
    """Figures of torch's float32 and of the graph, and how the embeddings differ."""
    shown = table(escape(parity.before.name), "accuracy", "TAR@FAR 1e-3", "AUC", "EER")
    for name, one in (("torch, float32", parity.before), (f"ONNX, {dtype}", parity.after)):
        answer: Any = one.verification
        shown.add_row(
            name,
            f"{100 * answer.accuracy:.2f} %",
            f"{100 * answer.tar:.2f} %",
            f"{answer.roc.auc:.5f}",
            f"{100 * answer.roc.eer:.2f} %",
        )
    show(shown)
    lost = 100 * (parity.before.verification.accuracy - parity.after.verification.accuracy)
    say(
        f"accuracy lost: {lost:.2f} points; cosine of both embeddings of a face: lowest "
        f"{parity.lowest_cosine:.6f}, mean {parity.mean_cosine:.6f}; largest difference of a "
        f"coordinate {parity.difference:.1e}"
    )


def _complete(chosen: argparse.Namespace, embedding_dim: int, detector: bytes | None) -> None:
    """Detector and manifest of a package, and what its readers ask for."""
    from facescale.models.package import SERVER_DIM, complete_package

    folder = Path(chosen.package)
    if detector is None:
        print(f"{folder} has no detector; FaceAnalysis needs one: --detector, or a det_*.onnx")
        return
    complete_package(folder, embedding_dim, detector, chosen.manifest)
    if chosen.manifest == 2:
        print(f"package FaceAnalysis({str(folder.resolve())!r})")
        return
    print("package for InsightFace Server, which asks for a MODEL.LICENSE signed by InsightFace")
    if embedding_dim != SERVER_DIM:
        print(f"        and for {SERVER_DIM} dimensions; this model has {embedding_dim}")
