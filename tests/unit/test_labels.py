"""reward/labels.py: labels worked by hand, the shipped references against their corruptions, and files of ratings."""

import math

import pytest

from alignment.data import load_records
from alignment.errors import InputError
from alignment.records import Record
from reward.candidates import CORRUPTED, Candidate, corruptions, references
from reward.labels import Label, LabelArguments, label_candidates, read_ratings, show_examples

TALK = Record("a", "Tom: So they meet at home?\nAnn: No, at noon.", ("They meet at noon.",))
# ROUGE-1 and -L 3/4, ROUGE-2 2/3; no speaker tags, nothing Korean, and all its words are the dialogue's.
OTHER = "They meet at home."
ROUGE = (3 / 4 + 2 / 3 + 3 / 4) / 3
PARTS = {"rouge": ROUGE, "roles": 0.5, "formal": 1.0, "hangul": 1.0, "own_words": 0.0}
NO_WEIGHTS = {f"{name}_weight": 0.0 for name in PARTS}
ONLY_ROUGE = LabelArguments(**NO_WEIGHTS | {"rouge_weight": 1.0})


def labelled(text: str, args: LabelArguments, rating: float | None = None, kind: str = "sample") -> Label:
    ratings = {} if rating is None else {("a", text): rating}
    (label,) = label_candidates([Candidate("a", kind, text)], [TALK], args, ratings)
    return label


# --- arithmetic


def test_a_label_is_the_mean_of_its_parts_by_the_default_weights():
    label = labelled(OTHER, LabelArguments())
    assert {name: getattr(label, name) for name in PARTS} == pytest.approx(PARTS)
    assert label.failed == ()
    assert label.label == pytest.approx((ROUGE + 0.5 + 0.1 + 0.1 + 0) / 2.3)


@pytest.mark.parametrize("name", PARTS)
def test_each_weight_is_that_of_its_part(name):
    args = LabelArguments(**NO_WEIGHTS | {f"{name}_weight": 0.7})
    assert labelled(OTHER, args).label == pytest.approx(PARTS[name])


def test_two_weights_share_the_label_in_proportion():
    args = LabelArguments(**NO_WEIGHTS | {"formal_weight": 3.0, "own_words_weight": 1.0})
    assert labelled(OTHER, args).label == pytest.approx(0.75)


def test_each_failed_gate_costs_the_penalty_and_may_take_the_label_below_nothing():
    label = labelled("They meet at 7", ONLY_ROUGE)
    assert set(label.failed) == {"unseen_numbers", "is_cut"}
    assert label.label == pytest.approx(ROUGE - 2 * 0.5)


def test_a_rating_takes_its_share_of_the_label_penalty_and_all():
    args = LabelArguments(**NO_WEIGHTS | {"rouge_weight": 1.0, "ratings_weight": 0.25})
    label = labelled("They meet at 7", args, rating=1.0)
    assert label.rating == 1.0
    assert label.label == pytest.approx(0.75 * (ROUGE - 1) + 0.25)


def test_a_rating_of_nothing_counts_too():
    assert labelled(OTHER, ONLY_ROUGE, rating=0.0).label == pytest.approx(ROUGE / 2)


def test_a_reference_has_rouge_1_even_beside_other_references():
    record = Record("a", TALK.dialogue, ("They meet at noon.", "Lunch is planned."))
    by_text = {one.text: one for one in label_candidates(references([record]), [record], ONLY_ROUGE, {})}
    assert [by_text[text].rouge for text in record.references] == [1.0, 1.0]


def test_a_reference_of_one_speaker_tells_a_summary_from_its_swap():
    talk = "#Person1#: 표가 두 장 있어. 연극 볼래?\n#Person2#: 좋지. 언제야?\n#Person3#: 나는 바빠."
    right, wrong = (f"{tag} 표가 두 장 있어서 연극을 보자고 합니다." for tag in ("#Person1#이", "#Person2#가"))
    candidates = [Candidate("a", "reference", right), Candidate("a", "speaker_swap", wrong)]
    good, swap = label_candidates(candidates, [Record("a", talk, (right,))], LabelArguments(), {})
    assert (good.roles, swap.roles) == (1.0, 0.0)


