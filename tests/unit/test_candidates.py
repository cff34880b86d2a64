"""reward/candidates.py: corruptions by hand, what applies where, and files of candidates."""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from alignment.arguments import PromptArguments
from alignment.data import load_records
from alignment.errors import InputError
from alignment.formats import write_rows
from alignment.generation import Decoding
from alignment.records import Record
from alignment.speakers import MASK
from alignment.summarizer import Summarizer
from reward.candidates import (
    Candidate,
    changed_number,
    corruptions,
    cut_short,
    read_candidates,
    references,
    repeated_sentence,
    samples,
    swapped_speakers,
    turns_in_a_row,
    without_model,
)
from reward.numerals import numbers
from reward.quality import GATES, copy_rate, role_agreement

TALK = "#Person1#: 3시에 만나서 25,000원짜리 표 4장을 사자.\n#Person2#: 좋아, 역에서 봐."


def record(reference: str, dialogue: str = TALK, name: str = "a") -> Record:
    return Record(name, dialogue, (reference,))


def corrupt(function, reference: str, seed: int = 0) -> str | None:
    return function(record(reference), reference, random.Random(seed))


def test_speakers_change_places():
    text = corrupt(swapped_speakers, "#Person1#은 #Person2#에게 표를 사자고 한다.")
    assert text == "#Person2#는 #Person1#에게 표를 사자고 한다."


def test_a_single_speaker_gives_way_to_the_other_of_the_dialogue():
    assert corrupt(swapped_speakers, "#Person1#은 표를 산다.") == "#Person2#는 표를 산다."


@pytest.mark.parametrize("reference", ["#Person1#과 #Person2#는 만나기로 한다.", "#Person1# and #Person2# will meet."])
def test_an_exchange_that_says_the_same_is_no_corruption(reference):
    assert corrupt(swapped_speakers, reference) is None


def test_without_speakers_nothing_is_swapped():
    assert corrupt(swapped_speakers, "둘은 표를 산다.") is None
    assert swapped_speakers(record("톰은 간다.", "갈게.\n그래."), "톰은 간다.", random.Random(0)) is None


def test_speakers_that_have_names_change_places_too():
    of_names = record("존슨은 간다.", "존슨: 갈게.\n메리: 그래.")
    assert swapped_speakers(of_names, "존슨은 간다.", random.Random(0)) == "메리는 간다."


@pytest.mark.parametrize("seed", range(8))
def test_one_number_becomes_another_of_its_looks_that_the_dialogue_lacks(seed):
    reference = "#Person1#과 #Person2#는 3시에 만나 25,000원짜리 표를 산다."
    text = corrupt(changed_number, reference, seed)
    assert len(text) == len(reference)
    assert text.startswith("#Person1#과 #Person2#는 ")
    (changed,) = numbers(text) - numbers(reference)
    assert changed not in numbers(TALK)
    assert len(numbers(text) & numbers(reference)) == 1
    assert changed < 10 or changed % 1000 == 0


@pytest.mark.parametrize("reference", ["#Person1#은 표를 산다.", "둘은 3:00에 3.5킬로를 05번에서 산다."])
def test_tags_times_and_fractions_are_left_alone(reference):
    assert corrupt(changed_number, reference) is None


@pytest.mark.parametrize("seed", range(8))
def test_a_changed_number_is_new_in_its_place(seed):
    reference = "둘은 20만 원을 낸다."
    dialogue = "#Person1#: 20만 원이야, 30만 원이야?\n#Person2#: 10만 원 싸게 20만 원."
    text = changed_number(record(reference, dialogue), reference, random.Random(seed))
    assert numbers(text) & numbers(dialogue) == set()


def test_a_speaker_who_is_a_digit_takes_none_from_numbers():
    reference = "1은 2에게 12시에 보자고 한다."
    talk = record(reference, "1: 12시에 볼까?\n2: 그래.")
    texts = {changed_number(talk, reference, random.Random(seed)) for seed in range(8)}
    assert None not in texts
    assert all(text.startswith("1은 2에게 ") and text.endswith("시에 보자고 한다.") for text in texts)


def test_half_of_the_words_are_cut():
    assert corrupt(cut_short, "하나 둘 셋 넷 다섯.") == "하나 둘"
    assert corrupt(cut_short, "하나 둘 셋.") is None


def test_a_sentence_comes_twice():
    texts = {corrupt(repeated_sentence, "둘은 만난다. 표를 산다.", seed) for seed in range(20)}
    assert texts == {"둘은 만난다. 둘은 만난다. 표를 산다.", "둘은 만난다. 표를 산다. 표를 산다."}


@pytest.fixture(scope="module")
def embedded() -> list[Record]:
    return load_records("embedded-ko")[0]


