"""reward/quality.py: each signal on texts worked by hand, and on the shipped references."""

import pytest

from alignment.data import load_records
from alignment.speakers import swap_speakers
from reward.quality import (
    GATES,
    copy_rate,
    formal_share,
    hangul_share,
    is_cut,
    length_ratio,
    repeated_trigrams,
    role_agreement,
    roles_in,
    unseen_numbers,
    unseen_tags,
)

TALK = (
    "#Person1#: 내일 세 시에 올래? 표는 이만 오천 원이야.\n#Person2#: 응, 친구 네 명이랑 갈게. #PhoneNumber#로 전화해."
)


def test_tags_and_masks_that_the_dialogue_lacks_are_counted_once_each():
    assert unseen_tags(TALK, "#Person1#은 #Person2#를 #PhoneNumber#로 부른다.") == 0
    assert unseen_tags(TALK, "#Person3#은 #Person2#와 #Address#에서 #Person3#을 본다.") == 2


def test_an_amount_a_thousand_times_too_small_is_unseen():
    dialogue = "#Person1#: 보증금은 500만 원이고 월세는 40만 원이야."
    assert unseen_numbers(dialogue, "#Person1#은 보증금이 500원, 월세가 40원이라고 말합니다.") == 2


def test_a_number_is_unseen_by_value_not_by_spelling():
    assert unseen_numbers(TALK, "3시에 25,000원짜리 표로 4명이 온다.") == 0
    assert unseen_numbers(TALK, "5시에 25,000원짜리 표로 6명이 온다.") == 2
    assert unseen_numbers(TALK, "두 사람은 한 번 만난다.") == 0
    assert unseen_numbers("#Person1#: 응.\n#Person2#: 응.\n#Person3#: 응.", "세 사람은 만난다.") == 0


@pytest.mark.parametrize(
    ("summary", "share"),
    [("가 나 다 라 마", 0), ("가 나 다 가 나 다", 1 / 4), ("가 나 다. 가 나 다.", 1 / 4), ("가 나", 0), ("", 0)],
)
def test_repeated_trigrams(summary, share):
    assert repeated_trigrams(summary) == pytest.approx(share)


@pytest.mark.parametrize(
    "summary", ["둘은 만난다.", "둘은 만난다", "내일 만남", '그는 "가자."라고 했다.', "They meet.", "왜?”"]
)
def test_a_whole_summary(summary):
    assert not is_cut(summary)


@pytest.mark.parametrize(
    "summary", ["", "  ", ".", "“…”", "둘은 내일 만나서", "#Person1#은 #Person2#에게", "They meet at the", "둘은,"]
)
def test_a_cut_summary(summary):
    assert is_cut(summary)


@pytest.mark.parametrize(
    ("summary", "share"),
    [("갑니다. 옵니다.", 1), ("간다. 옵니다!", 0.5), ("간다", 0), ("They go to No. 5. They go.", 1), ("갑니다", 1)],
)
def test_formal_share(summary, share):
    assert formal_share(summary) == share


def test_hangul_share_passes_over_tags_and_words_of_the_dialogue():
    talk = "#Person1#: Tom이 파리에 갔어."
    assert hangul_share(talk, "#Person1#은 Tom이 갔다고 한다.") == 1
    assert hangul_share(talk, "가나 went") == 2 / 6
    assert hangul_share("#Person1#: He went.", "He went home.") == 1


@pytest.mark.parametrize("summary", ["", "#Person1#", "3.5", "Tom"])
def test_a_summary_without_words_of_its_own_is_not_foreign(summary):
    assert hangul_share("#Person1#: Tom이 파리에 갔어.", summary) == 1


def test_length_ratio_and_copy_rate():
    assert length_ratio("가" * 10, "나" * 3) == pytest.approx(0.3)
    assert copy_rate("하나 둘 셋 넷 다섯", "하나 둘 셋 넷.") == 1
    assert copy_rate("하나 둘 셋 넷 다섯", "하나 둘 셋 여섯") == 0.5
    assert copy_rate("하나 둘 셋", "둘 셋") == 0


