"""alignment/splits.py: what is held out is never trained on."""

import json

import pytest

from alignment.arguments import DataArguments
from alignment.errors import InputError
from alignment.records import Record
from alignment.splits import hold_out, load_all_train, load_train_and_eval, tell_of_references

HELLO = "#Person1#: 안녕하세요.\n#Person2#: 네, 반가워요."


def row(name="a", dialogue=HELLO, **others):
    return {"fname": name, "dialogue": dialogue, **others}


@pytest.fixture
def write(tmp_path):
    """Writes rows as JSON lines, and gives the path."""

    def write_file(rows, name):
        path = tmp_path / name
        path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), "utf-8")
        return path

    return write_file


def some(count):
    return [Record(str(n), f"A: {n}", ()) for n in range(count)]


def test_hold_out_is_a_partition_in_order_of_the_asked_size():
    records = some(50)
    train, held = hold_out(records)
    assert len(held) == 5
    assert sorted(train + held, key=records.index) == records
    assert train == sorted(train, key=records.index)
    assert held == sorted(held, key=records.index)


def test_hold_out_takes_the_same_each_time():
    assert hold_out(some(50)) == hold_out(some(50))


def test_hold_out_never_puts_one_dialogue_on_both_sides():
    records = [Record(str(n), f"A: {n % 7}", ()) for n in range(40)]
    train, held = hold_out(records)
    assert {record.dialogue for record in train}.isdisjoint(record.dialogue for record in held)
    assert len(train) + len(held) == 40


def test_hold_out_leaves_both_sides_a_dialogue():
    train, held = hold_out(some(2))
    assert (len(train), len(held)) == (1, 1)


def test_hold_out_takes_200_at_most():
    assert len(hold_out(some(2100))[1]) == 200


def test_hold_out_needs_two_distinct_dialogues():
    with pytest.raises(InputError, match="1 distinct dialogues"):
        hold_out([Record("a", HELLO, ()), Record("b", HELLO, ())])


def test_what_is_held_out_is_not_trained_on_with_another_limit(write):
    rows = [row(f"a{i}", f"#Person1#: {i}?\n#Person2#: 응.", summary="답한다.") for i in range(3000)]
    path = str(write(rows, "train.jsonl"))
    most = (None, 2000, 90, 10)
    splits = [load_train_and_eval(DataArguments(dataset_path=path, max_train_rows=rows))[0] for rows in most]
    sizes = [(len(train), len(held_out)) for train, held_out in splits]
    assert sizes == [(2800, 200), (2000, 200), (90, 10), (10, 1)]
    held_out = {record.id for _, held_out in splits for record in held_out}
    assert not any(record.id in held_out for train, _ in splits for record in train)
    with_more = DataArguments(dataset_path=path, max_train_rows=10, max_eval_rows=7)
    assert len(load_train_and_eval(with_more)[0][1]) == 7


@pytest.mark.parametrize("own_file", [True, False])
def test_all_rows_to_train_on_are_those_beyond_the_most_but_for_held_out_dialogues(write, own_file):
    rows = [row(f"a{i}", f"#Person1#: {i}?\n#Person2#: 응.", summary="답한다.") for i in range(40)]
    held = write([*rows[30:32], row("b", summary="답한다.")], "eval.jsonl") if own_file else None
    args = DataArguments(
        dataset_path=str(write(rows, "train.jsonl")),
        eval_dataset_path=held and str(held),
        max_train_rows=20,
    )
    (train, held_out), _ = load_train_and_eval(args)
    assert (len(train), len(held_out)) == (20, 3 if own_file else 2)
    everything, _ = load_all_train(args)
    unseen = {record.dialogue for record in held_out}
    ids = [one["fname"] for one in rows if one["dialogue"] not in unseen]
    whole = load_train_and_eval(DataArguments(dataset_path=args.dataset_path))[0][0]  # with nothing held out cut off
    assert [record.id for record in everything] == (ids if own_file else [record.id for record in whole])
    assert len(everything) == (38 if own_file else 36)


def test_dialogues_that_are_held_out_too_are_left_out_of_training(write, capsys):
    rows = [row(f"a{i}", f"#Person1#: {i}?\n#Person2#: 응.", summary="답한다.") for i in range(6)]
    train = str(write(rows, "train.jsonl"))
    same = [row(f"b{i}", rows[i]["dialogue"], summary="대답한다.") for i in (5, 1)]
    held = str(write([row("b", summary="인사한다."), *same], "dev.jsonl"))
    with open(held, "a", encoding="utf-8") as file:
        file.write('{"fname": "bad"}\n')  # beyond what is asked for
    for most in (3, 1):  # of the held-out ones: the others are scored some day too
        args = DataArguments(dataset_path=train, eval_dataset_path=held, max_eval_rows=most)
        (trained_on, held_out), _ = load_train_and_eval(args)
        assert [record.id for record in trained_on] == ["a0", "a2", "a3", "a4"]
        assert len(held_out) == most
        assert "2 dialogues to train on are held out too" in capsys.readouterr().err
    with pytest.raises(InputError, match="every dialogue to train on is held out too"):
        load_train_and_eval(DataArguments(dataset_path=train, eval_dataset_path=train))


@pytest.mark.parametrize("own_file", [True, False])
def test_that_the_first_of_several_references_is_trained_on_is_said_once(write, capsys, own_file):
    rows = [
        row(f"a{i}", f"#Person1#: {i}?\n#Person2#: 응.", summary=["답한다.", "말한다."][: 1 + i % 2]) for i in range(6)
    ]
    path, held = str(write(rows, "train.jsonl")), str(write([row("b", summary="인사한다.")], "dev.jsonl"))
    (train, _), _ = load_train_and_eval(DataArguments(dataset_path=path, eval_dataset_path=held if own_file else None))
    tell_of_references(train)
    several = sum(len(record.references) > 1 for record in train)
    telling = f"{several} of {len(train)} dialogues have several references: fine-tuning learns the first."
    assert several
    assert capsys.readouterr().err.count(telling) == 1
    (train, _), _ = load_train_and_eval(DataArguments(dataset_path=str(write(rows[::2], "train.jsonl"))))
    tell_of_references(train)
    assert "several references" not in capsys.readouterr().err


def test_a_folders_eval_file_is_held_out_and_its_test_file_is_not(write, tmp_path, capsys):
    rows = [row(f"a{i}", f"#Person1#: {i}?\n#Person2#: 응.", summary="답한다.") for i in range(20)]
    write(rows, "train.jsonl")
    write([row("t", HELLO)], "test.jsonl")  # without summaries, as in a competition
    (train, held_out), _ = load_train_and_eval(DataArguments(dataset_path=str(tmp_path)))
    assert (len(train), len(held_out)) == (18, 2)
    assert "test.jsonl is not held out, so that scores on it tell something" in capsys.readouterr().err
    write([row("d", HELLO, summary="인사한다.")], "dev.jsonl")
    (train, held_out), _ = load_train_and_eval(DataArguments(dataset_path=str(tmp_path)))
    assert (len(train), [record.id for record in held_out]) == (20, ["d"])
    assert "not held out" not in capsys.readouterr().err
