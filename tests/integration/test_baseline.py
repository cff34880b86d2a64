"""recipes/baseline.py from end to end on tiny encoder-decoders: what it writes, refuses and resumes, and its use."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import curve, manifest, start_and_kill
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from alignment.data import load_records
from alignment.errors import InputError
from alignment.generation import Decoding
from alignment.launch import launch
from alignment.summarizer import Summarizer
from recipes import baseline, evaluate, sft, summarize
from reward.rouge import rouge

pytestmark = pytest.mark.usefixtures("one_core")  # which makes runs agree to the bit

KINDS = ("bart", "t5", "mt5", "mbart")
WEIGHTS = "model.safetensors"
TALK = "#Person1#: 안녕하세요.\n#Person2#: 네, 반가워요."
GOOD = {"fname": "a", "dialogue": TALK, "summary": "둘은 인사했다."}
OTHER = {"fname": "b", "dialogue": "#Person1#: 점심 먹자.\n#Person2#: 좋아.", "summary": "둘은 점심을 먹는다."}
QUICK = {"num_train_epochs": 1, "rouge_eval_rows": 0, "eval_strategy": "no", "save_strategy": "no"}
QUICK |= {"load_best_model_at_end": False}

each_kind = pytest.mark.parametrize("kind", KINDS)


def train(flags: list[str]) -> None:
    """As the recipe is started, with its number of threads."""
    launch(lambda: baseline.main(flags))


@pytest.fixture(scope="module")
def flags_for(tiny_seq2seq: Callable[[str], Path], dialogues: Path) -> Callable[..., list[str]]:
    """Flags for a run of seconds into a folder; keyword arguments replace or add flags."""

    def flags(output_dir: Path, kind: str = "bart", **changes: object) -> list[str]:
        values: dict[str, object] = {
            "model_name_or_path": tiny_seq2seq(kind), "dataset_path": dialogues, "output_dir": output_dir,
            "num_train_epochs": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
            "rouge_eval_rows": 4, "max_new_tokens": 8, "num_beams": 2, "learning_rate": 1e-2, "use_cpu": True,
        } | changes  # fmt: skip
        return [str(word) for name, value in values.items() for word in (f"--{name}", value)]

    return flags


@pytest.fixture(scope="module")
def finished(one_core: None, flags_for: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The output folder of each kind, trained with tags, never interrupted."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("finished") / kind
        train(flags_for(folder, kind, special_tokens=True))
        return folder

    return make


@pytest.fixture
def copied(finished: Any, tmp_path: Path) -> Path:
    """A copy of the finished BART that a test may change."""
    return shutil.copytree(finished("bart"), tmp_path / "out")


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a file."""

    def write(*rows: dict) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    return write


def held_out(dialogues: Path) -> list[Any]:
    return load_records(dialogues, split="eval")[0]


# What is written


@each_kind
def test_the_loss_falls(kind: str, finished: Any):
    losses, of_held_out = curve(finished(kind), "loss"), curve(finished(kind), "eval_loss")
    assert len(losses) == 12
    assert losses[-1] < 0.95 * losses[0]
    assert of_held_out[-1] < of_held_out[0]