def test_the_roles_are_those_of_the_reference_that_agrees_best():
    talk = "#Person1#: 표가 두 장 있어. 연극 볼래?\n#Person2#: 좋지. 언제야?"
    right = "#Person1#이 표가 두 장 있어서 연극을 보자고 합니다."
    record = Record("a", talk, ("#Person2#가 표를 두 장 받고 연극을 보기로 합니다.", right))
    (label,) = label_candidates([Candidate("a", "sample", right)], [record], LabelArguments(), {})
    assert label.roles == 1.0


def test_length_is_shown_and_no_part_of_the_label():
    label = labelled(OTHER, ONLY_ROUGE)
    assert label.length_ratio == pytest.approx(len(OTHER) / len(TALK.dialogue))
    assert label.label == pytest.approx(ROUGE)


def test_korean_is_scored_by_morphemes_unless_another_profile_is_asked_for():
    record = Record("a", "가: 표를 사자.\n나: 그래.", ("둘은 표를 산다.",))
    candidates = [Candidate("a", "sample", "둘은 표를 판다.")]
    by_default, english = (
        label_candidates(candidates, [record], LabelArguments(label_profile=profile), {})[0].rouge
        for profile in (None, "english")
    )
    assert by_default > 0.4
    assert english == 0  # which sees no Korean at all


# --- the same text twice


def test_what_differs_by_blanks_only_is_labelled_once_and_the_first_kind_kept():
    candidates = [
        Candidate("a", "reference", "They meet at noon."),
        Candidate("a", "sample", OTHER),
        Candidate("a", "sample", "They  meet at noon. "),
        Candidate("a", "rated", OTHER),
    ]
    labels = label_candidates(candidates, [TALK], LabelArguments(), {})
    assert [(one.kind, one.text) for one in labels] == [("reference", "They meet at noon."), ("sample", OTHER)]


def test_the_same_text_is_labelled_for_each_dialogue():
    records = [TALK, Record("b", TALK.dialogue, ("Ann agrees.",))]
    candidates = [Candidate(name, "sample", OTHER) for name in ("a", "b")]
    labels = label_candidates(candidates, records, ONLY_ROUGE, {})
    assert [one.label for one in labels] == pytest.approx([ROUGE, 0])


# --- the shipped dialogues


@pytest.fixture(scope="module")
def shipped() -> list[Label]:
    records, _ = load_records("embedded-ko", need_references=True)
    return label_candidates(references(records) + corruptions(records), records, LabelArguments(), {})


@pytest.mark.parametrize("kind", CORRUPTED)  # all, but for one exchange of speakers in a hundred
def test_a_corruption_is_labelled_below_its_reference(shipped, kind):
    reference = {one.id: one.label for one in shipped if one.kind == "reference"}
    below = [one.label < reference[one.id] for one in shipped if one.kind == kind]
    assert len(below) > 100
    assert sum(below) / len(below) >= 0.98


def test_every_shipped_reference_has_rouge_1(shipped):
    assert {one.rouge for one in shipped if one.kind == "reference"} == {1.0}
    assert max(one.rouge for one in shipped if one.kind != "reference") < 1


# --- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rouge_weight", -0.1),
        ("roles_weight", math.nan),
        ("own_words_weight", math.inf),
        ("gate_penalty", -1.0),
        ("ratings_weight", 1.1),
        ("ratings_weight", math.nan),
        ("min_margin", -0.01),
        ("max_length_ratio", 0.9),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(name, value):
    with pytest.raises(InputError, match=f"--{name} {value}: expected a number"):
        LabelArguments(**{name: value})


def test_weights_that_are_all_0_are_refused():
    with pytest.raises(InputError, match="all 0"):
        LabelArguments(**NO_WEIGHTS)


def test_an_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="--label_profile korean: expected one of aistages, nikl, strict, english"):
        LabelArguments(label_profile="korean")


# --- ratings


def read(tmp_path, content: str):
    (tmp_path / "ratings").write_text(content, "utf-8")
    return read_ratings(tmp_path / "ratings", [TALK, Record("7", TALK.dialogue, ("x",))])


