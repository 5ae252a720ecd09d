"""The command line. A file a command: its options, and what it does with them.

A command's module is imported when the command is called, and torch when it is needed, after the
options are read: `facescale --help` and mistakes answer at once.
"""

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from facescale.allocator import keep_freed_memory
from facescale.cli.mistakes import one_line, shows_tracebacks, tell_torchrun
from facescale.cli.parser import Parser, answer, choose
from facescale.files import PrintableLines, printable

COMMANDS = {
    "train": "train a backbone and its class centres",
    "verify": "verify a trained backbone on pairs",
    "ijb": "evaluate a trained model on IJB-B or IJB-C",
    "embed": "write the embeddings of images to a file",
    "identify": "find out who of a gallery is on photographs",
    "compare": "compare training runs on one HTML page",
    "export": "write a trained backbone as an ONNX graph",
    "import config": "convert a config of arcface_torch to YAML",
    "import weights": "convert weights of other projects to a model.safetensors",
    "unpack": "write a checkpoint as plain safetensors files",
    "plan": "predict the memory of a run, the largest batch and the most identities",
    "presets": "list the presets",
    "keys": "list the keys of a config, or those about a word",
    "data inspect": "say what a data set has, and draw some of its faces",
    "data check": "decode every record of a data set, and say what is wrong",
    "data split": "hold out people, or images of each, as a second data set",
    "data merge": "put data sets together as one, people by name or apart",
    "data clean": "take people and images out of a training set",
    "data pack": "write images of people as a training set in RecordIO",
    "data pairs": "make a verification set, or take one apart",
    "data align": "cut aligned faces out of photographs",
    "data convert": "write a data set in another format: RecordIO, OFRecord, tar, folder",
    "bench report": "run the tables of the report on this machine and write them up",
    "bench page": "write the pages of a report from its results.json; nothing is measured",
    "bench case": "one trial of the report: steps and their rates, nothing saved",
    "bench device": "measure what a GPU can do, in minutes, with tables and plots",
    "bench kernels": "time head, step, loader or inference beside the peers' plans of work",
}
"""What there is, and what it does; `bench case` is in the module `bench_case`."""

GROUPS = {
    "bench": "measure",
    "import": "take over what other projects wrote",
    "data": "make, convert and check data sets",
}
"""The first words of commands of two words, and what these have in common."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A mistake of the user is one line on stderr and exit status 2.

    An error that is no mistake of the user shows its traceback and ends with exit status 1.
    """
    _open_streams()
    for stream in (sys.stdout, sys.stderr):  # a path may have bytes that are no text
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:  # shows warnings of the library, which may have names
        logging.lastResort.setFormatter(PrintableLines())
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")  # refused by us
    try:
        module, chosen = _read(list(sys.argv[1:] if arguments is None else arguments))
        keep_freed_memory()
        module.run(chosen)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end("interrupted", 2)
    except BrokenPipeError:  # whoever read the output has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        line = one_line(error)
        if line is None or shows_tracebacks():
            traceback.print_exc()
        if line is not None:
            _end(line, 2)
        named = printable(traceback.format_exception_only(error)[-1].strip())
        _end(f"{named}: this is a fault of facescale; please report it with the lines above", 1)


_STDERR = 2


def _open_streams() -> None:
    """Let standard streams that the parent closed lead nowhere.

    Otherwise the next file that is opened has their number, and gets what libraries print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 -- open to the end


def _read(words: list[str]) -> tuple[Any, argparse.Namespace]:
    """The module of the command that `words` call, and its options."""
    name = ""
    while name not in COMMANDS:
        below = _below(name)
        if not words or words[0] in ("-h", "--help"):
            answer(_overview(name, below), 0 if words else 2)
        name = f"{name} {choose(words.pop(0), list(below), 'command')}".lstrip()
    module: Any = import_module(f"{__name__}.{name.replace(' ', '_')}")
    about = f"{_sentence(COMMANDS[name])}\n{getattr(module, 'ABOUT', '')}".rstrip()
    parser = Parser(f"facescale {name}", module.USAGE, about)
    module.add_options(parser)
    return module, parser.parse(words)


def _below(name: str) -> dict[str, str]:
    """The commands whose first words are `name`: next word and what it does."""
    prefix = f"{name} ".lstrip()
    below: dict[str, str] = {}
    for command, meaning in COMMANDS.items():
        if command.startswith(prefix):
            word, _, rest = command.removeprefix(prefix).partition(" ")
            group = below.get(word, GROUPS.get(word, ""))
            below[word] = f"{group}{', ' if word in below else ': '}{rest}" if rest else meaning
    return below


def _overview(name: str, below: dict[str, str]) -> str:
    command = f"facescale {name}".rstrip()
    lines = "".join(f"  {word:<10}{meaning}\n" for word, meaning in below.items())
    about = "" if name else "Train face recognition over millions of identities.\n\n"
    return (
        f"usage: {command} COMMAND [options]\n\n{about}commands:\n{lines}\n"
        f"`{command} COMMAND --help` shows the options of a command.\n"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _end(message: str, status: int) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    line = f"facescale{'' if rank == '0' else f' (rank {rank})'}: {message}\n"
    tell_torchrun(line)
    sys.stderr.write(line)  # at once: ranks that share a terminal mix their pieces
    sys.exit(status)
