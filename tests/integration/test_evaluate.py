"""recipes/evaluate.py: models and predictions scored, written down, and gone on with after a kill."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from recipe_runs import change_weights

from alignment import summarizer
from alignment.arguments import PromptArguments
from alignment.data import load_records
from alignment.dialogue import encode_prompt, prompt_for
from alignment.errors import InputError
from alignment.generation import generate
from alignment.journal import Journal
from alignment.records import Record
from alignment.summarizer import Summarizer
from recipes import evaluate, sft
from reward.rouge import rouge


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, dialogues) -> Path:
    """The folder of phase1 and phase2, trained in the chat form."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    flags = {
        "model_name_or_path": tiny_model, "dataset_path": dialogues, "output_dir": folder, "prompt_form": "chat",
        "dtype": "float32", "num_train_epochs": 1, "phase2_epochs": 1, "learning_rate": 1e-2, "rouge_eval_rows": 0,
        "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "use_cpu": True,
    }  # fmt: skip
    sft.main([f"--{name}={value}" for name, value in flags.items()])
    return folder


@pytest.fixture
def score(tmp_path, dialogues):
    """Runs the recipe with these flags, into a fresh folder if not told otherwise; its output folder."""

    def run(output_dir=tmp_path / "out", dataset_path=dialogues, model=(), **flags):
        flags = {
            "output_dir": output_dir,
            "dataset_path": dataset_path,
            "max_new_tokens": 8,
            "dtype": "float32",
        } | flags
        argv = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        evaluate.main(argv + (["--model", *map(str, model)] if model else []))
        return Path(output_dir)

    return run


def results_in(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text("utf-8"))


