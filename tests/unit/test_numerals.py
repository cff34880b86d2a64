"""reward/numerals.py: one value for every spelling."""

import pytest

from reward.numerals import implied_numbers, numbers


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("3시에 만나요", {3}),
        ("세 시에 네 명이 만나요. 네, 좋아요.", {3, 4}),
        ("이십만 원", {200_000}),
        ("20만 원", {200_000}),
        ("200,000원", {200_000}),
        ("3천 5백 원, 1만 5천 원", {3_500, 15_000}),
        ("열두 살 아이와 스물세 살 형", {12, 23}),
        ("서른다섯 명", {35}),
        ("한두 개", {1, 2}),
        ("두 번째, 이틀 뒤", {2}),
        ("사흘 뒤 백만 원", {3, 1_000_000}),
        ("오후 2:30", {2, 30}),
        ("여섯 시 반에 만나 두 시간 반 동안", {6, 30, 2}),
        ("두 시간 반, 체육 시간 반 대항", {2}),
        ("7시 반", {7, 30}),
        ("3.5킬로와 10%", {3.5, 10}),
        ("1998년 6월 13일", {1998, 6, 13}),
        ("이 사람은 일을 잘한다. 그 일은 천만에요.", set()),
        ("올해만 쉰다. 만 원만 냈다.", {10_000}),
        ("#Person1#은 #Person2#와 논다.", set()),
        ("Meet at three, twenty-five people, 1,200 dollars", {3, 25, 1200}),
        ("two hundred and fifty", {250}),
        ("a hundred and fifty dollars for a dozen eggs, and two dozen more", {150, 12, 24}),
        ("on the fifth floor, the 7th, hundreds of people", {5, 7}),
        ("half past three, half a day", {30, 3}),
        ("one thousand two hundred", {1200}),
        ("twenty thousand five hundred and thirty-one", {20_531}),
        ("It costs $30. Two friends pay 5 million, one or two more", {30, 2, 5_000_000, 1}),
        ("someone is often tense", set()),
    ],
)
def test_numbers_by_value(text, values):
    assert numbers(text) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("두 시간 반 걸려.", 30),
        ("일주일 걸려.", 7),
        ("시월 삼 일이야.", 10),
        ("서너 명 올 거야.", 4),
        ("오후 세 시에 봐.", 15),
        ("밤 11시에 봐.", 23),
        ("이공이사년이야.", 2024),
        ("A: 아홉시까지야\nB: 응", 9),
        ("A: 열두명이야\nB: 응", 12),
        ("A: 칠만원이야\nB: 응", 70_000),
        ("A: 이만 삼천 원입니다\nB: 네", 23_000),
        ("2, 000 units", 2000),
        ("It is $ 12. 50.", 12.5),
        ("Half an hour!", 30),
        ("July thirtieth", 30),
        ("on May twenty-first", 21),
        ("the thirteenth floor", 13),
        ("in nineteen ninety-eight", 1998),
        ("a quarter to six", 45),
    ],
)
def test_what_numbers_imply_beyond_their_values(text, value):
    assert value in implied_numbers(text)
    assert value not in numbers(text)


@pytest.mark.parametrize(
    "text",
    [
        "500만 원에 3천 원이야.",
        "오전 세 시에 봐.",
        "#Person1#: 응",
        "no second thought",
        "오후에 세 번 봐.",
        "이번 오일도 오시면 구월에",
        "이사 일정이 있고, 세일 시작했대. 사이 일이야. 오이 개당",
    ],
)
def test_nothing_more_is_implied(text):
    assert implied_numbers(text) <= {1, 2, 3}
