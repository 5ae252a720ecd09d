"""YuNet's detector with the outputs of SCRFD, so that InsightFace's programs read it.

YuNet (`cv2.FaceDetectorYN`, MIT license) takes BGR pixels and gives, for strides 8, 16 and 32 and
each cell, a class and an objectness score, a box by centre and logarithmic size, and five points.
SCRFD takes RGB as (pixel - 127.5) / 128 and gives nine outputs: scores, boxes as the distances of
the four sides from the cell, and points as distances, all in strides and with two anchors a cell.
The rewritten graph gives YuNet's face twice a cell, the second time with score 0.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

STRIDES = (8, 16, 32)
SCRFD_OUTPUTS = 9
INPUT = "scrfd_input"


def is_yunet(graph: Any) -> bool:
    """Whether an ONNX model has the outputs of YuNet."""
    kinds = ("cls", "obj", "bbox", "kps")
    names = {f"{kind}_{stride}" for kind in kinds for stride in STRIDES}
    return {output.name for output in graph.graph.output} == names


def to_scrfd(yunet: Any) -> Any:
    """A copy of YuNet's ONNX model with the input and the nine outputs of SCRFD.

    Raises:
        ValueError: It is not YuNet.
    """
    import onnx

    if not is_yunet(yunet):
        names = ", ".join(output.name for output in yunet.graph.output)
        raise ValueError(f"the detector is neither YuNet nor SCRFD; its outputs are {names:.200}")
    model = onnx.ModelProto()
    model.CopyFrom(yunet)
    graph = model.graph
    nodes = [*_input_nodes(graph.input[0].name), *graph.node]
    for stride in STRIDES:
        nodes += _stride_nodes(stride)
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(_constants())
    graph.input[0].name = INPUT
    # all scores, then all boxes, then all points: SCRFD's order
    for kind, width in (("score", 1), ("box", 4), ("point", 10)):
        for stride in STRIDES:
            name = f"{kind}_{stride}"
            shape: list[str | int | None] = [f"anchors_{stride}", width]
            float32 = onnx.TensorProto.FLOAT
            graph.output.append(onnx.helper.make_tensor_value_info(name, float32, shape))
    onnx.checker.check_model(model)
    return model


def _constants() -> Iterator[Any]:
    import onnx

    values = {
        "std": np.float32(128.0),
        "mean": np.float32(127.5),
        "half": np.float32(0.5),
        "none": np.float32(0.0),
        "bgr": np.array([2, 1, 0]),
        "first": np.array([0, 1]),
        "second": np.array([2, 3]),
        "one_a_row": np.array([-1, 1]),
        "four_a_row": np.array([-1, 4]),
        "ten_a_row": np.array([-1, 10]),
    }
    for name, value in values.items():
        yield onnx.numpy_helper.from_array(np.asarray(value), f"scrfd_{name}")


def _node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    """A node; the constants among its inputs are written without their prefix, as `:name`."""
    import onnx

    names = [name.replace(":", "scrfd_") for name in inputs.split()]
    return onnx.helper.make_node(operator, names, [output], name=f"scrfd_{output}", **attributes)


def _input_nodes(name: str) -> Iterator[Any]:
    """(pixel - 127.5) / 128 in RGB to pixels in BGR; exact, since 128 is a power of two."""
    yield _node("Mul", f"{INPUT} :std", "scrfd_scaled")
    yield _node("Add", "scrfd_scaled :mean", "scrfd_pixels")
    yield _node("Gather", "scrfd_pixels :bgr", name, axis=1)


def _stride_nodes(s: int) -> Iterator[Any]:
    """Score, box and points of one stride; `cls_8` and the others are (1, cells, width)."""
    yield _node("Mul", f"cls_{s} obj_{s}", f"product_{s}")
    yield _node("Sqrt", f"product_{s}", f"found_{s}")
    yield _node("Mul", f"found_{s} :none", f"absent_{s}")
    yield _node("Concat", f"found_{s} absent_{s}", f"both_{s}", axis=2)
    yield _node("Reshape", f"both_{s} :one_a_row", f"score_{s}")
    yield _node("Gather", f"bbox_{s} :first", f"shift_{s}", axis=2)
    yield _node("Gather", f"bbox_{s} :second", f"log_size_{s}", axis=2)
    yield _node("Exp", f"log_size_{s}", f"size_{s}")
    yield _node("Mul", f"size_{s} :half", f"half_size_{s}")
    yield _node("Sub", f"half_size_{s} shift_{s}", f"left_top_{s}")
    yield _node("Add", f"half_size_{s} shift_{s}", f"right_bottom_{s}")
    sides = f"left_top_{s} right_bottom_{s}"
    yield _node("Concat", f"{sides} {sides}", f"boxes_{s}", axis=2)
    yield _node("Reshape", f"boxes_{s} :four_a_row", f"box_{s}")
    yield _node("Concat", f"kps_{s} kps_{s}", f"points_{s}", axis=2)
    yield _node("Reshape", f"points_{s} :ten_a_row", f"point_{s}")
