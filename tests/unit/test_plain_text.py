"""alignment/plain_text.py: where one dialogue ends and the next begins."""

from pathlib import Path

import pytest

from alignment.errors import InputError
from alignment.plain_text import dialogues_in

ONE, OTHER = "민수: 안녕\n지수: 응", "지수: 가자\n민수: 그래"
HALF = [ONE, "민수: 하나", ONE, "지수: 둘", OTHER, "민수: 셋"]  # of them are a single turn, and not most


def file_of(folder: Path, content: str) -> Path:
    path = folder / "talks.txt"
    path.write_text(content, "utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "dialogues"),
    [
        (f"---\n{ONE}\n---\n{OTHER}\n", [ONE, OTHER]),
        ("민수: 하나\n\n민수: 둘\n\n민수: 셋\n", ["민수: 하나", "민수: 둘", "민수: 셋"]),  # who speaks alone
        ("\n\n".join(HALF), HALF),
    ],
)
def test_dialogues_are_parted(content: str, dialogues: list[str], tmp_path: Path):
    assert dialogues_in(file_of(tmp_path, content)) == dialogues


def test_rules_and_notes_alone_are_no_dialogue(tmp_path: Path):
    with pytest.raises(InputError, match=r"talks\.txt: the file is empty"):
        dialogues_in(file_of(tmp_path, "---\n\n(끝)\n"))
