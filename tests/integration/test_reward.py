"""recipes/reward.py from end to end on a tiny model: its stages, what it writes, refuses and resumes."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import change_weights, start_and_kill
from test_bad_input import files_in, refused
from transformers import AutoConfig, AutoModelForCausalLM

from alignment import run
from alignment.arguments import STAGES
from alignment.data import load_records
from alignment.errors import InputError
from alignment.launch import launch
from alignment.ppo.roles import HEAD
from alignment.records import Record
from alignment.submission import one_line
from recipes import reward, sft
from reward.attribution import Attribution
from reward.candidates import CORRUPTED
from reward.model import RewardModel
from reward.pairs import BINS

pytestmark = pytest.mark.usefixtures("one_core")  # which makes runs agree to the bit

ADAPTER = "adapter_model.safetensors"
SPLITS = ("train", "held_out")
Flags = Callable[..., list[str]]

# 12 steps, and so many samples, one at a time, that there is time to kill it among them.
LONG = {"early_stopping_patience": 9, "save_total_limit": 10, "samples": 4, "sample_batch_size": 1}
# Labels of references and corruptions: no model is loaded.
QUICK = {"samples": 0, "stage": "label"}


@pytest.fixture(scope="module")
def sft_model(one_core: None, sft_flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What phase 1 left after three steps."""
    folder = tmp_path_factory.mktemp("sft")
    quick = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "rouge_eval_rows": 0}
    sft.main(sft_flags_for(folder, phases=1, num_train_epochs=1, **quick))
    return folder / "phase1"


@pytest.fixture(scope="module")
def flags_for(sft_model: Path, tiny_model: Path, dialogues: Path) -> Flags:
    """Flags for a run of seconds into a folder; keyword arguments replace or add flags."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        values: dict[str, object] = {
            "model_name_or_path": tiny_model, "sft_model": sft_model, "dataset_path": dialogues,
            "output_dir": output_dir, "dtype": "float32", "samples": 2, "max_new_tokens": 8, "num_train_epochs": 2,
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "eval_steps": 2, "save_steps": 2,
            "learning_rate": 1e-2, "use_cpu": True,
        } | changes  # fmt: skip
        return [str(word) for name, value in values.items() for word in (f"--{name}", value)]

    return flags


@pytest.fixture
def flags(flags_for: Flags, tmp_path: Path) -> Flags:
    """`flags_for` the folder `tmp_path / "out"`."""
    return lambda **changes: flags_for(tmp_path / "out", **changes)


def start(flags: list[str]) -> None:
    """As the recipe is started, with its number of threads."""
    launch(lambda: reward.main(flags))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def written(path: Path, *content: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), "utf-8")
    return path


def names_in(folder: Path) -> set[str]:
    """The files below a folder, without those of checkpoints."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if "checkpoint-" not in name}


