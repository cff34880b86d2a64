"""reward/postprocess.py: each rule on written examples, what it must leave alone, and the shipped references."""

import random
import re
from collections import Counter

import pytest

from alignment.data import load_records
from alignment.errors import InputError
from reward.postprocess import RULES, check_rules, effects, postprocess

TALK = "#Person1#: 내일 세 시에 올래?\n#Person2#: 응, 친구랑 갈게. #Email#로 주소 보내 줘.\n#Person1#: 그래."


@pytest.mark.parametrize(
    ("summary", "mended"),
    [
        ("둘은 만난다.</s>", "둘은 만난다."),
        ("<s> 둘은 만난다. </s></s><pad><pad>", "둘은 만난다."),
        ("둘은 만난다</s> .", "둘은 만난다."),
        ("둘은 만난다.</s>셋은 간다.", "둘은 만난다. 셋은 간다."),
        ("### Response:\n둘은 만난다.", "둘은 만난다."),
        ("둘은 만난다. ### Output: ### Input", "둘은 만난다."),
        ("<|im_start|>assistant\n둘은 만난다.<|im_end|>", "둘은 만난다."),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n둘은 만난다.<|eot_id|>", "둘은 만난다."),
        ("<start_of_turn>model\n둘은 만난다.<end_of_turn><eos>", "둘은 만난다."),
        ("<usr>둘은 <unused3> 만난다.[SEP]", "둘은 만난다."),
        ("둘은 <unk> 역에서 � 만난다.", "둘은 역에서 만난다."),
        ("###<s> Response: 둘은 만난다.", "둘은 만난다."),
    ],
)
def test_leftovers_of_tokenizer_and_prompt_go(summary, mended):
    assert RULES["special_tokens"](TALK, summary) == mended


@pytest.mark.parametrize(
    "summary",
    [
        "김<unk>수는 3<unk>5호로 온다.",  # what is left would be another name, another number
        "<unk>수는 온다.",
        "값은 a < b > c이고 #1이다.",
        "</s>",  # nothing would be left
        "assistant인 model은 Response: 라고 한다.",
        "",
    ],
)
def test_what_may_mean_something_stays(summary):
    assert RULES["special_tokens"](TALK, summary) == summary


def test_a_token_that_the_dialogue_speaks_of_stays():
    assert RULES["special_tokens"]("A: <s>는 취소선이야.", "<s>는 취소선이다.</s>") == "<s>는 취소선이다."


@pytest.mark.parametrize(
    ("summary", "mended"),
    [
        ("#person1#은 #PERSON2#를 부른다.", "#Person1#은 #Person2#를 부른다."),
        ("# Person1 #은 # Person 2 #를 부른다.", "#Person1#은 #Person2#를 부른다."),
        ("#Person_1#은 #person-2#를 부른다.", "#Person1#은 #Person2#를 부른다."),
        ("#Person1은 #Person2를 부른다.", "#Person1#은 #Person2#를 부른다."),
        ("#Person1 #Person2#", "#Person1# #Person2#"),
        ("#Person1 #Person2", "#Person1# #Person2#"),
        ("Person1#은 그리고#person2#를 부른다.", "#Person1#은 그리고#Person2#를 부른다."),
        ("#Person1#은 @Person2#에게", "#Person1#은 #Person2#에게"),
        ("#Person1##Person2를", "#Person1##Person2#를"),
        ("#Person1 Email#Person2#에게", "#Person1# Email#Person2#에게"),
        ("#email#Person3#에게", "#Email##Person3#에게"),
        ("#email로 보낸다.", "#Email#로 보낸다."),
    ],
)
def test_a_malformed_tag_becomes_the_one_of_the_dialogue(summary, mended):
    assert RULES["tags"](TALK, summary) == mended


@pytest.mark.parametrize(
    "summary",
    [
        "#Person1#은 #Person2#를 부른다.",
        "#Person3은 #person3#과 Person4#를 부른다.",  # not of this dialogue
        "#Person12는 #Person은 간다.",
        "Person1은 Email을 보낸다.",  # no hash: a word
        "# Person1은 제목이다.",  # a heading
        "방 #1에서 만난다.",
        "",
    ],
)
def test_what_is_no_tag_of_the_dialogue_stays(summary):
    assert RULES["tags"](TALK, summary) == summary


