"""Every import points down: the house keeps its floors."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import facescale

ROOT = Path(facescale.__file__).parent

FLOORS = [
    {"random", "files", "allocator", "intervals", "rendezvous"},
    {"config", "distributed"},
    {"kernels"},
    {"head", "backbones", "data"},
    {"detection"},
    {"evaluation", "acceleration"},
    {"models"},
    {"checkpoint"},
    {"training"},
    {"plan", "datasets"},
    {"report", "timing"},
    {"cli"},
    {"__init__", "__main__"},
]
ROOM_OF_ITS_OWN = {
    "head": {"allocator", "distributed", "kernels", "random"}
}  # somebody may lift it out


def imports(path: Path) -> set[str]:
    """Rooms of this package that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("facescale"):
            parts = (node.module or "").split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            rooms |= {name[1] for name in names if name[0] == "facescale" and len(name) > 1}
    return rooms


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_no_room_imports_from_its_own_floor_or_above() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for path in ROOT.rglob("*.py"):
        room = room_of(path)
        for other in imports(path) - {room}:
            # what is no room is a public name, taken from the package's face
            assert floor[other] < floor[room], f"{path.name} of {room} imports {other}"


def imported_files(path: Path) -> set[Path]:
    """Files of this package that a file imports, in its functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("facescale."):
            module = ROOT.joinpath(*(node.module or "").split(".")[1:])
            names = [module / alias.name for alias in node.names]
            found |= {name.with_suffix(".py") for name in (module, *names)}
    return {file for file in found if file.is_file()}


def test_no_files_import_each_other_in_a_circle() -> None:
    sorter = TopologicalSorter({path: imported_files(path) for path in ROOT.rglob("*.py")})
    sorter.prepare()  # CycleError names the files


def test_networks_know_neither_kernels_nor_what_makes_them_faster() -> None:
    for path in (ROOT / "backbones").rglob("*.py"):
        assert not imports(path) & {"kernels", "acceleration"}, path.name


def test_networks_are_accelerated_in_one_place() -> None:
    calls = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and "accelerate_" in ast.unparse(node.func)
    ]
    assert calls == ["training/state.py"]


def test_the_head_could_be_lifted_out() -> None:
    for room, allowed in ROOM_OF_ITS_OWN.items():
        for path in (ROOT / room).rglob("*.py"):
            assert imports(path) - {room} <= allowed, path.name


def test_only_the_command_line_knows_its_library() -> None:
    for path in ROOT.rglob("*.py"):
        if "argparse" in path.read_text():
            assert room_of(path) == "cli"


def test_files_and_functions_keep_their_size() -> None:
    for kernel in (*ROOT.rglob("*.cpp"), *ROOT.rglob("*.h")):
        assert kernel.read_text().count("\n") <= 300, kernel
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno <= 50, f"{path.name}: {node.name}"


def moves_to_a_gpu(code: str) -> list[str]:
    """Calls in `code` that choose a CUDA device themselves."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        moves = isinstance(node.func, ast.Attribute) and node.func.attr in ("to", "cuda")
        places = [keyword.value for keyword in node.keywords if keyword.arg == "device"]
        places += node.args if moves else []
        names = [place.value for place in places if isinstance(place, ast.Constant)]
        is_cuda = isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
        if is_cuda or any(str(name).startswith("cuda") for name in names):
            found.append(ast.unparse(node))
    return found


def test_nothing_moves_itself_to_a_gpu() -> None:
    for path in ROOT.rglob("*.py"):
        assert not moves_to_a_gpu(path.read_text()), path.name
    for code in ("x.cuda()", 'x.to("cuda")', 'x.to(device="cuda:0")', 'f(3, device="cuda")'):
        assert moves_to_a_gpu(code), code
    assert not moves_to_a_gpu('x.to(device); torch.cuda.synchronize(); f(device="cpu")')


def test_public_names_are_there_and_few() -> None:
    assert len(facescale.__all__) <= 25
    for name in facescale.__all__:
        assert hasattr(facescale, name), name
    assert facescale.__all__ == sorted(facescale.__all__)