@each_kind
def test_the_output_folder_is_the_model(kind: str, finished: Any):
    names = {path.name for path in finished(kind).iterdir() if path.is_file()}
    expected = {WEIGHTS, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == expected | {"manifest.json"}
    told = manifest(finished(kind))
    assert told["finished"] is True
    assert told["prompt_form"] == "dialogue"
    assert told["settings"]["dtype"] == "float32"
    assert {split: facts["rows"] for split, facts in told["data"].items()} == {"train": 12, "held_out": 4}


@each_kind
def test_reloaded_it_writes_what_it_wrote_when_it_was_evaluated(kind: str, finished: Any, dialogues: Path):
    records = held_out(dialogues)
    texts = Summarizer.load(str(finished(kind))).summarize([record.dialogue for record in records])
    best = curve(finished(kind), "eval_loss").index(min(curve(finished(kind), "eval_loss")))
    score = rouge(texts, [list(record.references) for record in records], "strict").mean
    assert score == pytest.approx(curve(finished(kind), "eval_rouge")[best])


@each_kind
def test_transformers_alone_writes_the_same(kind: str, finished: Any, dialogues: Path):
    records = held_out(dialogues)
    texts = Summarizer.load(str(finished(kind))).summarize([record.dialogue for record in records])
    tokenizer = AutoTokenizer.from_pretrained(finished(kind))
    model = AutoModelForSeq2SeqLM.from_pretrained(finished(kind))
    assert all(texts)
    for record, text in zip(records, texts, strict=True):
        (ids,) = model.generate(**tokenizer(record.dialogue, return_tensors="pt"), min_new_tokens=2)
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_tags_are_one_token_each_after_training(finished: Any):
    summarizer = Summarizer.load(str(finished("bart")))
    ids = summarizer.tokenizer.convert_tokens_to_ids(["#Person1#", "#SSN#"])
    assert summarizer.tokenizer("#Person1#: #SSN#").input_ids[0] == ids[0]
    assert max(ids) < summarizer.model.get_input_embeddings().num_embeddings == len(summarizer.tokenizer)


@pytest.mark.parametrize(("source", "code"), [("embedded-ko", "ko_KR"), ("embedded-en", "en_XX")])
def test_mbart_is_forced_to_begin_with_the_code_of_the_datas_language(
    source: str, code: str, flags_for: Any, tmp_path: Path
):
    rows = {"max_train_rows": 4, "max_eval_rows": 2}
    train(flags_for(tmp_path / "out", "mbart", dataset_path=source, **rows, **QUICK))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    batch = tokenizer("Ann: Hi\n#Person1#: 네", return_tensors="pt")
    assert tokenizer.decode(batch.input_ids[0, 0]) == code
    written = model.generate(**batch)[0].tolist()
    assert tokenizer.convert_ids_to_tokens(written[:2]) == ["</s>", code]
    assert model.config.decoder_start_token_id == tokenizer.eos_token_id


def test_the_loss_is_that_of_the_update_however_it_is_split(flags_for: Any, tiny_seq2seq: Any, tmp_path: Path):
    model = Path(shutil.copytree(tiny_seq2seq("bart"), tmp_path / "model"))
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"dropout": 0.0}), "utf-8")  # whose noise would differ
    order = {"train_sampling_strategy": "sequential", "max_steps": 3, "model_name_or_path": model}
    for size, steps in ((4, 1), (1, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        train(flags_for(tmp_path / str(size), **QUICK | options | order))
    whole, split = curve(tmp_path / "4", "loss"), curve(tmp_path / "1", "loss")
    assert len(whole) == 3
    assert split == pytest.approx(whole, rel=1e-4)


# In use


def test_evaluate_scores_it_with_its_own_decoding(finished: Any, dialogues: Path, tmp_path: Path):
    flags = ["--model", str(finished("bart")), "--dataset_path", str(dialogues), "--profiles", "strict"]
    evaluate.main([*flags, "--output_dir", str(tmp_path / "own")])
    evaluate.main([*flags, "--output_dir", str(tmp_path / "named"), "--num_beams", "2", "--no_repeat_ngram_size", "2"])
    evaluate.main([*flags, "--output_dir", str(tmp_path / "other"), "--num_beams", "1", "--no_repeat_ngram_size", "0"])
    own, named, other = ((tmp_path / name / "predictions.csv").read_text() for name in ("own", "named", "other"))
    assert own == named != other
    (result,) = json.loads((tmp_path / "own" / "results.json").read_text("utf-8"))
    assert (result["name"], result["rows"]) == ("bart", 4)


def test_summarize_writes_a_submission(finished: Any, data: Callable[..., Path], tmp_path: Path):
    path = data(GOOD, OTHER)
    summarize.main(["--model", str(finished("mbart")), "--input", str(path), "--output", str(tmp_path / "out.csv")])
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines))
    texts = Summarizer.load(str(finished("mbart"))).summarize([GOOD["dialogue"], OTHER["dialogue"]])
    assert rows == [["fname", "summary"], ["a", texts[0]], ["b", texts[1]]]
    assert all(texts)