def test_a_tag_that_could_be_either_of_two_stays():
    both = "#Person1#: 응.\n#person1#: 응.\n#Person2#: 응."
    assert RULES["tags"](both, "#PERSON1#은 #PERSON2#와 간다.") == "#PERSON1#은 #Person2#와 간다."


def test_what_the_dialogue_itself_writes_without_a_hash_stays():
    talk = "#Person1#: #email 이라고 검색해.\n#Person2#: #Email#로 보냈어."
    assert RULES["tags"](talk, "#email 을 검색하고 Email#로 보낸다.") == "#email 을 검색하고 #Email#로 보낸다."
    assert RULES["tags"]("민수: 안녕", "#Person1은 인사한다.") == "#Person1은 인사한다."


@pytest.mark.parametrize(
    ("summary", "mended"),
    [
        (" #Person1# 은   #Person2# 에게 전화한다.    ", "#Person1#은 #Person2#에게 전화한다."),
        ("#Person1# 과 #Person2# 는 #Person1# 의 집에서 본다.", "#Person1#과 #Person2#는 #Person1#의 집에서 본다."),
        ("#Person1# 이 #Person2# 를 돕는다.", "#Person1#이 #Person2#를 돕는다."),
        ("#Person2# 가 #Person1# 에게서 배운다.", "#Person2#가 #Person1#에게서 배운다."),
        ("#Person1# 과의 약속을 #Email# 로 알린다.", "#Person1#과의 약속을 #Email#로 알린다."),
        ("#Person2# 는 #Person1# 는 다르다고 한다.", "#Person2#는 #Person1#는 다르다고 한다."),
        ("둘은 만난다 . 정말 ?", "둘은 만난다. 정말?"),
        ('"가자 ." 하고 말한다', '"가자." 하고 말한다'),
        ("둘은\t만난다. \n 셋은 간다.", "둘은 만난다.\n셋은 간다."),
        ("#Person1#asks #Person2#to go .", "#Person1# asks #Person2# to go."),
    ],
)
def test_spaces_are_put_right(summary, mended):
    assert RULES["spaces"](TALK, summary) == mended


@pytest.mark.parametrize(
    "summary",
    [
        "#Person2# 모두 간다.",
        "#Person1# 또한 간다.",
        "#Person2# 이 책을 읽는다.",  # this book: after 2 it would be 가
        "#Person1# 가 보라고 한다.",  # to go and see
        "#Person2# 가 보라고 한다.",
        "#Person2# 와 달라고 한다.",  # to come
        "#Person1# 은행에 간다.",
        "#Person1# 이야기를 한다.",
        "#Person1# 만 원을 낸다.",  # 10,000 won
        "#Person1# 씨와 간다.",
        "#Person2#옆자리에 앉는다.",
        "#Person1#'s dog, #Person2#s cat",
        "값은 .5이고 .NET이다.",
        "첫째 줄\n둘째 줄",
        "#tag#word는 여기에 없는 말이다.",
        "  ",
        "",
    ],
)
def test_spaces_that_may_be_meant_stay(summary):
    assert RULES["spaces"](TALK, summary) == summary


@pytest.mark.parametrize(
    ("summary", "mended"),
    [
        ("둘은 내일 만난다. 둘은 내일 만난다.", "둘은 내일 만난다."),
        ("둘은 내일 만난다. 셋은 집에 간다. 둘은  내일 만난다", "둘은 내일 만난다. 셋은 집에 간다."),
        ("둘은 내일 만난다. 둘은 내일 만난다. 셋은 집에 간다.", "둘은 내일 만난다. 셋은 집에 간다."),
        ("They meet Mr. Lee. They meet Mr. Lee. They go.", "They meet Mr. Lee. They go."),
    ],
)
def test_a_repeated_sentence_is_dropped(summary, mended):
    assert RULES["repeated_sentences"](TALK, summary) == mended


