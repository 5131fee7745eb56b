"""One value of a params file is set; nothing else in it moves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from avdistill.config import editing
from avdistill.config.loading import load
from avdistill.pipeline.errors import UserError

TEACHER = "teachers.audio.weights"


def test_a_value_is_set_and_the_rest_stays(root: Path) -> None:
    text = (root / "own/params.yaml").read_text()
    for value in ("avsynth", "panns:Cnn14_mAP=0.431", '/a b/it\'s "ü" # 1.pth', "12"):
        changed = editing.replaced(text, TEACHER, value)
        assert yaml.safe_load(changed)["teachers"]["audio"]["weights"] == value
        assert editing.replaced(changed, TEACHER, "panns:Cnn14_mAP=0.431") == text


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("teachers.audo.weights", "there is no key 'audo'; did you mean 'audio'?"),
        ("teachers.audio.weights.x", "there is no key 'x'; valid: none"),
        ("teachers.audio", "expected one value, found several"),
    ],
)
def test_a_key_without_a_value_is_one_line(root: Path, key: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        editing.replaced((root / "own/params.yaml").read_text(), key, "avsynth")
    assert str(caught.value) == f"{key}: {words}"


def test_the_command(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "params.yaml"
    file.write_text((root / "own/params.yaml").read_text())
    for printed in (f"{file}: {TEACHER}: avsynth\n", ""):
        editing.main([str(file), TEACHER, "avsynth"])
        assert capsys.readouterr().out == printed
    assert load(file).teachers["audio"].weights == "avsynth"
    with pytest.raises(SystemExit, match=r"error: .*params\.yaml: teacher: there is no key 'teacher'"):
        editing.main([str(file), "teacher", "avsynth"])
    with pytest.raises(SystemExit, match="usage: python -m avdistill"):
        editing.main(sys.argv[:1])
