"""The command line. A file a command: its options, and what it does with them."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser

from facescale.allocator import keep_freed_memory
from facescale.cli import bench, export, plan, presets, train, unpack, verify

COMMANDS = {
    "train": train,
    "verify": verify,
    "export": export,
    "unpack": unpack,
    "plan": plan,
    "bench": bench,
    "presets": presets,
}

MISTAKES = (ValueError, OSError, ArithmeticError, ImportError, MemoryError)
"""Errors that speak of what the user gave, when our own code raised them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A mistake of the user is one line on stderr and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    try:
        parser = _parser()
        chosen = parser.parse_args(given)
        if layered := getattr(COMMANDS[chosen.subcommand], "layered", None):
            chosen = parser.parse_args(layered(chosen[chosen.subcommand], given))
        COMMANDS[chosen.subcommand].run(parser.instantiate(chosen)[chosen.subcommand])
    except (argparse.ArgumentError, *MISTAKES) as error:
        if not isinstance(error, argparse.ArgumentError) and not _is_ours(error):
            raise
        _refuse(" ".join(str(error).split()))
    except KeyboardInterrupt:
        _refuse("interrupted")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="facescale",
        description="Train face recognition over millions of identities.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands()
    for name, command in COMMANDS.items():
        options = ArgumentParser(exit_on_error=False, allow_abbrev=False)
        commands.add_subcommand(name, options, help=command.HELP)
        command.add_options(options)
    return parser


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error itself: then its text is written for the user."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(Path(__file__).parents[1])


def _refuse(message: str) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    who = "facescale" if rank == "0" else f"facescale (rank {rank})"
    sys.stderr.write(f"{who}: {message}\n")  # at once: ranks that share a terminal mix their pieces
    sys.exit(2)