@pytest.fixture(scope="module")
def stages(flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    """A folder in which one stage after the other was asked for, and the files in it after each."""
    folder = tmp_path_factory.mktemp("stages") / "out"
    found = {}
    for stage in STAGES:
        start(flags_for(folder, stage=stage))
        found[stage] = names_in(folder)
    return folder, found


@pytest.fixture(scope="module")
def finished(stages: tuple[Path, dict[str, set[str]]]) -> Path:
    """The output folder of all stages."""
    return stages[0]


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` that a test may change."""
    return shutil.copytree(finished, tmp_path / "out")


# --- what is written


NEW_FILES = {
    "sample": {f"data/{split}.samples.{ending}" for split in SPLITS for ending in ("jsonl", "facts.json")},
    "label": {f"data/{split}.labels.jsonl" for split in SPLITS},
    "pair": {f"data/{split}.pairs.jsonl" for split in SPLITS},
    "train": {
        f"model/{name}"
        for name in (
            ADAPTER, HEAD, "adapter_config.json", "attribution.json", "reward.json", "manifest.json", "tokenizer.json",
            "tokenizer_config.json",
        )
    },
    "report": {"report.json", "report.html"},
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_its_files_and_none_of_the_next(stages: tuple[Path, dict[str, set[str]]], stage: str):
    before = STAGES[: STAGES.index(stage)]
    so_far = set().union(*(stages[1][name] for name in before))
    assert stages[1][stage] - so_far - {"model/README.md"} == NEW_FILES[stage]


def test_each_dialogue_has_its_samples(finished: Path):
    samples = rows(finished / "data" / "train.samples.jsonl")
    assert sorted(Counter(row["id"] for row in samples).values()) == [2] * 12
    assert {row["kind"] for row in samples} == {"sample"}


def test_samples_references_and_corruptions_are_labelled(finished: Path):
    labels = rows(finished / "data" / "train.labels.jsonl")
    assert {"sample", "reference", "repetition", "other_dialogue"} <= {row["kind"] for row in labels}
    assert {"label", "rouge", "roles", "formal", "hangul", "own_words", "failed", "rating"} <= labels[0].keys()
    assert all(row["label"] <= 1 for row in labels)


@pytest.mark.parametrize("split", SPLITS)
def test_the_pairs_have_the_columns_of_trl(finished: Path, split: str):
    pairs = rows(finished / "data" / f"{split}.pairs.jsonl")
    columns = {"prompt", "chosen", "rejected", "margin", "id", "kind", "length_bin"}
    assert all(pair.keys() == columns for pair in pairs)
    assert all(pair["prompt"].endswith("### Response:\n") for pair in pairs)
    assert {pair["length_bin"] for pair in pairs} <= set(BINS)


def test_the_chosen_summary_has_the_better_label(finished: Path):
    labels = {(row["id"], row["text"]): row["label"] for row in rows(finished / "data" / "train.labels.jsonl")}
    for pair in rows(finished / "data" / "train.pairs.jsonl"):
        margin = labels[pair["id"], pair["chosen"]] - labels[pair["id"], pair["rejected"]]
        assert pair["margin"] == pytest.approx(margin)
        assert margin >= 0.05
        assert pair["kind"].split(" > ")[0] not in CORRUPTED


def test_no_dialogue_has_pairs_in_both_splits(finished: Path):
    train, held_out = ({row["prompt"] for row in rows(finished / "data" / f"{split}.pairs.jsonl")} for split in SPLITS)
    assert train
    assert held_out
    assert not train & held_out


def test_the_report_says_what_the_model_is_worth(finished: Path):
    report = json.loads((finished / "report.json").read_text("utf-8"))
    expected = {
        "fit", "min_accuracy", "accuracy", "pairs", "without_faults", "dialogues", "by_kind", "by_length_bin",
        "spearman", "calibration", "length_correlation", "length_slope", "scores", "lengths",
    }  # fmt: skip
    assert report.keys() == expected
    assert report["pairs"] == len(rows(finished / "data" / "held_out.pairs.jsonl"))
    assert report["dialogues"] == 4
    assert report["fit"] == (report["accuracy"] >= 0.65)


def test_the_manifest_tells_what_made_the_model(finished: Path, sft_model: Path):
    told = run.read_manifest(finished / "model")
    assert told["finished"] is True
    assert told["world_size"] == 1
    assert told["settings"]["samples"] == 2
    assert told["settings"]["min_margin"] == 0.05
    assert {ADAPTER, "adapter_config.json"} <= {*told["starts_from"]}
    assert told["data"]["train"]["pairs"] == len(rows(finished / "data" / "train.pairs.jsonl"))


def test_training_lowers_the_held_out_loss(flags: Flags, tmp_path: Path):
    # 36 steps, not 12: for the first 12 the loss of a tiny model at random stays where it was.
    often = {"eval_steps": 12, "save_steps": 12}
    start(flags(stage="train", num_train_epochs=6, learning_rate=3e-3, early_stopping_patience=20, **often))
    log = run.read_manifest(tmp_path / "out" / "model")["log"]
    losses = [line["eval_loss"] for line in log if "eval_loss" in line]
    assert losses[-1] < losses[0] - 0.05


def test_the_best_checkpoint_is_the_result_with_its_head(flags: Flags, tmp_path: Path):
    rising = {"learning_rate": 3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 12, "max_steps": 12}
    start(flags(samples=0, stage="train", early_stopping_patience=9, save_total_limit=10, **rising))
    model = tmp_path / "out" / "model"
    told = run.read_manifest(model)
    losses = {line["step"]: line["eval_loss"] for line in told["log"] if "eval_loss" in line}
    best, last = model / f"checkpoint-{min(losses, key=losses.get)}", model / f"checkpoint-{max(losses)}"
    assert Path(told["best_checkpoint"]) == best
    for name in (ADAPTER, HEAD):
        assert (model / name).read_bytes() == (best / name).read_bytes() != (last / name).read_bytes()


def test_the_scores_of_held_out_references_have_mean_0_and_deviation_1(finished: Path):
    report = json.loads((finished / "report.json").read_text("utf-8"))
    scores = report["scores"]["reference"]
    mean = sum(scores) / len(scores)
    assert mean == pytest.approx(0, abs=1e-3)
    assert sum((score - mean) ** 2 for score in scores) / len(scores) == pytest.approx(1, abs=1e-3)


def test_the_model_loads_and_scores(finished: Path, dialogues: Path):
    records, _ = load_records(dialogues, split="eval")
    report = json.loads((finished / "report.json").read_text("utf-8"))
    model = RewardModel.load(finished / "model")
    references = [(record.dialogue, text) for record in records for text in record.references]
    assert model.score(*map(list, zip(*references, strict=True))) == pytest.approx(
        report["scores"]["reference"], abs=1e-3
    )


def test_who_does_what_is_told_beside_the_head(finished: Path, train: list[Record]):
    assert Attribution.load(finished / "model") == Attribution.fit(train) != Attribution({})
    assert json.loads((finished / "model" / "reward.json").read_text("utf-8"))["attribution_weight"] > 0


# --- an output folder that is there already


def test_a_second_start_does_nothing_again(finished: Path, flags_for: Flags, capsys: pytest.CaptureFixture[str]):
    def state() -> dict[Path, int]:
        files = [*finished.glob("data/*.samples.*"), *(finished / "model").rglob("*")]
        return {path: path.stat().st_mtime_ns for path in files}

    before = state()
    start(flags_for(finished))
    assert state() == before
    said = capsys.readouterr().err
    assert "Reward model: already done" in said
    assert "Sampling" not in said


def test_another_least_accuracy_needs_no_training(copied: Path, flags: Flags):
    start(flags(min_accuracy=0))
    assert json.loads((copied / "report.json").read_text("utf-8"))["fit"] is True


def test_the_page_of_another_recipe_is_not_deleted(flags: Flags, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("of PPO", "utf-8")
    with pytest.raises(InputError, match=r"report\.html exists\. Choose another --output_dir"):
        reward.main(flags())
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


def test_other_settings_are_refused_and_pairs_left_as_they_were(copied: Path, flags: Flags, tmp_path: Path):
    telling = ["a model was trained on what it holds", "--overwrite_output_dir true"]
    refused(reward.main, flags(roles_weight=5), tmp_path, copied / "data" / "train.labels.jsonl", *telling)


def test_other_settings_of_training_are_refused_by_name(copied: Path, flags: Flags, tmp_path: Path):
    refused(reward.main, flags(learning_rate=0.02), tmp_path, "other settings (learning_rate 0.01 -> 0.02)")


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"samples": 3}, "count"),
        ({"seed": 7}, "seed"),
        ({"temperatures": 0.5}, "temperatures"),
        ({"max_train_rows": 11}, "dialogues"),
        ({"max_new_tokens": 16}, "use"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_samples_made_otherwise_are_not_taken(changes: dict, telling: str, copied: Path, flags: Flags, tmp_path: Path):
    refused(reward.main, flags(stage="sample", **changes), tmp_path, "holds samples made otherwise", telling)


def test_samples_of_another_sft_model_are_not_taken(copied: Path, flags: Flags, sft_model: Path, tmp_path: Path):
    other = Path(shutil.copytree(sft_model, tmp_path / "other"))
    change_weights(other / ADAPTER)
    refused(reward.main, flags(sft_model=other), tmp_path, "holds samples made otherwise", "starts_from")


def test_a_model_grown_from_another_sft_model_is_not_taken(flags: Flags, sft_model: Path, tmp_path: Path):
    how = {"samples": 0, "stage": "train", "max_steps": 1}
    other = Path(shutil.copytree(sft_model, tmp_path / "other"))
    start(flags(**how, sft_model=other))
    os.utime(other / ADAPTER, (1, 1))  # as in a copy
    before = files_in(tmp_path / "out")
    start(flags(**how, sft_model=other))  # which is done already
    assert files_in(tmp_path / "out") == before
    change_weights(other / ADAPTER)
    refused(reward.main, flags(**how, sft_model=other), tmp_path, "model: holds a run", "other weights to start from")


def test_overwriting_samples_and_trains_anew(copied: Path, flags: Flags):
    start(flags(overwrite_output_dir=True, samples=1, max_steps=1, stage="train"))
    assert len(rows(copied / "data" / "train.samples.jsonl")) == 12
    assert run.read_manifest(copied / "model")["settings"]["max_steps"] == 1
    assert not (copied / "report.json").exists()  # which was on another model


# --- killed and resumed


def journaled(folder: Path) -> dict[int, str]:
    """What a killed run had sampled at the first temperature, as and by its place in the file of samples."""
    (journal,) = (folder / "data").glob("train.samples-at-0.7.*.journal")
    _, *lines = journal.read_bytes().split(b"\n")
    return {index: one_line(text) for index, text, _ in map(json.loads, lines[:-1])}


@dataclass
class Killed:
    """A run killed while it sampled, then while it trained, and then ended; and what was there in between."""

    folder: Path
    sampled: dict[int, str]
    said: list[str]
    checkpoint_time: int


@pytest.fixture(scope="module")
def killed(flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed") / "out"
    flags = flags_for(folder, **LONG, resume_from_checkpoint=True)
    start_and_kill("reward", flags, when="Sampling at temperature 0.7: ")
    sampled = journaled(folder)
    said = start_and_kill("reward", flags, when="Reward model step 5/12")
    checkpoint = folder / "model" / "checkpoint-4" / "trainer_state.json"
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    assert not run.read_manifest(folder / "model")["finished"]
    start(flags)
    return Killed(folder, sampled, said, before)


@pytest.fixture(scope="module")
def uninterrupted(killed: Killed, flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the same samples that was never killed."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "out"
    (folder / "data").mkdir(parents=True)
    for path in killed.folder.glob("data/*.samples.*"):
        shutil.copy(path, folder / "data")
    start(flags_for(folder, **LONG))
    return folder


def test_a_killed_run_samples_nothing_twice(killed: Killed):
    assert 0 < len(killed.sampled) < 24
    samples = rows(killed.folder / "data" / "train.samples.jsonl")
    assert len(samples) == 48
    assert {index: samples[index]["text"] for index in killed.sampled} == killed.sampled
    totals = re.findall(r"Sampling at temperature (0\.7|1\.0): \d+/(\d+) rows", "".join(killed.said))
    assert list(dict.fromkeys(totals))[:2] == [("0.7", str(24 - len(killed.sampled))), ("1.0", "24")]


def test_no_journal_of_a_killed_run_remains(killed: Killed):
    assert not list(killed.folder.rglob("*.journal"))


def test_a_killed_run_goes_on_from_its_checkpoint(killed: Killed):
    checkpoint = killed.folder / "model" / "checkpoint-4" / "trainer_state.json"
    assert checkpoint.stat().st_mtime_ns == killed.checkpoint_time


@pytest.mark.parametrize("name", [ADAPTER, HEAD, "reward.json"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(killed: Killed, uninterrupted: Path, name: str):
    assert (killed.folder / "model" / name).read_bytes() == (uninterrupted / "model" / name).read_bytes()


@pytest.mark.parametrize("name", ["loss", "eval_loss"])
def test_a_killed_and_resumed_run_logs_the_same_losses(killed: Killed, uninterrupted: Path, name: str):
    one, other = (run.read_manifest(folder / "model")["log"] for folder in (killed.folder, uninterrupted))
    losses = [line[name] for line in other if name in line]
    assert len(losses) >= 6
    assert [line[name] for line in one if name in line] == losses


def test_an_unfinished_run_is_not_overwritten(killed: Killed, flags_for: Flags, tmp_path: Path):
    copied = shutil.copytree(killed.folder, tmp_path / "out")
    manifest = copied / "model" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text("utf-8")) | {"finished": False}), "utf-8")
    argv = flags_for(copied, **LONG)
    refused(reward.main, argv, tmp_path, "unfinished run", "--resume_from_checkpoint true")


# --- ratings and candidates from elsewhere


@pytest.fixture(scope="module")
def train(dialogues: Path) -> list[Record]:
    return load_records(dialogues, split="train")[0]


def labelled(folder: Path) -> dict[str, dict[str, Any]]:
    """The labels of the training split by text."""
    return {row["text"]: row for row in rows(folder / "data" / "train.labels.jsonl")}


def test_a_human_rating_is_mixed_into_the_label(train: list[Record], flags: Flags, tmp_path: Path):
    name = train[0].id
    content = f"id,candidate,rating\n{name},둘은 인사했다.,5\n{name},아무 말도 없다.,1\n{name},둘이 만났다.,4\n"
    (tmp_path / "ratings.csv").write_text(content, "utf-8")
    start(flags(**QUICK, ratings=tmp_path / "ratings.csv", ratings_weight=1))
    labels = labelled(tmp_path / "out")
    by_text = {text: (row["kind"], row["rating"], row["label"]) for text, row in labels.items() if row["rating"]}
    assert by_text == {"둘은 인사했다.": ("rated", 1.0, 1.0), "둘이 만났다.": ("rated", 0.75, 0.75)}
    assert (labels["아무 말도 없다."]["rating"], labels["아무 말도 없다."]["label"]) == (0.0, 0.0)
    assert labels[train[1].references[0]]["rating"] is None


def test_pairs_that_people_chose_are_trained_on(train: list[Record], flags: Flags, tmp_path: Path):
    content = f"id,chosen,rejected\n{train[0].id},둘은 인사했다.,아무 말도 없다.\n"
    (tmp_path / "ratings.csv").write_text(content, "utf-8")
    start(flags(samples=0, stage="pair", ratings=tmp_path / "ratings.csv", ratings_weight=0.3))
    (human,) = [row for row in rows(tmp_path / "out" / "data" / "train.pairs.jsonl") if row["kind"] == "human"]
    assert (human["id"], human["chosen"], human["rejected"]) == (train[0].id, "둘은 인사했다.", "아무 말도 없다.")
    assert human["margin"] == 0.3
    assert train[0].dialogue in human["prompt"]


def test_candidates_from_a_file_are_labelled_and_compared(train: list[Record], flags: Flags, tmp_path: Path):
    text = train[0].references[0].replace("#Person1#", "#Person9#")
    path = written(tmp_path / "more.jsonl", {"id": train[0].id, "text": text})
    start(flags(samples=0, stage="pair", candidates=path))
    assert labelled(tmp_path / "out")[text]["kind"] == "given"
    pairs = rows(tmp_path / "out" / "data" / "train.pairs.jsonl")
    assert "reference > given" in {pair["kind"] for pair in pairs if pair["rejected"] == text}


def test_without_samples_no_sft_model_is_loaded(flags: Flags, sft_model: Path, tmp_path: Path):
    bare = shutil.copytree(sft_model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    start(flags(**QUICK, sft_model=bare))
    assert (tmp_path / "out" / "data" / "held_out.labels.jsonl").exists()


# --- what users get wrong


def test_a_missing_sft_model(flags: Flags, tmp_path: Path):
    telling = [f"--sft_model {tmp_path / 'none'}", "no adapter", "recipes/sft.py"]
    refused(reward.main, flags(sft_model=tmp_path / "none"), tmp_path, *telling)


def test_a_whole_model_in_place_of_an_adapter(flags: Flags, tiny_model: Path, tmp_path: Path):
    refused(reward.main, flags(sft_model=tiny_model), tmp_path, tiny_model, "a whole model, where a trained adapter")


def test_an_sft_model_of_another_base(flags: Flags, tiny_model: Path, sft_model: Path, tmp_path: Path):
    other = tmp_path / "base"
    config = AutoConfig.from_pretrained(tiny_model, hidden_size=32, head_dim=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    telling = [sft_model, f"its adapter is for {tiny_model}, not for {other}", f"--model_name_or_path {tiny_model}"]
    refused(reward.main, flags(model_name_or_path=other), tmp_path, *telling)


@pytest.fixture
def data(tmp_path: Path) -> Flags:
    """Writes a file of rows and gives the flag that names it."""

    def write(*content: dict[str, Any], name: str = "dataset_path") -> dict[str, Any]:
        return {name: written(tmp_path / f"{name}.jsonl", *content)}

    return write


def row(name: str, summary: str) -> dict[str, str]:
    return {"fname": name, "dialogue": f"#Person1#: 나는 {name}야.\n#Person2#: 응.", "summary": summary}


def test_dialogues_without_references(flags: Flags, data: Flags, tmp_path: Path):
    plain = [{name: text for name, text in row(name, "").items() if name != "summary"} for name in "ab"]
    refused(reward.main, flags(**data(*plain)), tmp_path, "no column or key references or summaries or summary")


def test_a_dialogue_without_a_reference(flags: Flags, data: Flags, tmp_path: Path):
    changes = data(row("a", "소개한다."), row("b", ""))
    refused(reward.main, flags(**changes), tmp_path, "row 2: no reference summary", "--bad_rows skip")


def test_dialogues_that_are_all_held_out(flags: Flags, data: Flags, tmp_path: Path):
    one, other = row("a", "소개한다."), row("b", "말한다.")
    changes = data(one, other) | data(one | {"fname": "c"}, other | {"fname": "d"}, name="eval_dataset_path")
    refused(reward.main, flags(**changes), tmp_path, "every dialogue to train on is held out too")


def test_an_id_in_both_splits_where_ratings_name_dialogues_by_it(flags: Flags, data: Flags, tmp_path: Path):
    changes = data(row("a", "소개한다."), row("b", "말한다."))
    changes |= data(row("c", "듣는다.") | {"fname": "b"}, name="eval_dataset_path")
    changes |= data({"id": "b", "candidate": "말했다.", "rating": 1}, name="ratings")
    refused(
        reward.main,
        flags(**changes),
        tmp_path,
        "1 ids of dialogues to train on are those of held-out ones too, such as 'b'",
    )


def test_summaries_that_are_all_the_same(flags: Flags, data: Flags, tmp_path: Path):
    argv = flags(samples=0, stage="pair", **data(*(row(name, "응") for name in "abc")))
    with pytest.raises(InputError, match=r"no pair among them.*Raise --samples, or give other --candidates"):
        reward.main(argv)
    assert not list(tmp_path.rglob("*.pairs.jsonl"))


def test_a_margin_that_no_pair_reaches(flags: Flags, tmp_path: Path):
    with pytest.raises(InputError, match=r"no two labels differ by 10\.0 \(--min_margin\)"):
        reward.main(flags(samples=0, stage="pair", min_margin=10))
    assert not list(tmp_path.rglob("*.pairs.jsonl"))


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        ({"id": "nobody", "candidate": "요약", "rating": 3}, ["id 'nobody' is none of the 16 dialogues"]),
        ({"id": "nobody", "chosen": "요약", "rejected": "오약"}, ["id 'nobody' is none of the 16 dialogues"]),
        ({"candidate": "요약", "rating": "nan"}, ["rating 'nan': expected a finite number"]),
        ({"candidate": "요약", "rating": "inf"}, ["rating 'inf': expected a finite number"]),
        ({"candidate": "요약", "rating": "good"}, ["rating 'good': expected a finite number"]),
        ({"candidate": "요약", "rating": 3}, ["every rating is 3"]),
        ({"summary": "요약", "rating": 3}, ["expected id,candidate,rating or id,chosen,rejected"]),
        ({"candidate": None, "rating": 3}, ["row 1: no candidate"]),
        ({"chosen": "요약", "rejected": None}, ["row 1: no rejected"]),
        ({"chosen": "요약", "rejected": "요약"}, ["row 1: expected texts, none empty and no two the same"]),
    ],
    ids=[
        "unknown-id", "unknown-id-of-a-pair", "nan", "infinite", "word", "all-equal", "columns", "no-candidate",
        "no-rejected", "chosen-is-rejected",
    ],
)  # fmt: skip
def test_faulty_ratings(content: dict, telling: list[str], train: list[Record], flags: Flags, data: Flags, tmp_path):
    changes = data({"id": train[0].id} | content, name="ratings")
    refused(reward.main, flags(**QUICK, **changes), tmp_path, changes["ratings"], *telling)


def test_candidates_of_an_unknown_dialogue(flags: Flags, data: Flags, tmp_path: Path):
    changes = data({"id": "nobody", "text": "요약"}, name="candidates")
    refused(reward.main, flags(**QUICK, **changes), tmp_path, changes["candidates"], "id 'nobody' is none of the 16")


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (["--stage", "nonsense"], "--stage nonsense: expected one of sample, label, pair, train, report"),
        (["--rouge_weight", "-1"], "--rouge_weight -1.0: expected a number, 0 or more"),
        (["--roles_weight", "nan"], "--roles_weight nan: expected a number, 0 or more"),
        (["--ratings_weight", "2"], "--ratings_weight 2.0: expected a number, 0 or up to 1"),
        (["--max_length_ratio", "0.5"], "--max_length_ratio 0.5: expected a number, 1 or more"),
        (["--label_profile", "loose"], "--label_profile loose: expected one of"),
        (["--samples", "-1"], "--samples -1: expected 0 or more"),
        (["--temperatures", "0"], "--temperatures [0.0]: expected numbers above 0"),
        (["--attribution_weight", "-1"], "--attribution_weight -1.0: expected 0 or more"),
        (["--min_accuracy", "65"], "--min_accuracy 65.0: expected a share from 0 to 1"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_faulty_flags(words: list[str], telling: str, flags: Flags, tmp_path: Path):
    refused(reward.main, [*flags(), *words], tmp_path, telling)


def test_an_output_folder_with_something_else_in_it(flags: Flags, tmp_path: Path):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "thesis.txt").write_text("mine", "utf-8")
    for changes in ({}, {"overwrite_output_dir": True}):
        with pytest.raises(InputError, match="Choose another"):
            reward.main(flags(samples=0, **changes))
    assert files_in(tmp_path / "out" / "model") == {tmp_path / "out" / "model" / "thesis.txt": b"mine"}