def test_every_corruption_of_the_shipped_references_is_seen_by_the_signal_that_it_is_for(embedded):
    records = {record.id: record for record in embedded}
    by_kind: dict[str, list[Candidate]] = {}
    for candidate in corruptions(embedded):
        by_kind.setdefault(candidate.kind, []).append(candidate)
    assert set(by_kind) == {"speaker_swap", "number_change", "cut", "repetition", "copy", "other_dialogue"}

    def caught(kind: str, gate: str) -> float:
        return sum(not GATES[gate](records[c.id].dialogue, c.text) for c in by_kind[kind]) / len(by_kind[kind])

    assert caught("number_change", "unseen_numbers") > 0.95
    assert caught("cut", "is_cut") > 0.8
    assert caught("repetition", "repeated_trigrams") > 0.95
    assert {copy_rate(records[c.id].dialogue, c.text) for c in by_kind["copy"]} == {1.0}
    pair = ["#Person1#", "#Person2#"]
    of_two = [c for c in by_kind["speaker_swap"] if set(MASK.findall(records[c.id].dialogue)) == set(pair)]
    swaps = [role_agreement(c.text, records[c.id].references[0], pair) for c in of_two]
    assert all(agreement < 0.5 for agreement in swaps)
    assert len(swaps) > len(embedded) / 2


@pytest.mark.parametrize(
    ("length", "copied"),
    [(1, "A: 네."), (7, "B: 몇 시?"), (15, "A: 네. B: 어디서요?"), (99, "B: 몇 시? A: 네. B: 어디서요?")],
)
def test_turns_in_a_row_are_taken_up_to_the_references_length(length, copied):
    talk = Record("1", "B: 몇 시?\nA: 네.\nB: 어디서요?", ("가" * length,))
    assert turns_in_a_row(talk, talk.references[0], random.Random(0)) == copied


def test_a_title_is_no_sentence_to_repeat():
    reference = "Mr. Smith meets Dr. Lee at 3 p.m. today."
    assert repeated_sentence(Record("1", "", (reference,)), reference, random.Random(0)) == f"{reference} {reference}"


def test_no_corruption_leaves_the_reference_as_it_is(embedded):
    by_id = {record.id: record.references[0] for record in embedded}
    assert all(candidate.text != by_id[candidate.id] for candidate in corruptions(embedded))


def test_corruptions_are_the_same_every_time_whatever_else_is_corrupted(embedded):
    alone = [c for c in corruptions(embedded) if c.kind != "other_dialogue"]
    half = [c for c in corruptions(embedded[:50]) if c.kind != "other_dialogue"]
    assert alone[: len(half)] == half
    assert corruptions(embedded) == corruptions(embedded)


@pytest.mark.parametrize("kind", ["other_dialogue", "copy"])
def test_what_is_taken_from_elsewhere_has_about_the_length(kind, embedded):
    by_id = {record.id: len(record.references[0]) for record in embedded}
    pairs = [(by_id[c.id], len(c.text)) for c in corruptions(embedded) if c.kind == kind]
    assert len(pairs) == len(embedded)
    assert sum(abs(one - other) / one for one, other in pairs) / len(pairs) < 0.15


def test_a_second_reference_of_the_same_dialogue_is_none_of_another():
    twice = [
        record("둘은 만난다.", name="a"),
        record("둘은 본다.", name="b"),
        record("표가 없다.", "#Person1#: 응.", "c"),
    ]
    others = {c.id: c.text for c in corruptions(twice) if c.kind == "other_dialogue"}
    assert others["a"] == others["b"] == "표가 없다."


def test_one_record_has_no_other_dialogue():
    kinds = {candidate.kind for candidate in corruptions([record("#Person1#은 오늘 3시에 표를 산다.")])}
    assert kinds == {"speaker_swap", "number_change", "cut", "repetition", "copy"}


def test_candidates_are_read_back_as_written(tmp_path):
    candidates = [*references([record('그는 "네"라고 한다.')]), Candidate("a", "sample", "표를 산다.")]
    write_rows(map(asdict, candidates), tmp_path / "candidates.jsonl")
    assert read_candidates(tmp_path / "candidates.jsonl", [record("x")]) == candidates


def test_candidates_are_cleaned_as_dialogues_are(tmp_path):
    (tmp_path / "mine.csv").write_text(f"id,text\n a ,{unicodedata.normalize('NFD', '둘은 만난다.')} \u200b\n", "utf-8")
    assert read_candidates(tmp_path / "mine.csv", [record("x")]) == [Candidate("a", "given", "둘은 만난다.")]


