"""Commands that the command line refuses: one line on stderr, exit status 2."""

import pytest

from facescale.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a mistake in the arguments gives."""
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("facescale: ")
    assert line.count("\n") == 1
    return line