def predictions_in(file: Path) -> list[tuple[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        header, *rows = map(tuple, csv.reader(lines))
    assert header == ("fname", "summary")
    return rows


def held_out(dialogues: Path) -> list[Record]:
    return load_records(dialogues, split="eval")[0]


def test_a_base_model_is_scored_with_every_figure_and_stamp(score, tiny_model, dialogues):
    folder = score(model=[tiny_model])
    records = held_out(dialogues)
    rows = predictions_in(folder / "predictions.csv")
    assert [name for name, _ in rows] == [record.id for record in records]

    results = results_in(folder)
    assert [result["profile"] for result in results] == ["aistages", "strict"]  # for Korean
    for result in results:
        expected = asdict(rouge([text for _, text in rows], [[*r.references] for r in records], result["profile"]))
        for key in ("rouge1", "rouge2", "rougeL", "mean"):
            assert result[key] == pytest.approx(expected[key])
        assert result["tokenizer"] == expected["tokenizer"]
        assert result["references"] == [*expected["references"]]
        assert (result["name"], result["rows"]) == (tiny_model.name, len(records))
        assert 0 <= result["seconds"] < 600
        assert 0 < result["peak_memory_gib"] < 20


def test_no_partial_file_is_left(score, tiny_model):
    folder = score(model=[tiny_model])
    assert sorted(file.name for file in folder.iterdir()) == ["dialogues.jsonl", "predictions.csv", "results.json"]


def test_an_adapter_is_scored_and_differs_from_its_base(score, tiny_model, trained):
    folder = score(model=[tiny_model, trained / "phase1"])
    assert [result["name"] for result in results_in(folder)] == [tiny_model.name] * 2 + ["phase1"] * 2
    base = predictions_in(folder / f"predictions-{tiny_model.name}.csv")
    tuned = predictions_in(folder / "predictions-phase1.csv")
    assert [name for name, _ in base] == [name for name, _ in tuned]
    assert base != tuned


def test_models_in_folders_of_one_name_keep_apart(score, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "other")
    folder = score(model=[trained / "phase1", tmp_path / "other" / "phase1"])
    assert {result["name"] for result in results_in(folder)} == {"run-phase1", "other-phase1"}
    assert predictions_in(folder / "predictions-run-phase1.csv") == predictions_in(
        folder / "predictions-other-phase1.csv"
    )


def test_the_same_model_twice_is_refused(score, tiny_model, tmp_path):
    with pytest.raises(InputError, match="the same model twice"):
        score(model=[tiny_model, tiny_model])


def test_the_table_is_printed(score, tiny_model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    folder = score(model=[tiny_model], profiles="strict")
    printed = capsys.readouterr().out
    assert f"{results_in(folder)[0]['rouge1']:.2f}" in printed
    assert "strict" in printed


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def english(tmp_path) -> Path:
    """Two dialogues with two references each, and predictions for them in another order."""
    references = [["the cat ran", "the cat ran"], ["a dog", "the bird"]]
    rows = [
        {"id": str(i), "dialogue": "Ann: Hi", "summary1": one, "summary2": two}
        for i, (one, two) in enumerate(references)
    ]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "system.csv").write_text("fname,summary\n1,a dog\n0,the cat sat\n", "utf-8")
    return tmp_path


def test_predictions_are_scored_as_by_hand(score, english):
    (result,) = results_in(score(predictions=english / "system.csv", dataset_path=english / "gold.jsonl"))
    # Row 0: 2 of 3 words and 1 of 2 pairs, with either reference. Row 1: everything with one, nothing with the other.
    assert result["profile"] == "english"
    assert result["rouge1"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert result["rouge2"] == pytest.approx(100 * (1 / 2 + 1 / 2) / 2)
    assert result["rougeL"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert result["mean"] == pytest.approx((result["rouge1"] + result["rouge2"] + result["rougeL"]) / 3)
    assert (result["name"], result["rows"], result["references"]) == ("system", 2, [2, 2])


def test_the_references_themselves_score_100(score, dialogues, tmp_path):
    lines = [json.dumps({"id": r.id, "dialogue": r.dialogue, "summary": r.references[0]}) for r in held_out(dialogues)]
    (tmp_path / "gold.jsonl").write_text("\n".join(lines), "utf-8")
    results = results_in(score(predictions=tmp_path / "gold.jsonl", dataset_path=tmp_path / "gold.jsonl"))
    assert [result["mean"] for result in results] == pytest.approx([100, 100])


def test_profiles_can_be_named(score, english):
    flags = {"predictions": english / "system.csv", "dataset_path": english / "gold.jsonl"}
    assert [result["profile"] for result in results_in(score(profiles="nikl", **flags))] == ["nikl"]


def test_an_unknown_profile_names_those_there_are(score, english):
    with pytest.raises(InputError, match="--profiles rouge: expected one of aistages, nikl, strict, english"):
        score(predictions=english / "system.csv", dataset_path=english / "gold.jsonl", profiles="rouge")


# --- the prompt a model was trained with ------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [1, 2])
def test_form_and_phase_of_the_prompt_come_from_the_manifest(phase, trained, dialogues):
    summarizer = Summarizer.load(str(trained / f"phase{phase}"), prompt_args=PromptArguments(max_new_tokens=8))
    assert (summarizer.form, summarizer.phase) == ("chat", phase)

    record, tokenizer = held_out(dialogues)[0], summarizer.tokenizer
    prompt = encode_prompt(prompt_for(record, phase, "chat", tokenizer), "chat", tokenizer)
    end = tokenizer.eos_token_id
    expected = generate(summarizer.model, tokenizer, [prompt], end_token_id=end, max_new_tokens=8)
    assert summarizer.summarize([record.dialogue]) == expected


def test_the_prompt_form_can_be_overruled(trained):
    summarizer = Summarizer.load(str(trained / "phase1"), prompt_args=PromptArguments(prompt_form="instruction"))
    assert summarizer.form == "instruction"


def test_a_model_without_a_manifest_gets_the_instruction_of_phase_1(tiny_model):
    summarizer = Summarizer.load(str(tiny_model))
    assert (summarizer.form, summarizer.phase) == ("instruction", 1)


def test_dialogues_beyond_the_context_are_shortened(tiny_model, capsys):
    summarizer = Summarizer.load(str(tiny_model), prompt_args=PromptArguments(max_new_tokens=4))
    assert summarizer.summarize(["\n".join(["#Person1#: 네, 그렇습니다."] * 400)])[0]
    telling = "1 dialogues were shortened by whole turns to fit 2048 tokens, the most: 400 turns to "
    assert telling in capsys.readouterr().err


def test_a_turn_beyond_the_context_is_told_by_its_place(tiny_model):
    summarizer = Summarizer.load(str(tiny_model), prompt_args=PromptArguments(max_new_tokens=4))
    with pytest.raises(InputError, match=r"Dialogue no\. 2: the first turn.*2048 tokens"):
        summarizer.summarize(["#Person1#: 네.", "#Person1#: " + "길게 " * 3000])


# --- killed, and started again ----------------------------------------------------------------------------------------


def kill_after_two(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Path], folder: Path) -> list[int]:
    """Runs until two texts are written down, and marks those: were they made again, the marks would be gone."""
    add = Journal.add

    def add_and_die(journal: Journal, index: int, text: str) -> None:
        add(journal, index, text)
        if len(journal._path.read_text("utf-8").splitlines()) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add_and_die)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()

    (file,) = folder.iterdir()
    header, *lines = file.read_text("utf-8").splitlines()
    indexes = [json.loads(line)[0] for line in lines]
    marked = [json.dumps([index, f"표시 {index}", 1.0]) for index in indexes]
    file.write_text("\n".join([header, *marked, '[3, "cut']), "utf-8")
    return indexes


def test_a_killed_run_makes_only_what_is_missing(score, tiny_model, tmp_path, monkeypatch):
    whole = predictions_in(score(model=[tiny_model], output_dir=tmp_path / "whole") / "predictions.csv")
    kept = kill_after_two(monkeypatch, lambda: score(model=[tiny_model]), tmp_path / "out")
    assert len(kept) == 2

    folder = score(model=[tiny_model])
    expected = [(name, f"표시 {i}" if i in kept else text) for i, (name, text) in enumerate(whole)]
    assert predictions_in(folder / "predictions.csv") == expected
    assert sorted(file.name for file in folder.iterdir()) == ["dialogues.jsonl", "predictions.csv", "results.json"]


def test_a_run_killed_in_its_second_model_keeps_the_first(score, tiny_model, trained, tmp_path, monkeypatch):
    models = [tiny_model, trained / "phase1"]
    whole = score(model=models, output_dir=tmp_path / "whole", profiles="strict")
    add, added = Journal.add, []

    def add_and_die(journal: Journal, index: int, text: str) -> None:
        add(journal, index, text)
        added.append(index)
        if len(added) == 5:  # of 4 + 4
            raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Journal, "add", add_and_die)
        with pytest.raises(KeyboardInterrupt):
            score(model=models, profiles="strict")
    asked: list[int] = []
    real = summarizer.generate
    monkeypatch.setattr(summarizer, "generate", lambda *a, **k: asked.append(len(a[2])) or real(*a, **k))
    folder = score(model=models, profiles="strict")
    assert asked == [0, 3]
    for file in whole.glob("*.csv"):
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_texts_of_a_model_that_was_trained_anew_are_not_taken(score, tiny_model, tmp_path, monkeypatch):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    kill_after_two(monkeypatch, lambda: score(model=[model]), tmp_path / "out")
    change_weights(model / "model.safetensors")
    rows = predictions_in(score(model=[model]) / "predictions.csv")
    assert not any("표시" in text for _, text in rows)


def test_smaller_batches_go_on_where_larger_ones_ran_out_of_memory(score, tiny_model, tmp_path, monkeypatch):
    kept = kill_after_two(monkeypatch, lambda: score(model=[tiny_model]), tmp_path / "out")
    rows = predictions_in(score(model=[tiny_model], batch_size=1) / "predictions.csv")
    assert [i for i, (_, text) in enumerate(rows) if "표시" in text] == sorted(kept)


@pytest.mark.parametrize(
    "change", [{"max_new_tokens": 4}, {"dtype": "bfloat16"}, {"num_beams": 2}, {"max_eval_rows": 3}]
)
def test_a_run_with_other_settings_makes_all_anew(change, score, tiny_model, tmp_path, monkeypatch):
    kill_after_two(monkeypatch, lambda: score(model=[tiny_model]), tmp_path / "out")
    rows = predictions_in(score(model=[tiny_model], **change) / "predictions.csv")
    assert not any("표시" in text for _, text in rows)


def test_results_that_are_there_are_refused_and_kept(score, tiny_model):
    folder = score(model=[tiny_model])
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(InputError, match=r"results\.json exists.*--output_dir, or --overwrite_output_dir true"):
        score(model=[tiny_model], max_new_tokens=2)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_file_of_the_user_with_the_name_of_ours_is_refused_and_kept(score, tiny_model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dialogues.jsonl").write_text("mine", "utf-8")
    with pytest.raises(InputError, match=r"dialogues\.jsonl exists"):
        score(model=[tiny_model])
    assert (tmp_path / "out" / "dialogues.jsonl").read_text("utf-8") == "mine"


def test_results_are_replaced_where_asked(score, tiny_model):
    before = predictions_in(score(model=[tiny_model]) / "predictions.csv")
    folder = score(model=[tiny_model], max_new_tokens=2, overwrite_output_dir=True)
    after = predictions_in(folder / "predictions.csv")
    assert all(long.startswith(short) for (_, long), (_, short) in zip(before, after, strict=True))
    assert before != after


def test_a_yaml_for_training_serves_here_as_well(score, tiny_model, tmp_path):
    config = tmp_path / "model.yaml"
    lines = (
        f"model_name_or_path: {tiny_model}",
        "num_train_epochs: 3",
        "prompt_form: chat",
        "output_dir: /proc/not/here",
    )
    config.write_text("\n".join(lines), "utf-8")
    assert {row["name"] for row in results_in(score(config=config))} == {tiny_model.name}


def test_an_unknown_key_of_the_yaml_is_still_an_error(score, tmp_path):
    (tmp_path / "model.yaml").write_text("num_train_epoch: 3\n", "utf-8")
    with pytest.raises(InputError, match="unknown key `num_train_epoch`"):
        score(config=tmp_path / "model.yaml")


def test_a_summary_may_be_as_long_as_in_training_unless_told_otherwise(trained):
    settings = json.loads((trained / "phase1" / "manifest.json").read_text("utf-8"))["settings"]
    assert Summarizer.load(str(trained / "phase1")).max_new_tokens == settings["max_new_tokens"] == 128
    told = Summarizer.load(str(trained / "phase1"), prompt_args=PromptArguments(max_new_tokens=9))
    assert told.max_new_tokens == 9