ROLES = "#Person1#은 #Person2#에게 담배를 끊으라고 권한다. #Person2#는 어렵지만 노력하겠다고 한다."


def test_roles_agree_with_themselves_and_not_with_their_swap():
    assert role_agreement(ROLES, ROLES) == 1
    assert role_agreement(swap_speakers(ROLES, "#Person1#", "#Person2#"), ROLES) == 0


def test_roles_survive_other_words_and_another_order():
    other = "#Person2#는 어렵다고 하면서도 노력하기로 한다. #Person1#이 #Person2#에게 담배를 끊게 권했다."
    assert role_agreement(other, ROLES) > 0.8
    assert role_agreement(swap_speakers(other, "#Person1#", "#Person2#"), ROLES) < 0.2


def test_the_subject_of_an_inner_clause_gives_way_to_the_topic_again():
    summary = "#Person1#은 #Person2#가 만든 케이크를 칭찬한다."
    assert role_agreement("#Person1#은 케이크를 칭찬한다.", summary) > 0.5
    assert role_agreement("#Person2#는 케이크를 칭찬한다.", summary) < 0.5
    assert {tag for tag, word in roles_in(summary) if word == "만들"} == {"#Person2#"}


def test_irregular_verbs_are_done_by_somebody_too():
    reference = "#Person1#이 묻고 #Person2#가 돕는다."
    assert role_agreement(reference, reference) == 1
    assert role_agreement("#Person2#가 묻고 #Person1#이 돕는다.", reference) == 0
    assert role_agreement("#Person1#이 길을 받는다.", "#Person1#이 표를 받고 #Person2#가 산다.") == 1


def test_a_speaker_joined_to_a_word_does_not_wait_for_the_next_sentence():
    text = "#Person1#은 #Person2#와 딸의 결혼에 대해 이야기한다. #Person1#은 돈을 낸다."
    assert role_agreement("#Person2#는 돈을 낸다.", text, ["#Person1#", "#Person2#"]) == 0


def test_a_speaker_after_a_comma_or_conjunction_acts_in_a_clause_of_its_own():
    for link in (" and", ",", " but", ", while", " because"):
        reference = f"#Person1# asks about hotels{link} #Person2# recommends the station."
        assert role_agreement("#Person2# recommends the station.", reference) == 1
        assert role_agreement("#Person1# recommends the station.", reference) == 0
    for reference in (
        "#Person1# is upset because of #Person2# and decides to leave.",
        "#Person1# invites Lily and #Person2# to a birthday party.",
        "#Person1# tells #Person2#, #Person3#, and #Person4# about the picnic.",
        "#Person1# books a room for Tom and for #Person2# and pays.",
        "#Person1# likes the house and #Person2#'s garden very much.",
    ):
        assert {tag for tag, word in roles_in(reference) if not word.startswith("to #")} == {"#Person1#"}
    three = "#Person1# tells #Person2# and #Person3# about the picnic."
    assert role_agreement("#Person3# tells about the picnic.", three, ["#Person1#", "#Person3#"]) < 0.5


def test_roles_of_english():
    reference = "#Person1# asks #Person2# about hotels. #Person2# recommends the station."
    assert role_agreement("#Person1# wants hotels and #Person2# helps.", reference) > 0.5
    assert role_agreement("#Person2# asks #Person1# about hotels.", reference) < 0.5
    together = "#Person1# and #Person2# discuss hotels."
    assert role_agreement(swap_speakers(together, "#Person1#", "#Person2#"), together) == 0.5


@pytest.mark.parametrize("summary", ["둘은 만난다.", "", "#Person1#과 #Person2#는 권한다."])
def test_where_nothing_tells_the_roles_apart(summary):
    assert role_agreement(summary, ROLES) == 0.5
    assert role_agreement(ROLES, "#Person1#은 간다.") == 0.5


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", ["embedded-ko", "embedded-en"])
def test_no_gate_is_shut_to_more_than_one_in_fifty_shipped_references(gate, name):
    pairs = [(record.dialogue, text) for record in load_records(name)[0] for text in record.references]
    assert sum(not GATES[gate](*pair) for pair in pairs) <= len(pairs) / 50
