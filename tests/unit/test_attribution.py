"""reward/attribution.py: evidence worked by hand, its symmetry, and what is learnt from the embedded dialogues."""

import json
from dataclasses import replace

import pytest

from alignment.data import EMBEDDED, load_records
from alignment.errors import InputError
from alignment.records import Record
from alignment.speakers import mirror_image, swap_speakers, two_speakers
from reward.attribution import FILE, Attribution, evidence

TALK = "#Person1#: 표는 얼마예요?\n#Person2#: 만 원이에요. 2장 드릴까요?\n#Person1#: 네, 표 주세요."
SUMMARY = "#Person1#은 표를 산다."


def paired(name: str, split: str = "train") -> list[tuple[Record, str]]:
    """Records of two speakers, with the speaker swap of their first reference where it says something else."""
    records = [record for record in load_records(name, split=split)[0] if len(two_speakers(record)) == 2]
    swaps = [swap_speakers(record.references[0], *two_speakers(record)) for record in records]
    return [(record, swap) for record, swap in zip(records, swaps, strict=True) if swap != record.references[0]]


def test_evidence_by_hand():
    found = evidence(TALK, SUMMARY)
    # Person 1 said `표` twice, and did not say `사`; it asks 1 of 2 questions, opens, and names no number.
    assert found["표 said"] == 1
    assert found["사 said"] == 0
    assert found[" said"] == 1
    assert found[" often"] == pytest.approx(1.0986, abs=1e-4)  # log 3
    assert found["사 asks"] == 0
    assert found["사 first"] == found["표 first"] == 1
    assert found["사 numbers"] == -1
    assert found[" mention first"] == found[" named first"] == 1


def test_a_word_that_is_repeated_counts_once():
    once, twice = evidence(TALK, SUMMARY), evidence(TALK, f"{SUMMARY} {SUMMARY}")
    words = [name for name in once if not name.startswith(" ")]
    assert {name.split()[0] for name in words} == {"표", "사"}
    assert all(once[name] == twice[name] for name in words)


@pytest.mark.parametrize("name", EMBEDDED)
def test_of_two_speakers_exchanged_the_evidence_has_the_opposite_sign(name):
    records = [(record, swap) for record, swap in paired(name) if record.dialogue.count("#Person3#:") == 0]
    assert len(records) > 15
    opposite = 0
    for record, swap in records:
        as_is, exchanged = evidence(record.dialogue, record.references[0]), evidence(record.dialogue, swap)
        opposite += all(exchanged[one] == pytest.approx(-as_is[one], abs=1e-9) for one in [*as_is, *exchanged])
    assert opposite / len(records) > 0.95  # a particle may be read otherwise after the other tag


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_mirror_image_has_the_same_evidence(name):
    for record, _ in paired(name)[:20]:
        image = mirror_image(record)
        assert evidence(image.dialogue, image.references[0]) == pytest.approx(
            evidence(record.dialogue, record.references[0])
        )


@pytest.mark.parametrize(("name", "least"), [("embedded-ko", 0.85), ("embedded-en", 0.6)])
def test_references_are_told_from_their_swaps(name, least):
    attribution = Attribution.fit(load_records(name, split="train")[0])
    held_out = paired(name, "eval") if name == "embedded-ko" else paired(name)
    scores = [
        [attribution.score(record.dialogue, text) for text in (record.references[0], swap)] for record, swap in held_out
    ]
    assert sum(right > wrong for right, wrong in scores) / len(scores) >= least
    assert all(-1 <= score <= 1 for both in scores for score in both)


def test_names_are_learnt_and_told_as_tags_are():
    def named(text: str) -> str:
        return text.replace("#Person1#", "선생님").replace("#Person2#", "학생2").replace("#Person3#", "민준")

    tagged = load_records("embedded-ko", split="train")[0]
    records = [
        replace(one, dialogue=named(one.dialogue), references=tuple(map(named, one.references))) for one in tagged
    ]
    by_tag, by_name = Attribution.fit(tagged), Attribution.fit(records)
    assert evidence(named(TALK), named(SUMMARY)) == evidence(TALK, SUMMARY)
    scores = [
        [one.score(record.dialogue, record.references[0]) for one, record in zip((by_tag, by_name), both, strict=True)]
        for both in zip(tagged, records, strict=True)
    ]
    alike = sum(name == pytest.approx(tag, abs=0.1) for tag, name in scores)
    assert alike / len(scores) > 0.9, alike / len(scores)
    assert any(abs(tag) > 0.5 for tag, _ in scores)


@pytest.mark.parametrize("dialogue", ["갈게.\n그래.", "#Person1#: 혼잣말이야."])
def test_without_two_speakers_nothing_is_learnt_or_told(dialogue):
    record = Record("a", dialogue, ("#Person1#은 간다.",))
    assert Attribution.fit([record] * 5).weights == {}
    learnt = Attribution.fit(load_records("embedded-ko")[0])
    assert learnt.score(dialogue, "#Person1#은 간다.") == 0
    assert learnt.score(TALK, "둘은 표를 산다.") == 0


def test_it_is_read_back_as_it_was(tmp_path):
    attribution = Attribution.fit(load_records("embedded-ko")[0])
    attribution.save(tmp_path)
    assert Attribution.load(tmp_path) == attribution
    assert json.loads((tmp_path / FILE).read_text("utf-8"))[" named first"] > 0


@pytest.mark.parametrize("content", [None, "{", b"\xff"])
def test_a_file_that_is_missing_or_broken_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"no attribution\.json that can be read"):
        Attribution.load(tmp_path)


@pytest.mark.parametrize("summary", ["", ".", "#Person1#은", "#Person1#은 #Person2#에게", "둘은 표를 산다."])
def test_where_nothing_is_said_of_a_speaker_there_is_no_evidence(summary):
    assert evidence(TALK, summary) == {}