def test_the_digits_of_a_name_are_no_number_to_change():
    own = Record("n", "SD2000001: 3번 갔어.\nSD2000002: 나도 갈래.", ("SD2000001은 3번 갔고 SD2000002는 아닙니다.",))
    changed = [changed_number(own, own.references[0], random.Random(seed)) for seed in range(20)]
    assert all(re.fullmatch(r"SD2000001은 [1-9]번 갔고 SD2000002는 아닙니다\.", text) for text in changed)
    assert own.references[0] not in changed


def test_candidates_from_elsewhere_need_no_kind(tmp_path):
    (tmp_path / "mine.csv").write_text('id,text\na,"첫 줄\n둘째 줄"\n', "utf-8")
    assert read_candidates(tmp_path / "mine.csv", [record("x")]) == [Candidate("a", "given", "첫 줄 둘째 줄")]


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        ("id,text\nb,요약\n", "row 1: id 'b' is none of the 1 dialogues"),
        ("id,summary\na,요약\n", "row 1: expected id and text"),
        ('{"id": "a", "text": 5}\n', "row 1: text is 5, not a string"),
        ('{"id": "a", "text": "\\ud800"}\n', "row 1: text is not valid Unicode"),
        ("", "the file is empty"),
    ],
)
def test_a_faulty_file_of_candidates_is_told_by_its_row(content, telling, tmp_path):
    (tmp_path / "bad").write_text(content, "utf-8")
    with pytest.raises(InputError, match=telling):
        read_candidates(tmp_path / "bad", [record("x")])


def test_all_that_needs_no_model_is_references_corruptions_and_what_is_given_for_these_dialogues():
    own = [record("#Person1#은 3시에 표를 산다.", name="a"), record("표가 없다.", "#Person1#: 응.", "b")]
    given = [Candidate(name, "given", "둘은 표를 산다.") for name in ("a", "other")]
    made = without_model(own, given, seed=1)
    assert made == [*references(own), *corruptions(own, seed=1), given[0]]


# --- samples

RECORDS = [record("둘은 만난다.", name="a"), record("표가 없다.", "#Person1#: 표 있어?\n#Person2#: 없어.", "b")]
DECODING = Decoding(batch_size=4, seed=1)
FACTS = {"sft_model": "weights"}


def no_model() -> Summarizer:
    raise AssertionError("a model was to be loaded")


@pytest.fixture(scope="module")
def load(tiny_model: Path) -> Callable[[], Summarizer]:
    return partial(Summarizer.load, str(tiny_model), None, PromptArguments(max_new_tokens=6))


@pytest.fixture
def sampled(load, tmp_path) -> tuple[Path, list[Candidate]]:
    """A file of three samples for each record, and what was returned for it."""
    path = tmp_path / "train.samples.jsonl"
    return path, samples(load, RECORDS, 3, [0.7, 1.0], DECODING, path, FACTS)


def test_each_dialogue_gets_as_many_samples_as_asked_for(sampled):
    _, candidates = sampled
    assert Counter((one.id, one.kind) for one in candidates) == {("a", "sample"): 3, ("b", "sample"): 3}
    assert len({one.text for one in candidates}) > 2


def test_samples_are_read_back_without_a_model(sampled):
    path, candidates = sampled
    assert samples(no_model, RECORDS, 3, [0.7, 1.0], replace(DECODING, batch_size=1), path, FACTS) == candidates


def test_nothing_but_samples_and_their_facts_is_left(sampled):
    path, _ = sampled
    assert {file.name for file in path.parent.iterdir()} == {"train.samples.jsonl", "train.samples.facts.json"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"facts": {"sft_model": "other"}}, "sft_model"),
        ({"count": 2}, "count"),
        ({"temperatures": [0.7]}, "temperatures"),
        ({"decoding": Decoding(seed=2)}, "seed"),
        ({"records": RECORDS[:1]}, "dialogues"),
    ],
)
def test_samples_made_otherwise_are_refused_with_what_differs(change, named, sampled):
    path, _ = sampled
    asked = {"records": RECORDS, "count": 3, "temperatures": [0.7, 1.0], "decoding": DECODING, "facts": FACTS} | change
    with pytest.raises(InputError, match=rf"holds samples made otherwise \({named}\)"):
        samples(no_model, path=path, **asked)


def test_once_the_file_is_deleted_samples_are_made_anew(sampled, load):
    path, _ = sampled
    path.unlink()
    assert len(samples(load, RECORDS, 1, [1.0], DECODING, path, FACTS)) == len(RECORDS)


def test_samples_are_the_same_for_the_same_seed_only(sampled, load, tmp_path):
    _, candidates = sampled
    again, other = (
        samples(load, RECORDS, 3, [0.7, 1.0], replace(DECODING, seed=seed), tmp_path / f"{seed}.jsonl", FACTS)
        for seed in (1, 2)
    )
    assert again == candidates
    assert other != candidates
