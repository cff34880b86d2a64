"""Speaker tags: particles that fit, and mirror images that say the same of the other speaker."""

import pytest

from alignment.data import EMBEDDED, Record, load_records
from alignment.speakers import mirror_image, names_in, swap_speakers, turns_of, two_speakers


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("#Person1#은 #Person2#에게 간다.", "#Person2#는 #Person1#에게 간다."),
        ("#Person2#가 #Person1#과 왔다.", "#Person1#이 #Person2#와 왔다."),
        ("#Person1#이 #Person2#를 돕는다.", "#Person2#가 #Person1#을 돕는다."),
        ("#Person1#으로 #Person3#은", "#Person2#로 #Person3#은"),
        ("#Person1# helps #Person2#.", "#Person2# helps #Person1#."),
        ("#Person1#이라고", "#Person2#라고"),
        ("#Person1#이다, #Person2#가", "#Person2#이다, #Person1#이"),
        ("#Person1#과의 약속", "#Person2#와의 약속"),
        ("#Person2#의 집", "#Person1#의 집"),
    ],
)
def test_swapped_speakers_carry_particles_that_fit(text, swapped):
    assert swap_speakers(text, "#Person1#", "#Person2#") == swapped


def record(dialogue: str, *references: str) -> Record:
    return Record("a", dialogue, references, "표")


def test_a_mirror_image_exchanges_speakers_in_dialogue_and_every_reference():
    image = mirror_image(
        record(
            "#Person1#: 표 샀어?\n#Person2#: 아니.", "#Person1#은 #Person2#에게 표를 묻는다.", "둘은 표 얘기를 한다."
        )
    )
    assert image == Record(
        "a",
        "#Person2#: 표 샀어?\n#Person1#: 아니.",
        ("#Person2#는 #Person1#에게 표를 묻는다.", "둘은 표 얘기를 한다."),
        "표",
    )


def test_turns_go_with_the_tag_before_them_however_it_is_set():
    dialogue = "머리말\n#Person1#: 하나\n이어서\n  #Person2# : 둘\n#Person1#： 셋\n#Person2# 없이 말한다: 넷"
    assert turns_of(dialogue) == {"#Person1#": ["하나\n이어서", "셋\n#Person2# 없이 말한다: 넷"], "#Person2#": ["둘"]}
    assert turns_of("톰: 갈게.") == {}


def test_of_three_speakers_those_that_the_reference_names_change_places():
    three = record("#Person1#: 어?\n#Person2#: 응.\n#Person3#: 왜?", "#Person3#는 #Person2#에게 묻는다.")
    assert list(turns_of(three.dialogue)) == ["#Person1#", "#Person2#", "#Person3#"]
    assert two_speakers(three) == ["#Person3#", "#Person2#"]
    assert mirror_image(three).dialogue == "#Person1#: 어?\n#Person3#: 응.\n#Person2#: 왜?"


ALONE = ["톰: 갈게.\n제인: 그래.", "#Person1#: 혼잣말이야.", "#Person1#: #Person2#가 왔어."]


@pytest.mark.parametrize("dialogue", ALONE)
def test_without_two_tagged_speakers_there_is_no_mirror_image(dialogue):
    alone = record(dialogue, "#Person1#은 말한다.")
    assert mirror_image(alone) is None


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_mirror_image_of_a_mirror_image_is_the_dialogue(name):
    records, _ = load_records(name)
    assert all(mirror_image(mirror_image(one)) == one for one in records if mirror_image(one))
    assert sum(mirror_image(one) is not None for one in records) > 0.9 * len(records)


@pytest.mark.parametrize(
    ("dialogue", "names"),
    [
        ("Ann: a\nBob: b\nAnn: c", {"Ann", "Bob"}),
        ("Ann: it is 5:30\nat Ann: no", {"Ann", "at Ann"}),
        ("no one speaks", set()),
        ("#Person1#: 네\n\n#Person2# : 응\n#Person1#： 그래\n그리고", {"#Person1#", "#Person2#"}),
        ("톰: 여기야\nhttps://example.org/a", {"톰"}),
    ],
)
def test_names_stand_before_a_colon(dialogue, names):
    assert names_in(dialogue) == names
