"""Choosing among candidates, against choices made by hand."""

from reward.consensus import best_of, consensus


def test_the_candidate_closest_to_the_others_is_taken():
    candidates = [["a lone cat", "the dog ran home", "the dog ran away"], ["x y z", "p q r", "p q s"]]
    # Row 0: the two about the dog share 3 of 4 words with each other, and the first nothing with either.
    assert consensus(candidates, "english") == ["the dog ran home", "p q r"]


def test_of_equals_the_first_is_taken():
    assert consensus([["b c", "b c", "b c"], ["one", "two"]], "english") == ["b c", "one"]


def test_empty_candidates_neither_win_nor_count():
    assert consensus([["", "the dog ran", "the dog sat", ""]], "english") == ["the dog ran"]
    assert consensus([["", ""], ["lone"], ["", "kept"]], "english")[:2] == ["", "lone"]


def test_korean_is_compared_by_morphemes():
    texts = ["#Person1#은 내일 역에서 만나자고 합니다.", "날씨가 좋습니다.", "#Person1#은 내일 역에서 보자고 합니다."]
    assert consensus([texts]) == [texts[0]]


def test_a_first_candidate_without_words_does_not_make_english_korean(monkeypatch):
    profiles = []
    ours = consensus.__globals__["rouge"]
    monkeypatch.setitem(consensus.__globals__, "rouge", lambda *args: profiles.append(args[2]) or ours(*args))
    consensus([["", "the dog ran"], ["the dog sat", "a dog sat"]])
    consensus([["", "개가 달렸다."], ["개가 앉았다.", "개가 앉다."]])
    assert profiles == ["english", "english", "strict", "strict"]


def test_the_best_score_wins_and_each_candidate_is_scored_with_its_dialogue():
    asked = []

    def score(dialogues: list[str], summaries: list[str]) -> list[float]:
        asked.extend(zip(dialogues, summaries, strict=True))
        return [float(len(summary)) for summary in summaries]

    assert best_of([["a", "bbb", "ccc"], ["dd"]], ["one", "two"], score) == ["bbb", "dd"]
    assert asked == [("one", "a"), ("one", "bbb"), ("one", "ccc"), ("two", "dd")]