def test_a_killed_evaluation_goes_on_if_the_decoding_is_the_same(finished: Any, tmp_path: Path):
    summarizer = Summarizer.load(str(finished("bart")))
    journal = summarizer.journal(tmp_path / "x", [TALK])
    journal.__enter__().add(0, "표시")
    journal.__exit__(KeyboardInterrupt, None, None)

    def taken(decoding: Decoding) -> dict[int, str]:
        copy = Path(shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{decoding.num_beams}")))
        with summarizer.journal(copy / "x", [TALK], decoding) as journal:
            return dict(journal.done)

    assert taken(Decoding(num_beams=2)) == {0: "표시"}  # what it was trained for
    assert taken(Decoding(num_beams=1)) == {}


def test_an_encoder_decoder_that_was_not_trained_here_reads_the_bare_dialogue(tiny_seq2seq: Any):
    summarizer = Summarizer.load(str(tiny_seq2seq("t5")))
    assert (summarizer.form, summarizer.max_length) == ("dialogue", None)
    summarizer.max_new_tokens = 8
    prompt = torch.tensor([summarizer.tokenizer(TALK).input_ids], device=summarizer.model.device)
    ids = summarizer.model.generate(prompt, max_new_tokens=8, min_new_tokens=1)
    expected = summarizer.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert summarizer.summarize([TALK]) == [expected]


def test_the_prefix_stands_before_the_dialogue_in_training_and_in_use(
    flags_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[list[int]] = []
    make_trainer = baseline.make_trainer
    monkeypatch.setattr(
        baseline,
        "make_trainer",
        lambda *args: read.extend(example["input_ids"] for example in args[3]) or make_trainer(*args),
    )
    train(flags_for(tmp_path / "out", "mt5", source_prefix="요약: ", max_steps=1, **QUICK))
    summarizer = Summarizer.load(str(tmp_path / "out"))
    assert all(summarizer.tokenizer.decode(ids).startswith("요약: #Person1#") for ids in read)
    with_prefix, summarizer.source_prefix = summarizer.summarize([TALK]), ""
    assert with_prefix == summarizer.summarize(["요약: " + TALK])


# Length


def test_a_dialogue_longer_than_the_encoder_takes_loses_whole_turns(
    flags_for: Any, data: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    turns = [f"#Person{1 + i % 2}#: {i} 네, 그렇습니다." for i in range(40)]
    path = data(GOOD, GOOD | {"fname": "long", "dialogue": "\n".join(turns)})
    options = {"dataset_path": path, "max_length": 64, "max_steps": 1}
    train(flags_for(tmp_path / "out", "t5", **QUICK | options))
    listed = json.loads((tmp_path / "out" / "shortened.json").read_text("utf-8"))
    assert {item["id"] for item in listed} == {"long"}
    assert all(1 <= item["kept_turns"] < item["turns"] == 40 for item in listed)

    summarizer = Summarizer.load(str(tmp_path / "out"))
    kept = turns[: -(-listed[0]["kept_turns"] // 2)] + turns[40 - listed[0]["kept_turns"] // 2 :]
    assert summarizer.summarize(["\n".join(turns)]) == summarizer.summarize(["\n".join(kept)])
    assert "1 dialogues were shortened by whole turns to fit 64 tokens" in capsys.readouterr().err


def test_a_turn_longer_than_the_encoder_takes(flags_for: Any, data: Callable[..., Path], tmp_path: Path):
    path = data(GOOD, OTHER, OTHER | {"fname": "long", "dialogue": "#Person1#: " + "길게 " * 600})
    telling = r"Dialogue long: the first turn is longer than the 512 tokens that fit\. Split the turn, .*--max_length"
    with pytest.raises(InputError, match=telling):
        baseline.main(flags_for(tmp_path / "out", "bart", dataset_path=path))
    assert not list((tmp_path / "out").iterdir())


def test_summaries_longer_than_it_may_write_are_counted(finished: Any, flags_for: Any, tmp_path: Path, capsys: Any):
    train(flags_for(tmp_path / "out", "bart", max_steps=1, **QUICK))
    assert "12 of 12 summaries to learn from are longer than what it will write" in capsys.readouterr().err


# What is refused


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"max_length": 2000}, "--max_length 2000: expected at most 1026, the model's context"),
        ({"max_new_tokens": 2000}, "--max_new_tokens 2000: expected at most 1026, the decoder's context"),
        ({"rouge_profile": "rouge"}, "--rouge_profile rouge: expected one of aistages"),
        ({"lora_r": 4}, "--lora_r 4: has no effect here"),
        ({"load_in_4bit": True}, "--load_in_4bit True: has no effect here"),
        ({"prompt_form": "chat"}, "unknown argument `--prompt_form`"),
        ({"model_name_or_path": "/nowhere/bart"}, "/nowhere/bart: no such folder"),
        ({"learning_rate": 1e20, "max_grad_norm": 0, **QUICK}, "The loss is nan at step"),
    ],
    ids=lambda value: "-".join(value)[:24] if isinstance(value, dict) else "",
)
def test_faulty_settings(changes: dict, telling: str, flags_for: Any, tmp_path: Path):
    with pytest.raises(InputError, match=re.escape(telling)):
        baseline.main(flags_for(tmp_path / "out", **changes))


def test_a_decoder_is_refused_here_and_an_encoder_decoder_in_sft(
    flags_for: Any, sft_flags: Any, tiny_model: Path, tiny_seq2seq: Any, tmp_path: Path
):
    with pytest.raises(InputError, match=rf"{tiny_model}: a decoder alone, .* Train it with recipes/sft\.py"):
        baseline.main(flags_for(tmp_path / "out", model_name_or_path=tiny_model))
    folder = tiny_seq2seq("bart")
    with pytest.raises(InputError, match=rf"{folder}: an encoder-decoder, .* Train it with recipes/baseline\.py"):
        sft.main(sft_flags(model_name_or_path=folder))
    assert not list(tmp_path.iterdir()) or not list((tmp_path / "out").iterdir())


def test_bad_rows_stop_it_or_are_listed(flags_for: Any, data: Callable[..., Path], tmp_path: Path):
    path = data(GOOD, OTHER | {"summary": ""}, OTHER)
    options = {"dataset_path": path, "max_steps": 1, **QUICK}
    with pytest.raises(InputError, match=r"(?s)row 2: no reference summary.*--bad_rows skip"):
        baseline.main(flags_for(tmp_path / "out", **options))
    train(flags_for(tmp_path / "out", bad_rows="skip", **options))
    (rejected,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text("utf-8").splitlines())
    assert (rejected["row"], rejected["fault"]) == (2, "no reference summary")


def test_a_second_call_does_nothing_and_other_settings_are_refused(
    finished: Any, flags_for: Any, capsys: pytest.CaptureFixture[str]
):
    folder = finished("bart")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    train(flags_for(folder, special_tokens=True))
    assert "Baseline: already done" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"other settings \(num_beams 2 -> 3\)"):
        baseline.main(flags_for(folder, special_tokens=True, num_beams=3))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_overwriting_is_done_only_when_told(copied: Path, flags_for: Any, tmp_path: Path):
    train(flags_for(copied, overwrite_output_dir=True, max_steps=1, **QUICK))
    assert manifest(copied)["settings"]["max_steps"] == 1
    assert not list(copied.glob("checkpoint-*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(InputError, match="exists and is not empty"):
        baseline.main(flags_for(tmp_path / "mine"))
    with pytest.raises(InputError, match="not a result of this program"):
        baseline.main(flags_for(tmp_path / "mine", overwrite_output_dir=True))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


# Killed and resumed


def test_a_killed_and_resumed_run_ends_with_the_same_bits(flags_for: Any, tmp_path: Path):
    options = {"special_tokens": True, "rouge_eval_rows": 0}
    train(flags_for(tmp_path / "whole", **options))
    flags = flags_for(tmp_path / "out", **options)
    start_and_kill("baseline", flags, when="Baseline step 8/12")
    assert not manifest(tmp_path / "out")["finished"]
    with pytest.raises(InputError, match=r"unfinished run \(checkpoint-\d\)"):
        baseline.main(flags)
    train([*flags, "--resume_from_checkpoint", "true"])
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    for figure in ("loss", "eval_loss"):
        assert curve(tmp_path / "out", figure) == curve(tmp_path / "whole", figure)


def test_the_best_checkpoint_is_the_result_and_training_stops_without_progress(flags_for: Any, tmp_path: Path):
    options = {"learning_rate": 0.1, "lr_scheduler_type": "constant", "num_train_epochs": 20, "rouge_eval_rows": 0}
    train(flags_for(tmp_path / "out", **options, early_stopping_patience=2, save_total_limit=20))
    losses = curve(tmp_path / "out", "eval_loss")
    best = losses.index(min(losses))
    assert best == len(losses) - 3 < 17
    of_best = tmp_path / "out" / f"checkpoint-{3 * (1 + best)}" / WEIGHTS
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == of_best.read_bytes()
