"""alignment/turns.py: what is not one turn a line is told from what is."""

import pytest

from alignment.errors import InputError
from alignment.turns import check_turns

SEVERAL = [
    "고객: 네 상담원: 예 고객: 됐어요",
    "A: x / B: y / A: z",
    "#Person1#: 네 #Person2#: 예",
    "고객: 네<br>상담원: 예",
    "고객: 네&lt;br/&gt;상담원: 예",
    r"고객: 네\n상담원: 예",
]
EXPORTED = [
    "[홍길동] [오전 10:12] 안녕\n[김철수] [오전 10:13] 응",
    "2024년 1월 5일 오전 10:12, 홍길동 : 안녕\n2024년 1월 5일 오전 10:13, 김철수 : 응",
    "5/3/24, 15:21 - Ann: hi\n5/3/24, 15:22 - Bob: yes",
    "[2024-05-03, 3:21:05 PM] Ann: hi\n[2024-05-03, 3:21:09 PM] Bob: yes",
    "2024. 1. 5. 오전 10:12, 홍길동 : 안녕\n2024. 1. 5. 오전 10:13, 김철수 : 응",
    "10:12\t홍길동\t안녕\n10:13\t김철수\t응",
]
TURNS = [
    "고객: 네\n상담원: 예",
    "고객: 네\n상담원: 예\n고객: 됐어요",
    "[홍길동] [오전 10:12] 안녕\n홍길동: 응",
    "안내: 문이 열립니다. 안내: 문이 닫힙니다.",
    "환자: 증상: 두통, 기간: 3일 증상: 발열",
    "A: 점심: 김밥 저녁: 라면 점심: 국수",
    "고객: 3:30에 봐요. 주소는 https://a.b 예요",
    "[00:10] 고객: 네\n[00:12] 상담원: 예",
    "혼잣말",
]


@pytest.mark.parametrize("dialogue", SEVERAL)
def test_several_turns_on_a_line_are_refused(dialogue):
    with pytest.raises(InputError, match=r"calls.csv: 2 of 3 dialogues have several turns on a line"):
        check_turns("calls.csv", [dialogue, dialogue, TURNS[0]])


@pytest.mark.parametrize("dialogue", EXPORTED)
def test_what_messengers_export_is_refused(dialogue):
    with pytest.raises(InputError, match=r"calls.csv: 1 of 1 dialogues are as messengers export them.*이름: 말"):
        check_turns("calls.csv", [dialogue])


@pytest.mark.parametrize("dialogue", TURNS)
def test_turns_with_labels_times_and_addresses_in_them_pass(dialogue):
    check_turns("calls.csv", [dialogue])
    with pytest.raises(InputError):  # so it was looked at: the other half decides
        check_turns("calls.csv", [dialogue, SEVERAL[0], SEVERAL[0]])


@pytest.mark.parametrize("dialogue", [SEVERAL[0], EXPORTED[0]])
def test_half_of_them_is_not_most(dialogue):
    check_turns("calls.csv", [dialogue, TURNS[0]])