@pytest.mark.parametrize(
    "summary",
    [
        "둘은 내일 만난다. 둘은 모레 만난다.",
        "네. 네. 갈게요.",
        "She goes to Mr. Lee. She goes to Mr. Kim.",  # no sentence ends at Mr.
        "They go at 5 p.m. on Sunday. They go at 5 p.m. on Monday.",
        "둘은 역 앞 3. 출구에서 본다. 둘은 역 앞 3. 문에서 본다.",
        '그는 "지금 집에 간다. 지금 집에 간다."라고 한다.',
        "#Person1#: 내일 역에서 봐. #Person2#: 그래. #Person1#: 내일 역에서 봐. 늦지 마.",  # turns: who said 늦지 마?
        "  둘은 만난다.  ",
        "",
    ],
)
def test_what_is_no_repeated_sentence_stays(summary):
    assert RULES["repeated_sentences"](TALK, summary) == summary


@pytest.mark.parametrize(
    ("summary", "mended"),
    [
        ("둘은 내일 만난다. 그리고 #Person1#은 #Person2#에게", "둘은 내일 만난다."),
        ("둘은 만납니다. 셋은 갑니다! 그래서 둘은,", "둘은 만납니다. 셋은 갑니다!"),
        ("둘은 만난다. 그리고 #Person1#", "둘은 만난다."),
        ("둘은 만난다. 그리고 #Person1", "둘은 만난다."),
        ("둘은 만난다. 만날 때는 오후 3", "둘은 만난다."),
        ("둘은 내일 만남. Ms. Lee는 5 p.m. 전에 집에", "둘은 내일 만남."),
    ],
)
def test_a_cut_last_sentence_is_dropped(summary, mended):
    assert RULES["cut_ending"](TALK, summary) == mended


@pytest.mark.parametrize(
    "summary",
    [
        "둘은 내일 만나서",  # the only one
        "둘은 만난다. 셋은 간다",
        "둘은 만난다. 셋은 좋아해요~",
        "둘은 만난다. 내일 만남",
        "고객은 요금을 문의한다. 상담원은 환불 처리 예정",
        "고객은 요금을 문의한다. 환불 요청 접수",
        "모임은 내일이다. 장소는 강남역",
        "모임은 내일이다. 참석자는 김철수, 이영희",
        "모임은 내일이다. 연락처는 #PhoneNumber#",
        "모임은 내일이다. 비밀번호는 1234",
        "모임은 내일이다. 주문한 것은 iPhone",
        "모임은 내일이다. 참석자는 셋",
        "모임은 취소한다. 내일 다시 연락하기",
        "둘은 만난다. 그 뒤 밥을 먹었어",
        "둘은 만난다. 늦게 왔구나!?",
        "둘은 만난다. 총 금액은 20,000원",
        "둘은 만난다. 만날 때는 3시 30분",
        "Ms. Lee는 내일 집에",  # no whole sentence before it
        "그는 ... 그래서 둘은",
        '둘은 만난다. 그는 "내일 간다. 꼭 간다." 하고 말하며',  # a whole sentence in the cut one
        "They meet at the station. They will go to the",
        "They meet at the station. They will go home",
        "",
    ],
)
def test_what_is_not_surely_cut_stays(summary):
    assert RULES["cut_ending"](TALK, summary) == summary


def test_rules_are_applied_in_their_order_whatever_the_order_of_their_names():
    summary = "<s>#person1# 은  내일 온다. #Person1은 내일 온다 . #Person2# 는</s>"
    assert postprocess(TALK, summary, [*reversed(RULES)]) == "#Person1#은 내일 온다."
    assert postprocess(TALK, summary, ["spaces"]) == "<s>#person1#은 내일 온다. #Person1은 내일 온다. #Person2#는</s>"
    assert postprocess(TALK, summary, []) == postprocess(TALK, summary, ["none"]) == summary


