"""alignment/journal.py: what a killed run leaves, and what the next one takes from it."""

import contextlib
import re
from pathlib import Path

import pytest

from alignment.journal import Journal, left_behind

FACTS = {"model": "모델", "data": {"rows": 3}, "decoding": {"num_beams": 1}}


class Killed(Exception):
    """Stands for whatever ends a run early."""


def leave_behind(path: Path, texts: dict[int, str], facts: dict | None = None) -> Path:
    """Runs a journal that is killed after these texts; its file."""
    with contextlib.suppress(Killed), Journal(path, facts or FACTS) as journal:
        for index, text in texts.items():
            journal.add(index, text)
        raise Killed
    return max(path.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)


def done(path: Path, facts: dict | None = None) -> dict[int, str]:
    with Journal(path, facts or FACTS) as journal:
        return journal.done


def test_texts_of_a_killed_run_are_found_again_as_they_were(tmp_path):
    texts = {2: "둘은 내일\n만난다.", 0: '"네"라고 했다. \\n', 1: ""}
    leave_behind(tmp_path / "model", texts)
    assert done(tmp_path / "model") == texts


def test_a_text_is_in_the_file_as_soon_as_it_is_added(tmp_path):
    with Journal(tmp_path / "model", FACTS) as journal:
        journal.add(0, "요약")
        (file,) = tmp_path.iterdir()
        assert "요약" in file.read_text("utf-8")


def test_a_second_kill_loses_nothing_of_the_first(tmp_path):
    leave_behind(tmp_path / "model", {0: "하나"})
    leave_behind(tmp_path / "model", {1: "둘"})
    assert done(tmp_path / "model") == {0: "하나", 1: "둘"}


def test_a_kill_while_the_texts_are_taken_over_loses_none(tmp_path):
    class KilledAtTheSecond(Journal):
        def add(self, index: int, text: str) -> None:
            if index == 1:
                raise Killed
            super().add(index, text)

    leave_behind(tmp_path / "model", {0: "하나", 1: "둘"})
    with contextlib.suppress(Killed), KilledAtTheSecond(tmp_path / "model", FACTS):
        raise AssertionError("it was not killed")
    assert done(tmp_path / "model") == {0: "하나", 1: "둘"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_line_cut_anywhere_even_within_a_letter_is_dropped(cut, tmp_path):
    file = leave_behind(tmp_path / "model", {0: "하나", 1: "둘"})
    file.write_bytes(file.read_bytes()[:-cut])
    assert done(tmp_path / "model") == {0: "하나"}


@pytest.mark.parametrize("content", [b"", b'{"model": "'])
def test_a_file_cut_in_its_first_line_is_no_journal(content, tmp_path):
    leave_behind(tmp_path / "model", {0: "하나"}).write_bytes(content)
    assert done(tmp_path / "model") == {}


@pytest.mark.parametrize("change", [{"model": "other"}, {"data": {"rows": 4}}, {"decoding": {"num_beams": 2}}])
def test_texts_made_with_other_facts_are_not_taken(change, tmp_path):
    leave_behind(tmp_path / "model", {0: "하나"})
    assert done(tmp_path / "model", FACTS | change) == {}


def test_who_goes_back_to_the_killed_run_after_another_was_killed_too_finds_its_texts(tmp_path):
    leave_behind(tmp_path / "model", {0: "하나"})
    leave_behind(tmp_path / "model", {1: "둘"}, FACTS | {"model": "mistyped"})
    assert done(tmp_path / "model") == {0: "하나"}
    assert not list(tmp_path.iterdir())


def test_what_is_left_behind_is_that_of_this_name_and_of_its_parts(tmp_path):
    leave_behind(tmp_path / "length_penalty=1.4", {0: "하나"})
    leave_behind(tmp_path / "run[1].part0", {0: "하나"})
    names = ("length_penalty=1", "length_penalty=1.4", "run[1]", "run1", "run")
    assert [name for name in names if left_behind(tmp_path / name)] == ["length_penalty=1.4", "run[1]"]


def test_what_a_killed_take_over_left_goes_with_the_rest(tmp_path):
    file = leave_behind(tmp_path / "model", {0: "하나"})
    file.with_name(file.name.replace(".0.journal", ".1.journal.new")).write_text("half", "utf-8")
    assert done(tmp_path / "model") == {0: "하나"}
    assert not list(tmp_path.iterdir())


def test_texts_of_another_journal_in_the_folder_are_not_taken(tmp_path):
    leave_behind(tmp_path / "model", {0: "하나"})
    assert done(tmp_path / "model.2") == {}
    assert done(tmp_path / "mode[l]") == {}
    assert done(tmp_path / "model") == {0: "하나"}


def test_texts_of_every_process_are_taken_and_their_files_deleted(tmp_path):
    file = leave_behind(tmp_path / "model", {0: "하나"})
    of_another = file.with_name(file.name.replace(".0.journal", ".1.journal"))
    of_another.write_text(file.read_text("utf-8").replace('[0, "하나",', '[1, "둘",'), "utf-8")
    assert done(tmp_path / "model") == {0: "하나", 1: "둘"}
    assert list(tmp_path.iterdir()) == []


def test_the_seconds_of_all_runs_that_were_killed_are_known(tmp_path):
    file = leave_behind(tmp_path / "model", {0: "하나", 1: "둘"})
    lines = re.sub(r", [\d.]+\]\n", ", 100.0]\n", file.read_text("utf-8"), count=1)  # as if the first had taken so long
    file.write_text(lines, "utf-8")
    leave_behind(tmp_path / "model", {2: "셋"})
    with Journal(tmp_path / "model", FACTS) as journal:
        assert 100 <= journal.seconds_before < 110
    with Journal(tmp_path / "model", FACTS) as journal:
        assert journal.seconds_before == 0
