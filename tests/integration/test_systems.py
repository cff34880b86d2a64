"""recipes/evaluate.py with several models as one system, and the way from there to the best one in use."""

import csv
import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from recipe_runs import change_weights
from safetensors.torch import save_file

from alignment import data, pretrained, summarizer
from alignment.arguments import ModelArguments, PromptArguments
from alignment.errors import InputError
from alignment.generation import Decoding
from alignment.journal import Journal
from alignment.ppo.roles import HEAD
from alignment.run import read_manifest, write_json
from alignment.submission import one_line
from alignment.summarizer import Summarizer
from alignment.weights import size_of
from recipes import evaluate, sft, summarize
from reward.consensus import consensus
from reward.evaluation import say_winner, systems_of
from reward.model import RewardModel, head_of, load_scorer
from reward.system import OneAtATime, System, SystemArguments

TOKENS = 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, dialogues) -> list[Path]:
    """The folders of phase1 and phase2."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    flags = {
        "model_name_or_path": tiny_model, "dataset_path": dialogues, "output_dir": folder, "max_new_tokens": TOKENS,
        "dtype": "float32", "num_train_epochs": 2, "phase2_epochs": 2, "learning_rate": 1e-2, "rouge_eval_rows": 0,
        "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "use_cpu": True,
    }  # fmt: skip
    sft.main([f"--{name}={value}" for name, value in flags.items()])
    return [folder / "phase1", folder / "phase2"]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory, trained, tiny_model) -> Path:
    """What recipes/reward.py leaves, with a head that was never trained."""
    folder = tmp_path_factory.mktemp("reward")
    config = ModelArguments(model_name_or_path=str(tiny_model), dtype="float32")
    scorer = load_scorer(config, trained[1])
    torch.manual_seed(0)
    torch.nn.init.normal_(head_of(scorer).weight)
    scorer.save_pretrained(folder / "model")
    save_file({"weight": head_of(scorer).weight.detach()}, folder / "model" / HEAD)
    tokenizer = pretrained.load_tokenizer(str(trained[1]))
    tokenizer.save_pretrained(folder / "model")
    model = RewardModel(scorer.eval(), tokenizer, form="instruction", phase=2)
    model.save(folder / "model")
    write_json({"finished": True, "settings": {"dtype": "float32"}}, folder / "model" / "manifest.json")
    write_json({"fit": False, "accuracy": 0.5, "min_accuracy": 0.65}, folder / "report.json")
    return folder


@pytest.fixture(scope="module")
def score_into(dialogues, trained) -> Callable[..., Path]:
    """Runs the recipe on both models with these flags; its output folder."""

    def run(output_dir: Path, model: list[Path] = trained, **flags: object) -> Path:
        flags = {"output_dir": output_dir, "dataset_path": dialogues, "profiles": "strict"} | flags
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", *_several(value))]
        evaluate.main([*words, "--model", *map(str, model)])
        return output_dir

    return run


@pytest.fixture
def score(score_into, tmp_path) -> Callable[..., Path]:
    """`score_into` a fresh folder, if not told otherwise."""
    return lambda output_dir=tmp_path / "out", **flags: score_into(output_dir, **flags)


def _several(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def predictions_in(folder: Path, name: str = "predictions.csv") -> list[str]:
    with (folder / name).open(encoding="utf-8", newline="") as lines:
        return [row[1] for row in list(csv.reader(lines))[1:]]


def result_in(folder: Path) -> dict:
    (result,) = json.loads((folder / "results.json").read_text("utf-8"))
    return result


def dialogues_in(folder: Path) -> list[str]:
    return [record.dialogue for record in data.load_records(folder, split="eval")[0]]


def candidates_by_hand(trained: list[Path], dialogues: Path) -> list[list[str]]:
    """Of each model its own summary and two samples, by dialogue."""
    texts, lists = dialogues_in(dialogues), []
    for one in [Summarizer.load(str(folder)) for folder in trained]:
        samples = one.summarize(texts * 2, Decoding(do_sample=True, temperature=0.9, batch_size=1))
        lists += [one.summarize(texts), samples[: len(texts)], samples[len(texts) :]]
    return [list(own) for own in zip(*lists, strict=True)]


SAMPLES = {"samples": 2, "sample_temperature": 0.9}


# --- each way to combine ----------------------------------------------------------------------------------------------


def test_mbr_takes_the_consensus_of_summaries_and_samples_of_all_models(score, trained, dialogues):
    folder = score(combine="mbr", mbr_profile="aistages", **SAMPLES)
    candidates = candidates_by_hand(trained, dialogues)
    assert min(len(set(texts)) for texts in candidates) > 3  # or there would be nothing to choose
    assert predictions_in(folder) == [one_line(text) for text in consensus(candidates, "aistages")]
    result = result_in(folder)
    assert result["name"] == "mbr-phase1+phase2"
    assert (result["system"]["combine"], result["system"]["samples"]) == ("mbr", 2)


def test_best_of_n_takes_what_the_reward_model_likes_best(score, trained, dialogues, reward_model):
    folder = score(combine="best_of_n", reward_model=reward_model, **SAMPLES)
    described = json.loads((folder / "results.json").read_text("utf-8"))[0]["system"]["weights_of"]
    assert {"adapter_model.safetensors", "head.safetensors", "reward.json"} <= {
        *described[str(Path(reward_model) / "model")]
    }
    texts = dialogues_in(dialogues)
    scorer = RewardModel.load(str(reward_model / "model"))
    for chosen, dialogue, own in zip(
        predictions_in(folder), texts, candidates_by_hand(trained, dialogues), strict=True
    ):
        scores = scorer.score([dialogue] * len(own), own)
        best = own[scores.index(max(scores))]
        assert chosen == one_line(best)


def test_an_average_and_mixed_distributions_are_systems_too(score, trained, dialogues):
    texts = dialogues_in(dialogues)
    average = Summarizer.load_average([*map(str, trained)], [3.0, 1.0]).summarize(texts)
    folder = score(combine="lora_average", weights=[3, 1])
    assert predictions_in(folder) == [one_line(text) for text in average]
    first, second = (Summarizer.load(str(one)) for one in trained)
    mixed = first.summarize(texts, Decoding(num_beams=2), others=[second])
    folder = score(folder.parent / "mixed", combine="distributions", num_beams=2)
    assert predictions_in(folder) == [one_line(text) for text in mixed]


def test_the_sizes_are_those_of_base_and_adapters(score, trained, tiny_model):
    folder = score(combine="lora_average")
    base = size_of(tiny_model)
    own = [size_of(one) for one in trained]
    assert base["numbers"] > 100_000 > own[0]["numbers"] > 1000
    result = result_in(folder)
    assert result["parameters"] == base["numbers"] + own[0]["numbers"] + own[1]["numbers"]
    assert result["trained_parameters"] == own[0]["numbers"] + own[1]["numbers"]
    assert result["disk_bytes"] == sum(one["bytes"] for one in own)


def test_the_base_of_a_reward_model_is_counted_at_the_revision_that_it_was_trained_on(
    trained, reward_model, tiny_model, tmp_path, monkeypatch
):
    judge = shutil.copytree(reward_model, tmp_path / "judge")
    manifest = json.loads((judge / "model" / "manifest.json").read_text("utf-8"))
    manifest["settings"]["model_revision"] = "v2"
    (judge / "model" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    asked = []
    monkeypatch.setattr("reward.system.size_of", lambda *args: asked.append(args) or size_of(*args))
    how = SystemArguments(combine="best_of_n", reward_model=str(judge), samples=1)
    System((str(trained[0]),), how, Decoding(), ModelArguments(), PromptArguments()).size()
    assert [revision for folder, revision in asked if folder == str(tiny_model)] == ["main", "v2"]


def test_the_size_of_a_base_on_the_hub_is_that_of_its_cached_weights(tiny_model, tmp_path, monkeypatch):
    cache = tmp_path / "models--owner--name"
    shutil.copytree(tiny_model, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert size_of("owner/name") == size_of(tiny_model)
    assert size_of("owner/other") == {"numbers": 0, "bytes": 0}


def test_a_model_in_this_folder_has_the_name_of_the_folder(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    (name,) = systems_of(["."], SystemArguments(), {"": Decoding()}, ModelArguments(), PromptArguments())
    assert name == trained[0].name
    assert read_manifest(".") == read_manifest(trained[0])


def test_an_adapter_without_a_manifest_is_used_as_phase_1_and_that_is_told(trained, tmp_path, capsys):
    copied = shutil.copytree(trained[1], tmp_path / "copied")
    assert Summarizer.load(str(copied)).phase == 2
    assert "no manifest.json" not in capsys.readouterr().err
    (copied / "manifest.json").unlink()
    assert Summarizer.load(str(copied)).phase == 1
    assert "copied: no manifest.json beside this adapter. It gets the prompts of phase 1" in capsys.readouterr().err


def test_a_sample_does_not_depend_on_its_batch_or_on_a_kill(trained, dialogues):
    summarizer, texts = Summarizer.load(str(trained[0])), dialogues_in(dialogues)
    together = summarizer.summarize(texts, Decoding(do_sample=True, batch_size=4))
    assert summarizer.summarize(texts, Decoding(do_sample=True, batch_size=1)) == together
    assert summarizer.summarize(texts, Decoding(do_sample=True, seed=1)) != together
    assert len(set(together)) == len(texts)


def test_a_system_works_without_journals(trained, dialogues):
    system = System(tuple(map(str, trained)), SystemArguments(combine="mbr", samples=1))
    summaries, seconds = system.summarize(dialogues_in(dialogues))
    assert len(summaries) == 4
    assert seconds == 0


def test_a_model_goes_before_the_next_system_is_measured_unless_that_uses_it():
    class Model:
        pass

    loaded = OneAtATime()
    one = weakref.ref(loaded("one", Model))
    loaded.free_unless("one")
    assert loaded("one", Model) is one() is not None
    loaded.free_unless("another")
    assert one() is None


def test_seconds_are_those_of_writing_and_not_of_loading(score, monkeypatch):
    call, day = OneAtATime.__call__, 86_400

    def load_for_a_day(self: OneAtATime, *what: object) -> object:
        self.seconds += day  # which the clock did not see, so that the seconds of writing are fewer by as much
        return call(self, *what)

    monkeypatch.setattr(OneAtATime, "__call__", load_for_a_day)
    assert -2 * day < result_in(score(combine="lora_average"))["seconds"] < 0


def test_systems_on_one_model_with_different_prompts_keep_apart(trained, dialogues):
    loaded, texts = OneAtATime(), dialogues_in(dialogues)
    chat, usual = (
        System((str(trained[0]),), prompt_args=PromptArguments(prompt_form=form)) for form in ("chat", "instruction")
    )
    first, second = (system.summarize(texts, loaded=loaded)[0] for system in (chat, usual))
    assert first != second == usual.summarize(texts)[0]


def test_a_killed_system_goes_on_with_the_candidates_it_has(score, monkeypatch, tmp_path):
    whole = score(tmp_path / "whole", combine="mbr", **SAMPLES)
    add, added = Journal.add, []

    def add_and_die(journal: Journal, index: int, text: str) -> None:
        add(journal, index, text)
        added.append(index)
        if len(added) == 9:  # of 2 x 3 x 4
            raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Journal, "add", add_and_die)
        with pytest.raises(KeyboardInterrupt):
            score(combine="mbr", **SAMPLES)
    asked: list[int] = []
    real = summarizer.generate
    monkeypatch.setattr(summarizer, "generate", lambda *a, **k: asked.append(len(a[2])) or real(*a, **k))
    folder = score(combine="mbr", **SAMPLES)
    assert sum(asked) == 24 - 9
    assert predictions_in(folder) == predictions_in(whole)
    assert sorted(file.name for file in folder.iterdir()) == ["dialogues.jsonl", "predictions.csv", "results.json"]


# --- decoding and post-processing -------------------------------------------------------------------------------------


def test_a_grid_scores_each_setting_and_says_which_wins(score, trained, dialogues, capsys):
    folder = score(model=trained[:1], grid=["num_beams=1,3", "length_penalty=0.5,2"])
    results = json.loads((folder / "results.json").read_text("utf-8"))
    names = ["num_beams=1", "num_beams=3-length_penalty=0.5", "num_beams=3-length_penalty=2.0"]
    assert [row["name"] for row in results] == [f"phase1-{name}" for name in names]
    beams = Summarizer.load(str(trained[0])).summarize(dialogues_in(dialogues), Decoding(num_beams=3, length_penalty=2))
    written = predictions_in(folder, "predictions-phase1-num_beams=3-length_penalty=2.0.csv")
    assert written == [one_line(text) for text in beams]
    best = max(results, key=lambda row: row["mean"])
    assert f"Best by strict: {best['name']}" in capsys.readouterr().err


def test_the_best_of_many_has_to_be_ahead_by_more_than_the_best_of_two(capsys):
    first = [50.0] * 40
    other = [50 + (3 if row % 8 else -8) * (row % 2) for row in range(40)]
    say_winner({"a": first, "b": other}, "strict")
    two = capsys.readouterr().err
    say_winner({"a": first, "b": other, **{f"c{i}": first for i in range(9)}}, "strict")
    many = capsys.readouterr().err
    p = [float(re.search(r"p ([\d.e-]+)", said).group(1)) for said in (two, many)]
    assert p[1] == pytest.approx(min(1, 10 * p[0]), rel=0.05)
    assert "after 10 comparisons" in many


def test_post_processing_mends_what_is_written_and_its_effect_is_told(tmp_path, dialogues, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    records = data.load_records(dialogues, split="eval")[0]
    rows = [[record.id, record.references[0] + "</s>"] for record in records]
    with (tmp_path / "raw.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["fname", "summary"], *rows])
    evaluate.main([
        "--predictions", str(tmp_path / "raw.csv"), "--dataset_path", str(dialogues), "--profiles", "strict",
        "--postprocess", "all", "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    assert predictions_in(tmp_path / "out") == [record.references[0] for record in records]
    assert "special_tokens" in capsys.readouterr().out


# --- from runs to the best system in use ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs(score_into, trained, tmp_path_factory) -> list[Path]:
    """Of which the first is the better."""
    folder = tmp_path_factory.mktemp("two_runs")
    return [
        score_into(folder / "average", combine="lora_average", num_beams=2),
        score_into(folder / "short", model=trained[1:], max_new_tokens=1),
    ]


@pytest.fixture
def compared(two_runs, tmp_path) -> Callable[..., Path]:
    """Two runs, compared with these flags into a folder."""

    def run(**flags: object) -> Path:
        flags = {"output_dir": tmp_path / "report", "profiles": "strict"} | flags
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", *_several(value))]
        evaluate.main(["--compare", *map(str, two_runs), *words])
        return tmp_path / "report"

    return run


def test_the_best_system_works_alone_and_writes_what_was_scored(compared, two_runs, dialogues, tmp_path):
    test = tmp_path / "test.jsonl"
    rows = [{"no": record.id, "dialogue": record.dialogue} for record in data.load_records(dialogues, split="eval")[0]]
    test.write_text("\n".join(json.dumps(row) for row in [*rows, {"no": "bad", "dialogue": ""}]), "utf-8")
    folder = compared(select="strict", submission=test, columns='{"id": "no"}', bad_rows="skip")
    (line,) = (folder / "submission.rejected.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["fault"] == "empty dialogue"
    assert (folder / "report.html").is_file()
    board = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    assert "lora_average-phase1+phase2" in json.dumps(board)

    best = shutil.move(folder / "best", tmp_path / "elsewhere")
    system = System.load(str(best))
    assert all(Path(one).is_relative_to(best) for one in system.models)
    assert (system.how.combine, system.decoding.num_beams) == ("lora_average", 2)
    expected = predictions_in(two_runs[0])
    summarize.main(
        ["--model", str(best), "--input", str(test), "--output", str(tmp_path / "out.csv"), "--columns", '{"id": "no"}',
         "--bad_rows", "skip"]
    )  # fmt: skip
    assert predictions_in(tmp_path, "out.csv") == expected
    assert predictions_in(folder, "submission.csv") == expected


def test_a_submission_that_was_killed_is_ended_by_the_same_command(compared, dialogues, monkeypatch, tmp_path):
    add = Journal.add

    def add_and_die(journal: Journal, index: int, text: str) -> None:
        add(journal, index, f"표시 {index}")  # made again, it would be another text
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add_and_die)
    with pytest.raises(KeyboardInterrupt):
        compared(select="strict", submission=dialogues)
    monkeypatch.undo()
    assert not (tmp_path / "report" / "submission.csv").exists()
    report = compared(select="strict", submission=dialogues)
    assert sum("표시" in text for text in predictions_in(report, "submission.csv")) == 1
    assert not list(report.glob("*.journal"))


def test_a_killed_submission_does_not_let_others_overwrite(compared, tmp_path):
    report = compared(select="strict")
    (tmp_path / "report" / "submission.0123abcd.0.journal").touch()
    before = (report / "report.html").read_bytes()
    with pytest.raises(InputError, match=r"report\.html exists\. Choose another --output_dir"):
        compared(select="strict")
    assert (report / "report.html").read_bytes() == before


def test_a_chosen_system_keeps_its_own_decoding(compared, dialogues, tmp_path):
    best = compared(select="strict") / "best"
    for flags in (["--num_beams", "4"], ["--max_new_tokens", "4"], ["--postprocess", "all"]):
        with pytest.raises(
            InputError, match=r"best: a chosen system, with decoding, prompt and post-processing of its"
        ):
            summarize.main(
                ["--model", str(best), "--input", str(dialogues), "--output", str(tmp_path / "o.csv"), *flags]
            )
    (best / "system.json").write_text('{"models": ["x"]}', "utf-8")
    with pytest.raises(InputError, match=r"system\.json: not a whole system .*Choose it anew with --select"):
        summarize.main(["--model", str(best), "--input", str(dialogues), "--output", str(tmp_path / "o.csv")])


@pytest.mark.parametrize(
    "flags",
    [
        {"num_beams": 2}, {"combine": "mbr"}, {"grid": "num_beams=1,4"}, {"name": "mine"}, {"prompt_form": "chat"},
        {"dataset_path": "test.csv"}, {"max_eval_rows": 2},
    ],
)  # fmt: skip
def test_a_comparison_takes_nothing_that_was_decided_before(compared, flags, tmp_path):
    with pytest.raises(
        InputError, match=r"--compare: reads what was written. Leave out systems, prompts, decoding and"
    ):
        compared(**flags)
    assert not (tmp_path / "report").exists()


def test_nothing_that_is_there_is_overwritten(compared):
    folder = compared(select="strict")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    with pytest.raises(InputError, match=r"report\.html exists.*--output_dir, or --overwrite_output_dir true"):
        compared(select="strict")
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_the_best_may_be_chosen_again_from_itself(compared, trained, dialogues, tmp_path, score):
    report = compared(select="strict")
    again = score(tmp_path / "again", model=[report / "best"])
    flags = ["--select", "strict", "--output_dir", str(report), "--overwrite_output_dir", "true"]
    evaluate.main(["--compare", str(again), "--profiles", "strict", *flags])
    chosen = System.load(str(report / "best"))
    assert all(list(Path(one).glob("*.safetensors")) for one in chosen.models)
    assert (
        chosen.summarize(dialogues_in(dialogues))[0]
        == System.load(str(report / "best")).summarize(dialogues_in(dialogues))[0]
    )


def test_a_chosen_checkpoint_keeps_prompt_and_length(score, trained, tmp_path, dialogues):
    checkpoint = shutil.copytree(trained[0], tmp_path / "run" / "checkpoint-2")
    shutil.move(checkpoint / "manifest.json", tmp_path / "run" / "manifest.json")
    (checkpoint / "optimizer.pt").write_bytes(b"not to be kept")
    folder = score(tmp_path / "eval", model=[checkpoint])
    evaluate.main(["--compare", str(folder), "--select", "strict", "--output_dir", str(tmp_path / "report")])
    best = tmp_path / "report" / "best"
    assert [one_line(text) for text in System.load(str(best)).summarize(dialogues_in(dialogues))[0]] == predictions_in(
        folder
    )
    assert not list(best.rglob("*.pt"))


def test_another_folder_in_the_place_of_the_best_is_not_replaced(score, trained, tmp_path):
    folder, best = score(model=[trained[0]]), tmp_path / "report" / "best"
    best.mkdir(parents=True)
    (best / "adapter_model.safetensors").write_bytes(b"of another recipe")
    flags = ["--compare", str(folder), "--select", "strict", "--output_dir", str(tmp_path / "report")]
    with pytest.raises(InputError, match=r"best: no saved system, so it is not replaced"):
        evaluate.main([*flags, "--overwrite_output_dir", "true"])
    assert [file.name for file in best.iterdir()] == ["adapter_model.safetensors"]
    shutil.rmtree(best)
    for _ in range(2):  # the second time in place of the first
        evaluate.main([*flags, "--overwrite_output_dir", "true"])
    assert [file.name for file in best.parent.iterdir() if "best" in file.name] == ["best"]
    assert System.load(str(best)).models


@pytest.mark.parametrize("fate", ["gone", "trained anew"])
def test_weights_that_were_not_scored_are_not_chosen(fate, score, trained, tmp_path):
    model = Path(shutil.copytree(trained[0], tmp_path / "model"))
    folder = score(model=[model])
    if fate == "gone":
        shutil.rmtree(model)
    else:
        change_weights(model / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"model is best, but weights of .*model are gone, or are not those that"):
        evaluate.main(["--compare", str(folder), "--select", "strict", "--output_dir", str(tmp_path / "report")])


def test_a_result_without_its_settings_is_not_chosen_and_is_named(score, trained, tmp_path):
    folder = score(model=[trained[0]])
    results = json.loads((folder / "results.json").read_text("utf-8"))
    for result in results:
        del result["system"]["loaded_as"]
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    with pytest.raises(InputError, match=rf"{folder.name}: a description .*loaded_as.* Evaluate .*phase1 again"):
        evaluate.main(["--compare", str(folder), "--select", "strict", "--output_dir", str(tmp_path / "report")])


def test_predictions_alone_cannot_be_chosen(score, tmp_path, dialogues):
    predictions = score(combine="lora_average") / "predictions.csv"
    flags = ["--dataset_path", str(dialogues), "--output_dir", str(tmp_path / "file"), "--profiles", "strict"]
    evaluate.main(["--predictions", str(predictions), *flags])
    with pytest.raises(InputError, match="--select strict: these runs hold predictions alone, and no model"):
        evaluate.main([
            "--compare", str(tmp_path / "file"), "--select", "strict", "--output_dir", str(tmp_path / "report"),
        ])  # fmt: skip


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"combine": "mean"}, "--combine mean: expected one of mbr, best_of_n, lora_average, distributions"),
        ({"combine": "best_of_n"}, "--combine best_of_n and --reward_model FOLDER: give both or neither"),
        ({"combine": "best_of_n", "reward_model": "nowhere"}, r"--reward_model nowhere: no model/reward\.json in it"),
        ({"combine": "mbr", "weights": [1, 2]}, "--weights: has no effect without --combine lora_average or"),
        ({"combine": "lora_average", "weights": [1]}, "--weights 1.0: expected 2 numbers above 0, one a model"),
        ({"samples": 4}, "--samples: has no effect without --combine mbr or"),
        ({"combine": "mbr", "samples": -1}, "--samples -1"),
        ({"combine": "mbr", "mbr_profile": "rouge"}, "--mbr_profile rouge: expected one of aistages"),
        ({"grid": ["beams=1"]}, "--grid beams=1: expected such as num_beams=1,4"),
        ({"name": "mine"}, "--name mine: there are 2 systems, which have names of their own"),
        ({"combine": "mbr", "samples": 1, "name": "a/b"}, "--name a/b: becomes part of a file's name"),
        ({"temperature": 0}, "--temperature 0.0, --top_p 1.0: expected a number above 0"),
        ({"do_sample": True, "num_beams": 2}, "--do_sample true, --num_beams 2: sample, or search with beams"),
        ({"num_beams": 1, "grid": ["length_penalty=0.6,1"]}, "--grid length_penalty: has no effect without beams"),
        ({"combine": "lora_average", "temperature": 0.3}, "--temperature, --top_p: no effect without --do_sample true"),
        ({"combine": "lora_average", "top_p": 0.9}, "--temperature, --top_p: no effect without --do_sample true"),
        ({"combine": "mbr", "samples": 2, "temperature": 0.3}, "have --sample_temperature, and --top_p"),
        ({"combine": "mbr", "samples": 2, "do_sample": True}, "--samples and --do_sample: the samples come beside"),
        ({"combine": "lora_average", "mbr_profile": "strict"}, "--mbr_profile: has no effect without --combine mbr"),
        ({"combine": "mbr", "sample_temperature": 1}, "--sample_temperature: has no effect without --samples"),
        ({"grid": ["temperature=0.6,1"]}, "--grid temperature and top_p: have no effect without"),
        ({"select": "strict"}, "--select needs --compare"),
        ({"compare": "runs/x"}, "--model, --predictions and --compare: give one of them"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(flags, message, score, tmp_path):
    with pytest.raises(InputError, match=message):
        score(**flags)
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("flags", [{"length_penalty": 0.5}, {"grid": ["length_penalty=0.5,2"]}])
def test_a_length_penalty_without_beams_is_refused(flags, score, trained, tmp_path):
    with pytest.raises(InputError, match=r"--length_penalty 0\.5: has no effect without beams; add --num_beams 4"):
        score(model=trained[:1], **flags)
    assert not (tmp_path / "out" / "results.json").exists()


def test_beams_and_their_length_penalty_go_with_samples_beside_them(trained, dialogues):
    decoding = Decoding(num_beams=2, length_penalty=0.5)
    system = System((str(trained[0]),), SystemArguments(combine="mbr", samples=2), decoding)
    assert all(system.summarize(dialogues_in(dialogues))[0])


def test_one_candidate_is_nothing_to_choose_from(score, trained):
    with pytest.raises(InputError, match="--combine mbr: candidates: 1, and 3 are needed to choose from"):
        score(model=trained[:1], combine="mbr")
    with pytest.raises(InputError, match="candidates: 2, and 3 are needed to choose from: two are as close to each"):
        score(combine="mbr")  # or the first would win always
    with pytest.raises(InputError, match="--combine lora_average: expected two models or more"):
        score(model=trained[:1], combine="lora_average")


def test_models_with_other_tokens_cannot_be_averaged(score, trained, tiny_model, tmp_path):
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    tokenizer = pretrained.load_tokenizer(str(other))
    tokenizer.add_tokens(["새말"])
    tokenizer.save_pretrained(other)
    with pytest.raises(InputError, match=r"phase1 and .*other have different tokenizers.*Use --combine mbr"):
        score(model=[trained[0], other], combine="distributions")


def test_the_prompt_form_of_the_command_line_holds_for_every_model(score, trained, dialogues):
    folder = score(combine="distributions", prompt_form="chat")
    args = (None, PromptArguments(prompt_form="chat"))
    first, second = (Summarizer.load(str(one), *args) for one in trained)
    expected = first.summarize(dialogues_in(dialogues), others=[second])
    assert predictions_in(folder) == [one_line(text) for text in expected]
