"""Speakers by tag and name: particles that fit, and mirror images that say the same of the other speaker."""

import pytest

from alignment.data import EMBEDDED, load_records
from alignment.records import Record
from alignment.speakers import Naming, mirror_image, names_in, swap_speakers, turns_of, two_speakers


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


@pytest.mark.parametrize(
    ("names", "reference", "swapped"),
    [
        (
            ("고객", "상담원"),
            "고객이 상담원에게 묻고, 고객님은 기다린다.",
            "상담원이 고객에게 묻고, 상담원님은 기다린다.",
        ),
        (("민수", "지영"), "민수는 지영과 민수네로 간다.", "지영은 민수와 민수네로 간다."),
        (("김 대리", "대리"), "김 대리는 대리가 한 일을 안다.", "대리는 김 대리가 한 일을 안다."),
        (("이슬", "강산"), "이슬로 시작해 강산으로 끝난다.", "강산으로 시작해 이슬로 끝난다."),
        (("A", "B"), "A는 A/S를 받고 B는 A형이다.", "B는 A/S를 받고 A는 A형이다."),
        (("Jack", "Kate"), "Jack이 Kate와 Kim을 본다.", "Kate가 Jack와 Kim을 본다."),
        (("A", "B"), "A는 B가 AI를 안다고 한다.", "B는 A가 AI를 안다고 한다."),
        (("Tom", "Amanda"), "Tom은 Amanda를 만난다.", "Amanda는 Tom을 만난다."),
        (("SD2000001", "SD2000003"), "SD2000001은 SD2000003을 본다.", "SD2000003은 SD2000001을 본다."),
        (("#고객#", "#상담원#"), "#고객#이 묻는다.", "#상담원#이 묻는다."),
        (("#고객#", "#상담사#"), "#고객#이 묻는다.", "#상담사#가 묻는다."),
        (("Ann", "Bob"), "Ann's friend Bob knows Annie.", "Bob's friend Ann knows Annie."),
    ],
)
def test_names_change_places_as_tags_do_and_words_that_hold_them_stay(names, reference, swapped):
    of_names = record(f"{names[0]}: 여기 봐.\n{names[1]}: 응, {names[0]}.", reference)
    image = mirror_image(of_names)
    assert image.dialogue == f"{names[1]}: 여기 봐.\n{names[0]}: 응, {names[1]}."
    assert image.references == (swapped,)
    assert mirror_image(image).dialogue == of_names.dialogue
    assert names == ("Jack", "Kate") or mirror_image(image) == of_names  # what Jack ends in is not known


def test_names_become_tags_in_the_order_of_their_turns_and_are_told_from_other_words():
    naming = Naming.of("의사: 어디가 아파요?\n환자: 허리요.\n의사: 앉으세요.")
    assert naming.names == ("의사", "환자")
    tagged = naming.tag("환자가 의사에게 말한다. 환자들과 수의사는 없다.")
    assert tagged == "#Speaker2#가 #Speaker1#에게 말한다. 환자들과 수의사는 없다."


@pytest.mark.parametrize(
    "dialogue",
    [
        "#Person1#: 톰: 이라고 써.\n제인: 그래.",
        "톰: 혼잣말이야.",
        "[00:01] 네\n[00:02] 아니요",
        "A: Take a seat.\nB: Thanks.",
        "Will: Can you come in May?\nMay: I will.",
        "나: 할 수 있어?\n수: 나는 아직.",
    ],
)
def test_there_are_no_names_beside_tags_nor_of_one_speaker_nor_without_letters_nor_words(dialogue):
    assert Naming.of(dialogue).names == ()
    assert Naming.of(dialogue).tag(dialogue) == dialogue


def test_names_within_names_and_before_other_endings():
    naming = Naming.of("민수: 안녕\n민수 엄마: 응\nTom: 네")
    tagged = naming.tag("민수 엄마가 민수를 Tom네 집에서 본다.")
    assert tagged == "#Speaker2#가 #Speaker1#를 #Speaker3#네 집에서 본다."


def test_words_letters_and_numbers_of_english_are_no_names():
    assert Naming.of("May: I may come.\nWill: I will.\nAnn: Good.\nJo: Yes.\nQ: Yes.\n3: c").names == ("Ann", "Jo")
    assert Naming.of("May: Come in.\nWill: Good.").names == ("May", "Will")


def test_times_in_front_of_turns_are_passed_over():
    dialogue = "[00:10] 고객: 표 있어요?\n[00:12] 상담원: 네."
    assert Naming.of(dialogue).names == ("고객", "상담원")
    assert turns_of(Naming.of(dialogue).tag(dialogue)) == {"#Speaker1#": ["표 있어요?"], "#Speaker2#": ["네."]}
    image = mirror_image(record(dialogue, "고객은 표를 묻는다."))
    assert image.dialogue == "[00:10] 상담원: 표 있어요?\n[00:12] 고객: 네."


def test_turns_go_with_the_tag_before_them_however_it_is_set():
    dialogue = "머리말\n#Person1#: 하나\n이어서\n  #Person2# : 둘\n#Person1#： 셋\n#Person2# 없이 말한다: 넷"
    assert turns_of(dialogue) == {"#Person1#": ["하나\n이어서", "셋\n#Person2# 없이 말한다: 넷"], "#Person2#": ["둘"]}
    assert turns_of("톰: 갈게.") == {}


def test_of_three_speakers_those_that_the_reference_names_change_places():
    three = record("#Person1#: 어?\n#Person2#: 응.\n#Person3#: 왜?", "#Person3#는 #Person2#에게 묻는다.")
    assert list(turns_of(three.dialogue)) == ["#Person1#", "#Person2#", "#Person3#"]
    assert two_speakers(three) == ["#Person3#", "#Person2#"]
    assert mirror_image(three).dialogue == "#Person1#: 어?\n#Person3#: 응.\n#Person2#: 왜?"
    named = record("철수: 어?\n영미: 응.\n민지: 왜?", "민지는 영미에게 묻는다.")
    assert mirror_image(named).dialogue == "철수: 어?\n민지: 응.\n영미: 왜?"


def test_what_is_named_is_a_speaker_only_where_it_speaks():
    masked = "#Person1#: 번호가 뭐야?\n#Person2#: #PhoneNumber#야."
    assert two_speakers(record(masked, "#PhoneNumber#가 #Person2#의 번호다.")) == ["#Person2#", "#Person1#"]
    assert two_speakers(record(masked)) == ["#Person1#", "#Person2#"]


ALONE = ["톰: 갈게.", "갈게.\n그래.", "#Person1#: 혼잣말이야.", "#Person1#: #Person2#가 왔어."]


@pytest.mark.parametrize("dialogue", ALONE)
def test_without_two_speakers_there_is_no_mirror_image(dialogue):
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
        ("[00:10] 고객: 네\n(0:12) 상담원: 3:30에요\n01:02:03 고객: 네", {"고객", "상담원"}),
    ],
)
def test_names_stand_before_a_colon(dialogue, names):
    assert names_in(dialogue) == names
