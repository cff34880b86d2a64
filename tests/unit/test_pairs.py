"""reward/pairs.py: which two summaries make a pair, worked by hand, and what TRL makes of the file."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from alignment.errors import InputError
from alignment.formats import write_rows
from alignment.records import Record
from reward.candidates import CORRUPTED
from reward.labels import Label, LabelArguments
from reward.pairs import BINS, Pair, as_rows, check_ids, counts, length_bin, make_pairs, show_counts, stamp

SHORTER, LIKE, LONGER = BINS
ARGS = LabelArguments()


def label(text: str, value: float, kind: str = "sample", failed: tuple[str, ...] = (), name: str = "a") -> Label:
    return Label(
        name, kind, text, value, rouge=0.5, roles=0.5, formal=1, hangul=1, own_words=1, failed=failed, length_ratio=0.2
    )


def rated(text: str, value: float, rating: float | None, name: str = "a") -> Label:
    return replace(label(text, value, "rated", name=name), rating=rating)


# --- margins


def test_the_better_label_is_chosen_by_the_difference_of_the_two():
    assert make_pairs([label("나쁜 글", 0.3), label("좋은 글", 0.7, "reference")], ARGS) == [
        Pair("a", "좋은 글", "나쁜 글", pytest.approx(0.4), "reference > sample", LIKE)
    ]


def test_all_pairs_of_a_dialogue_are_made_and_none_across_dialogues():
    labels = [label("하나", 0.9), label("넷넷", 0.2, name="b"), label("둘둘", 0.6), label("셋셋", 0.1)]
    pairs = make_pairs(labels, ARGS)
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {("하나", "둘둘"), ("하나", "셋셋"), ("둘둘", "셋셋")}


@pytest.mark.parametrize(("min_margin", "made"), [(0.0, 3), (0.25, 3), (0.3, 1), (0.5, 1)])
def test_labels_pair_from_the_least_margin_up(min_margin, made):
    labels = [label("하나", 0.75), label("둘둘", 0.5), label("셋셋", 0.25)]
    assert len(make_pairs(labels, LabelArguments(min_margin=min_margin))) == made


def test_equal_labels_make_no_pair_even_without_a_least_margin():
    labels = [label("하나", 0.5), label("둘둘", 0.5), label("셋셋", 0.25)]
    pairs = make_pairs(labels, LabelArguments(min_margin=0))
    assert {pair.rejected for pair in pairs} == {"셋셋"}


# --- length


@pytest.mark.parametrize(
    ("chosen", "rejected", "where"),
    [
        (100, 100, LIKE), (125, 100, LIKE), (100, 125, LIKE), (126, 100, LONGER), (100, 126, SHORTER), (0, 9, SHORTER),
        (9, 0, LONGER), (0, 0, LIKE),
    ],
)  # fmt: skip
def test_lengths_are_like_up_to_the_ratio_either_way(chosen, rejected, where):
    assert length_bin("가" * chosen, "나" * rejected, 1.25) == where


@pytest.mark.parametrize(("chosen", "rejected"), [(4, 9), (9, 4)])
def test_unlike_lengths_make_no_pair(chosen, rejected):
    labels = [label("가" * chosen, 0.9), label("나" * rejected, 0.1), label("다" * chosen, 0.1)]
    (pair,) = make_pairs(labels, ARGS)
    assert (pair.rejected, pair.length_bin) == ("다" * chosen, LIKE)


@pytest.mark.parametrize(("chosen", "rejected", "where"), [(4, 9, SHORTER), (9, 4, LONGER)])
def test_unlike_lengths_make_a_pair_where_a_gate_decides(chosen, rejected, where):
    (pair,) = make_pairs([label("가" * chosen, 0.9), label("나" * rejected, 0.1, failed=("is_cut",))], ARGS)
    assert pair.length_bin == where


def test_a_gate_that_both_fail_decides_nothing():
    labels = [label("가" * 4, 0.9, failed=("is_cut",)), label("나" * 9, 0.1, failed=("is_cut",))]
    with pytest.raises(InputError, match="no pair"):
        make_pairs(labels, ARGS)


def test_a_greater_ratio_lets_unlike_lengths_pair():
    labels = [label("가" * 4, 0.9), label("나" * 9, 0.1)]
    assert len(make_pairs(labels, LabelArguments(max_length_ratio=2.25))) == 1


# --- corruptions


@pytest.mark.parametrize("kind", CORRUPTED)
def test_a_corruption_is_never_chosen(kind):
    labels = [label("하나", 0.9, kind), label("둘둘", 0.5), label("셋셋", 0.1)]
    assert [(pair.chosen, pair.rejected) for pair in make_pairs(labels, ARGS)] == [("둘둘", "셋셋")]


def test_a_corruption_is_rejected():
    (pair,) = make_pairs([label("하나", 0.9), label("둘둘", 0.5, "cut")], ARGS)
    assert pair.kind == "sample > cut"


# --- human pairs


def test_a_human_pair_stands_whatever_labels_and_lengths_say():
    human = [{"id": "a", "chosen": "가", "rejected": "나" * 9}]
    pairs = make_pairs([label("가", 0.1), label("나" * 9, 0.9)], LabelArguments(ratings_weight=0.3), human)
    assert pairs == [Pair("a", "가", "나" * 9, 0.3, "human", SHORTER)]


@pytest.mark.parametrize("blank", [" ", "  ", "\n"])
def test_what_a_human_compared_is_known_however_its_blanks_stand(blank):
    human = [{"id": "a", "chosen": "둘은 만난다.", "rejected": "둘은 싸운다."}]
    labels = [label(f"둘은{blank}싸운다.", 0.9), label(f"둘은{blank}만난다.", 0.1)]
    assert [pair.kind for pair in make_pairs(labels, LabelArguments(), [])] == ["sample > sample"]
    assert [pair.kind for pair in make_pairs(labels, LabelArguments(), human)] == ["human"]


def test_a_human_pair_of_a_dialogue_of_the_other_split_is_left_to_it():
    human = [{"id": name, "chosen": "가", "rejected": "나"} for name in ("a", "b")]
    assert [pair.id for pair in make_pairs([label("가", 0.5)], ARGS, human)] == ["a"]


@pytest.mark.parametrize(("chosen", "rejected", "where"), [(4, 9, SHORTER), (9, 4, LONGER)])
def test_two_rated_summaries_make_a_pair_whatever_their_lengths(chosen, rejected, where):
    labels = [rated("가" * chosen, 0.7, 1.0), rated("나" * rejected, 0.3, 0.0)]
    (pair,) = make_pairs(labels, ARGS)
    assert (pair.chosen, pair.margin, pair.length_bin) == ("가" * chosen, pytest.approx(0.4), where)


@pytest.mark.parametrize("ratings", [(1.0, None), (None, None), (0.5, 0.5), (0.0, 1.0)])
def test_unlike_lengths_make_no_pair_where_ratings_do_not_decide(ratings):
    with pytest.raises(InputError, match="no pair"):
        make_pairs([rated("가" * 9, 0.7, ratings[0]), rated("나" * 4, 0.3, ratings[1])], ARGS)


def test_it_is_told_what_became_of_ratings(capsys):
    labels = [rated("하나", 0.9, 1.0), rated("둘둘", 0.1, 0.0), rated("셋셋", 0.4, None), rated("하나", 0.9, 1.0, "b")]
    labels.append(label("셋셋", 0.4, name="b"))
    show_counts({"train": make_pairs(labels, ARGS), "held_out": []}, {"train": labels, "held_out": []})
    assert "Ratings: 3; dialogues with a pair of two rated summaries: 1." in capsys.readouterr().err


# --- none


def test_equal_candidates_are_given_as_the_reason_for_no_pair():
    labels = [label("하나", 0.5), label("둘둘", 0.5)]
    with pytest.raises(InputError, match=r"0 dialogues have one candidate only.*no two labels differ by 0\.05"):
        make_pairs(labels, ARGS)


def test_single_candidates_are_given_as_the_reason_for_no_pair():
    labels = [label("하나", 0.9, name="a"), label("둘둘", 0.1, name="b")]
    with pytest.raises(InputError, match=r"2 candidates and no pair.*2 dialogues have one candidate only"):
        make_pairs(labels, ARGS)


# --- splits

ONE = Record("1", "가: 안녕.\n나: 응.", ("인사한다.",))


def test_an_id_in_both_splits_is_refused():
    other = Record("2", "가: 잘 가.\n나: 응.", ("헤어진다.",))
    check_ids([ONE], [other])
    with pytest.raises(InputError, match="1 ids of dialogues to train on are those of held-out ones too, such as '1'"):
        check_ids([ONE], [other, Record("1", other.dialogue, other.references)])


# --- rows

PAIRS = [
    Pair("1", "둘은 인사한다.", "둘은 싸운다.", 0.5, "reference > sample", LIKE),
    Pair("1", "둘은 인사한다.", "둘은", 0.8, "reference > cut", LONGER),
    Pair("2", "둘은 헤어진다.", "둘은 만난다.", 0.2, "reference > sample", LIKE),
]
PROMPTS = {"1": "요약: 안녕.\n", "2": "요약: 잘 가.\n"}


def test_rows_carry_the_columns_of_trl_and_ours():
    row = as_rows(PAIRS, PROMPTS)[2]
    assert set(row) == {"prompt", "chosen", "rejected", "margin", "id", "kind", "length_bin"}
    assert row == {"prompt": PROMPTS["2"]} | asdict(PAIRS[2])


def test_pairs_are_counted_by_kind_and_length():
    assert counts(PAIRS) == [
        {"kind": "reference > sample", "pairs": 2, SHORTER: 0, LIKE: 2, LONGER: 0},
        {"kind": "reference > cut", "pairs": 1, SHORTER: 0, LIKE: 0, LONGER: 1},
    ]


def test_the_fingerprint_tells_other_pairs():
    assert stamp(PAIRS)["pairs"] == 3
    assert stamp(PAIRS) == stamp(list(PAIRS))
    assert len({stamp(pairs)["sha256"] for pairs in (PAIRS, PAIRS[:2], PAIRS[::-1])}) == 3


@pytest.fixture
def file(tmp_path):
    write_rows(as_rows(PAIRS, PROMPTS), tmp_path / "pairs.jsonl")
    return tmp_path / "pairs.jsonl"


def test_datasets_reads_the_rows_as_written(file, tmp_path):
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path))
    assert rows.to_list() == as_rows(PAIRS, PROMPTS)


def test_trl_takes_a_step_of_dpo_on_the_file(file, tiny_model, tmp_path):
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = model.model.embed_tokens.weight.detach().clone()
    args = DPOConfig(
        output_dir=str(tmp_path / "dpo"), max_steps=1, per_device_train_batch_size=3, learning_rate=1e-2,
        logging_steps=1, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    trainer = DPOTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)  # not yet away from the start
    assert not torch.equal(trainer.model.model.embed_tokens.weight, before)


def test_two_references_of_a_dialogue_are_not_compared():
    labels = [label("하나", 1.0, "reference"), label("둘은", 0.6, "reference"), label("셋은", 0.2)]
    assert [pair.kind for pair in make_pairs(labels, LabelArguments())] == ["reference > sample"] * 2