def test_ratings_are_scaled_to_the_lowest_and_highest_of_the_file(tmp_path):
    candidates, ratings, pairs = read(tmp_path, "id,candidate,rating\na,하나,2\na,둘,5\n7,셋,3\n")
    assert candidates == [Candidate("a", "rated", "하나"), Candidate("a", "rated", "둘"), Candidate("7", "rated", "셋")]
    assert ratings == pytest.approx({("a", "하나"): 0, ("a", "둘"): 1, ("7", "셋"): 1 / 3})
    assert pairs == []


def test_pairwise_judgements_are_read_as_pairs(tmp_path):
    candidates, ratings, pairs = read(tmp_path, 'id,chosen,rejected\na,"첫 줄\n둘째 줄",둘\n')
    assert (candidates, ratings) == ([], {})
    assert pairs == [{"id": "a", "chosen": "첫 줄 둘째 줄", "rejected": "둘"}]


def test_an_id_that_is_a_number_in_json_is_that_of_the_dialogue(tmp_path):
    _, _, pairs = read(tmp_path, '{"id": 7, "chosen": "하나", "rejected": "둘"}\n')
    assert pairs == [{"id": "7", "chosen": "하나", "rejected": "둘"}]


def test_a_rating_finds_the_candidate_that_it_rates_whatever_its_blanks(tmp_path):
    _, ratings, _ = read(tmp_path, f"id,candidate,rating\na,{OTHER.replace(' ', '  ')},5\na,x,1\n")
    (label,) = label_candidates([Candidate("a", "sample", OTHER)], [TALK], ONLY_ROUGE, ratings)
    assert label.rating == 1.0


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        ("id,candidate,rating\na,하나,1\nb,둘,2\n", "row 2: id 'b' is none of the 2 dialogues"),
        ("id,candidate,rating\na,하나,nan\n", "row 1: rating 'nan': expected a finite number"),
        ("id,candidate,rating\na,하나,inf\n", "row 1: rating 'inf': expected a finite number"),
        ("id,candidate,rating\na,하나,good\n", "row 1: rating 'good': expected a finite number"),
        ('{"id": "a", "candidate": "하나", "rating": ' + "9" * 400 + "}", "row 1: rating 9+: expected a finite number"),
        ("id,chosen,rejected\na,하나,하나 \n", "row 1: expected texts, none empty and no two the same"),
        ("id,chosen,rejected\na,,하나\n", "row 1: expected texts, none empty and no two the same"),
        ('{"id": "a", "candidate": "하나", "rating": null}', "row 1: rating None: expected a finite number"),
        ("id,candidate,rating\na,하나,3\na,둘,3.0\n", "every rating is 3"),
        ("id,candidate,rating\na,하나,1\na,둘,2\na,하나 ,3\n", "row 3: this summary of 'a' is rated twice"),
        ('{"id": "a", "candidate": "하나", "rating": true}', "row 1: rating True: expected a finite number"),
        ('{"id": "a", "chosen": "하나", "rejected": "둘"}\n' * 2 + "5\n", "row 3: expected id,candidate.*found 5"),
        ("[]", "no rows"),
        ("id,summary\na,하나\n", "row 1: expected id,candidate,rating or id,chosen,rejected"),
        ("id,candidate\na,하나\n", "row 1: expected id,candidate,rating or id,chosen,rejected"),
        ("", "the file is empty"),
    ],
)
def test_a_faulty_file_of_ratings_is_told_by_its_row(content, telling, tmp_path):
    with pytest.raises(InputError, match=telling):
        read(tmp_path, content)


# --- examples


def test_examples_are_shown_best_first_and_of_the_first_dialogues_only(capsys):
    records = [TALK, *(Record(name, TALK.dialogue, TALK.references) for name in "bcd")]
    candidates = [Candidate(name, kind, text) for name in "abcd" for kind, text in (("bad", "7"), ("good", OTHER))]
    show_examples(label_candidates(candidates, records, LabelArguments(), {}))
    shown = capsys.readouterr().out
    assert [name in shown for name in ("Labels of a", "Labels of c", "Labels of d")] == [True, True, False]
    assert shown.index("good") < shown.index("bad")
    assert "unseen_numbers" in shown
