"""The list of config keys is whole, and can be searched."""

from pathlib import Path

import pytest

from facescale.cli import main
from facescale.cli.keys import all_keys, markdown
from facescale.config.fields import fields


def test_every_key_is_listed_once_and_has_a_meaning() -> None:
    keys = all_keys()
    assert [key.name for key in keys] == list(fields())
    assert all(key.values and key.meaning for key in keys)


def test_a_row_says_values_default_and_meaning() -> None:
    rows = markdown(all_keys()).splitlines()
    assert "| `optim.lr` | number, greater than 0 | `0.1` |" in "\n".join(rows)
    assert any(row.startswith("| `head.rows` | float32, bfloat16, int8 |") for row in rows)
    assert any(row.startswith("| `evaluation.sets` | list: text |  |") for row in rows)


def test_words_are_looked_for_in_names_and_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "MOMENTUM", "centres"])
    said = capsys.readouterr().out
    assert "head.momentum" in said
    assert "data.path" not in said


def test_the_page_in_docs_is_what_the_command_writes() -> None:
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text() == markdown(all_keys()), "facescale keys --markdown > docs/config.md"
