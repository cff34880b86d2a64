"""Numbers in Korean and English text -> their values, however they are spelt."""

import re

from alignment.dialogue import language
from alignment.speakers import MASK
from reward.morphemes import Morpheme, morphemes

_UNITS = {"십": 10, "백": 100, "천": 1000, "만": 10**4, "억": 10**8, "조": 10**12}
_TENS = {
    "열": 10, "스물": 20, "스무": 20, "서른": 30, "마흔": 40, "쉰": 50, "예순": 60, "일흔": 70, "여든": 80, "아흔": 90,
}  # fmt: skip
_ONES = dict(zip("영일이삼사오육칠팔구", range(10), strict=True)) | {
    "하나": 1, "한": 1, "첫": 1, "둘": 2, "두": 2, "셋": 3, "세": 3, "석": 3, "넷": 4, "네": 4, "넉": 4, "다섯": 5,
    "여섯": 6, "일곱": 7, "여덟": 8, "아홉": 9,
}  # fmt: skip
_DIGITS = {"공": 0} | {form: int(_ONES[form]) for form in "영일이삼사오육칠팔구"}
# What stands for other numbers than it names: half an hour, a week, the months without ㅂ and ㄱ, three or four.
_IMPLIED = {
    "시간 반": {30}, "반 시간": {30}, "일주일": {7}, "시월": {10}, "유월": {6}, "두서너": {2, 3, 4}, "서너": {3, 4},
    "대여섯": {5, 6}, "예닐곱": {6, 7}, "half an hour": {30}, "half hour": {30}, "quarter": {15, 45}, "a week": {7},
}  # fmt: skip
_DAYS = {"하루": 1, "이틀": 2, "사흘": 3, "나흘": 4, "닷새": 5, "엿새": 6, "열흘": 10, "보름": 15}
_SPELT = "|".join(sorted([*_UNITS, *_TENS, *_ONES], key=len, reverse=True))
_PIECE = re.compile(rf"\d[\d,]*(?:\.\d+)?|{_SPELT}")
# With what they count right after them, where morphemes are cut otherwise (아홉시까지야).
_COUNTING = re.compile(rf"(?<![\d가-힣])((?:(?:{_SPELT})\s?){{1,16}})(?=원|시|분|명|개|살|점|층|월|일|년|번|킬로|프로)")
_ALL_PIECES = re.compile(f"(?:{_PIECE.pattern})+")
_ENGLISH_ONES = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_ENGLISH_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_ENGLISH_UNITS = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ENGLISH_ORDINALS = {  # 5th is read as 5
    "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11,
    "twelfth": 12,
}  # fmt: skip
_CARDINALS = dict(zip(_ENGLISH_ORDINALS, [*_ENGLISH_ONES][2:12], strict=True))
_CARDINALS |= {f"{word}th": word for word in _ENGLISH_ONES} | {f"{word[:-1]}ieth": word for word in _ENGLISH_TENS}
_CARDINALS |= {"first": "one", "second": "two"}
_TEENS = "|".join(word for word, value in _ENGLISH_ONES.items() if value > 9)
_TWO_DIGITS = rf"(?:{'|'.join(_ENGLISH_TENS)})(?:[ -](?:{'|'.join(list(_ENGLISH_ONES)[:9])}))?|{_TEENS}"


def numbers(text: str) -> set[float]:
    """The values of the numbers in a text: digits, and numerals where the morpheme or word is surely one.

    `20만 원`, `이십만 원` and `200,000원` have one value, `세 시` and `3시` another; #Person1# has none.
    """
    text = MASK.sub(" ", text)
    return _korean_numbers(text) if language(text) == "ko" else _english_numbers(text)