# What rules act on, and what they should not, to be put together at random.
PIECES = [
    *"#@<>.\n \t'\"", " ", "  ", ". ", "...", "</s>", "<unk>", "�", "<|im_start|>", "assistant", "### Response:",
    "#Person1#", "#person2#", "#Person1", "Person2#", "# Person 1 #", "#Person3#", "#Email", "assistant3#", "은 ", "이",
    " 가 ", " 와 ", "에게", "둘은", "만난다", "둘은 내일 역에서 만난다. ", "3", "2,500원", "Mr. ", "and", "go. ",
    "They go home. ", "그래서",
]  # fmt: skip


def test_a_second_pass_changes_nothing_and_no_rule_empties_a_summary_or_makes_a_number():
    rng = random.Random(0)
    changed = 0
    for _ in range(4000):
        summary = "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
        for rules in (["all"], *([name] for name in RULES)):
            mended = postprocess(TALK, summary, rules)
            assert postprocess(TALK, mended, rules) == mended, summary
            assert mended.strip() or not summary.strip(), summary
            assert Counter(re.findall(r"\d+", mended)) <= Counter(re.findall(r"\d+", summary)), summary
            changed += mended != summary
    assert changed > 4000  # of 24,000: the pieces do give the rules something to do


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("name", ["embedded-ko", "embedded-en"])
def test_every_shipped_reference_stays_as_it_is(name, split):
    pairs = [(record.dialogue, text) for record in load_records(name, split=split)[0] for text in record.references]
    assert len(pairs) > 5
    assert [pair for pair in pairs for rule in RULES.values() if rule(*pair) != pair[1]] == []


def test_which_rules_are_meant():
    assert check_rules(["all"]) == list(RULES)
    assert check_rules(["none"]) == check_rules([]) == []
    assert check_rules(["spaces", "tags", "spaces"]) == ["tags", "spaces"]


def test_an_unknown_rule_is_refused_with_the_nearest_names():
    with pytest.raises(
        InputError,
        match=r"--postprocess tag: unknown rule\. Did you mean `tags`.* Expected all, none, or some of special_t",
    ):
        check_rules(["spaces", "tag"])
    with pytest.raises(InputError, match=r"--postprocess xyz: unknown rule\. Expected"):
        postprocess(TALK, "둘은 만난다.", ["xyz"])


@pytest.mark.parametrize("other", ["all", "none"])
def test_all_and_none_stand_alone(other):
    with pytest.raises(InputError, match=f"--postprocess tags {other}: expected {other} alone"):
        check_rules(["tags", other])


def test_effects_of_each_rule_and_of_all():
    # The first summary says all of it twice: ROUGE-1 and -L 2/3, ROUGE-2 0.6 (3 of 7 bigrams), so 64.44 becomes 100.
    summaries = ["they meet at noon. they meet at noon.", "they  go home.", "they stay here."]
    references = [["they meet at noon."], ["they go home."], ["they stay here."]]
    rows = effects([TALK] * 3, summaries, references, ["spaces", "repeated_sentences", "tags"], "english")
    assert [(row["rule"], row["changed"]) for row in rows] == [
        ("tags", 0),
        ("spaces", 1),
        ("repeated_sentences", 1),
        ("all", 2),
    ]
    gain = 100 - 100 * (2 / 3 + 0.6 + 2 / 3) / 3
    nothing = {"difference": 0, "low": 0, "high": 0}
    assert rows[0] == {"rule": "tags", "changed": 0, "p": 1} | nothing
    assert rows[1] == {"rule": "spaces", "changed": 1, "p": 1} | nothing  # ROUGE does not see spaces
    for row in rows[2:]:
        assert row["difference"] == pytest.approx(gain / 3)
        # Of three rows drawn, none is the first in 8 of 27, and all three are it in 1 of 27: more than 2.5 percent.
        assert (row["low"], row["high"]) == (0, pytest.approx(gain))
        assert row["p"] == pytest.approx(2 * 8 / 27, abs=0.03)


def test_no_rules_have_no_effect():
    assert effects([TALK], ["간다."], [["온다."]], [], "strict") == [
        {"rule": "all", "changed": 0, "difference": 0, "low": 0, "high": 0, "p": 1}
    ]
    with pytest.raises(InputError, match="unknown ROUGE profile 'best'"):
        effects([TALK], ["간다."], [["온다."]], ["all"], "best")