def implied_numbers(text: str) -> set[float]:
    """Further values by which a dialogue's numbers may be told: `오후 세 시` is 15시, `half an hour` 30 minutes.

    Generously: what is meant for `numbers` beyond it, so that a true number is not taken for a new one.
    """
    text = MASK.sub(" ", text).lower()
    values = {float(value) for form, those in _IMPLIED.items() if form in text for value in those}
    for run in re.findall(f"[{''.join(_DIGITS)}]{{3,}}", text):  # 이공이사년
        values.add(float("".join(str(_DIGITS[form]) for form in run)))
    for run in map(str.strip, _COUNTING.findall(text)):
        its = _values(_PIECE.findall(run))
        if len(its) == 1 and (len(run) > 1 or run == "열"):  # 이번, 오시는 and 세일 시작 have no number
            values |= its
    for hour in re.findall(r"(?:오후|저녁|밤)\s*((?:\d|[가-힣])+)\s*시", text):
        values |= {value + 12 for value in _korean_numbers(f"{hour} 시") if value < 12}
    spaced = re.sub(r"(?<!\d)(\d{1,3}), (?=\d{3}\b)", r"\1,", re.sub(r"(\d)\. (?=\d)", r"\1.", text))  # 2, 000
    cardinal = re.sub("[a-z]+", lambda word: _CARDINALS.get(word.group(), word.group()), spaced)
    for first, last in re.findall(rf"\b({_TWO_DIGITS})[ -]({_TWO_DIGITS})\b", cardinal):  # nineteen ninety-eight
        values |= {100 * one + other for one in _english_numbers(first) for other in _english_numbers(last)}
    # 20만 is 200,000 and not 20: such amounts `numbers` reads.
    return values | _english_numbers(re.sub(rf"\d[\d,.]*\s*[{''.join(_UNITS)}]+", " ", cardinal))


def _korean_numbers(text: str) -> set[float]:
    values: set[float] = set()
    run: list[str] = []
    hour = False
    for form, tag in [*morphemes(text), Morpheme("", "")]:
        if form == "반" and hour:  # 여섯 시 반: 6시 30분
            values.add(30.0)
        hour = form == "시" and bool(run)
        # MM, the determiners, holds native numerals (세 시, 한두 개) beside 이: `this`.
        if tag in ("SN", "NR") or (tag == "MM" and form != "이" and _ALL_PIECES.fullmatch(form)):
            run.append(form.removesuffix("째"))
            continue
        if run != ["만"] or tag == "NNB":  # alone it is the particle (올해만), but for 만 원
            values |= _values(_PIECE.findall(" ".join(run)))
        run = []
        if tag == "W_SERIAL":  # a time, a date, a telephone number: each part counts
            values |= {float(part) for part in re.findall(r"\d+", form)}
        elif form in _DAYS:
            values.add(_DAYS[form])
    return values


def _values(pieces: list[str]) -> set[float]:
    """The value of numerals in a row; several where ones follow ones (`한두`: one or two)."""
    values: set[float] = set()
    total = section = ones = 0.0
    before = ""
    for piece in pieces:
        if _UNITS.get(piece, 10**4) < 10**4:  # 십, 백, 천
            section, ones = section + (ones or 1) * _UNITS[piece], 0.0
        elif piece in _UNITS:  # 만, 억, 조
            total, section, ones = total + ((section + ones) or 1) * _UNITS[piece], 0.0, 0.0
        elif piece in _TENS:
            ones += _TENS[piece]
        else:
            if before and before not in _UNITS and before not in _TENS:
                values.add(total + section + ones)
                total = section = ones = 0.0
            ones += _ONES[piece] if piece in _ONES else float(piece.replace(",", ""))
        before = piece
    return values | {total + section + ones} if pieces else values


def _english_numbers(text: str) -> set[float]:
    values: set[float] = set()
    run: list[str] = []
    last = ""
    for word in [*re.findall(r"\d[\d,]*(?:\.\d+)?|[a-z]+|[^\s\w-]", text.lower()), ""]:
        before, last = last, word
        if word in _ENGLISH_ORDINALS:
            values.add(_ENGLISH_ORDINALS[word])
        if (before, word) == ("half", "past"):
            values.add(30.0)
        if run and word == "and" and run[-1] in _ENGLISH_UNITS:  # two hundred and fifty
            continue
        if run and not _goes_on(run[-1], word):
            values.add(_english_value(run))
            run = []
        if not run and before == "a" and word in _ENGLISH_UNITS:
            run.append("one")
        if run or word[:1].isdigit() or word in _ENGLISH_ONES or word in _ENGLISH_TENS:
            run.append(word)
    return values


def _goes_on(last: str, word: str) -> bool:
    if word in _ENGLISH_ONES:
        return last in _ENGLISH_UNITS or (last in _ENGLISH_TENS and _ENGLISH_ONES[word] < 10)
    return word in _ENGLISH_UNITS or (word in _ENGLISH_TENS and last in _ENGLISH_UNITS)


def _english_value(run: list[str]) -> float:
    total = section = 0.0
    for word in run:
        if word == "hundred":
            section *= 100
        elif word in _ENGLISH_UNITS:
            total, section = total + section * _ENGLISH_UNITS[word], 0.0
        else:
            value = _ENGLISH_ONES.get(word) or _ENGLISH_TENS.get(word)
            section += value or float(word.rstrip(",").replace(",", ""))
    return total + section
