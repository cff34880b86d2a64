"""recipes/ppo.py and recipes/merge.py from end to end on a tiny model: what they write, refuse and resume."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from test_bad_input import files_in
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment import outputs, run
from alignment.data import load_records
from alignment.errors import InputError
from alignment.launch import launch
from alignment.summarizer import Summarizer
from recipes import merge, ppo, reward, sft, summarize
from reward.labels import LabelArguments
from reward.rouge import rouge
from reward.scorers import load_scorers, sources_of

Flags = Callable[..., list[str]]
WEIGHTS = ("adapter_model.safetensors", "value/adapter_model.safetensors", "value/head.safetensors")


def words(values: dict[str, object]) -> list[str]:
    flags = [(f"--{name}", *(value if isinstance(value, list) else [value])) for name, value in values.items()]
    return [str(word) for flag in flags for word in flag]


@pytest.fixture(scope="module")
def sft_model(sft_flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What phase 1 left after three steps."""
    folder = tmp_path_factory.mktemp("sft")
    quick = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "rouge_eval_rows": 0}
    sft.main(sft_flags_for(folder, phases=1, num_train_epochs=1, **quick))
    return folder / "phase1"


@pytest.fixture(scope="module")
def reward_model(sft_model: Path, tiny_model: Path, dialogues: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of recipes/reward.py, marked fit whatever three steps have taught it."""
    folder = tmp_path_factory.mktemp("reward") / "out"
    reward.main(words({
        "model_name_or_path": tiny_model, "sft_model": sft_model, "dataset_path": dialogues, "output_dir": folder,
        "dtype": "float32", "samples": 0, "max_steps": 3, "per_device_train_batch_size": 2, "eval_strategy": "no",
        "save_strategy": "no", "load_best_model_at_end": False, "learning_rate": 1e-2, "use_cpu": True,
        "min_accuracy": 0,
    }))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def flags_for(sft_model: Path, reward_model: Path, tiny_model: Path, dialogues: Path) -> Flags:
    """Flags for a run of seconds into a folder; keyword arguments replace or add flags."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        return words({
            "model_name_or_path": tiny_model, "sft_model": sft_model, "reward_model": reward_model,
            "dataset_path": dialogues, "output_dir": output_dir, "max_new_tokens": 8, "num_updates": 2,
            "rollout_batch_size": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
            "num_ppo_epochs": 2, "eval_steps": 1, "save_steps": 1, "learning_rate": 1e-2, "use_cpu": True,
            "max_kl": 1e9, "value_warmup_updates": 0,
        } | changes)  # fmt: skip

    return flags


@pytest.fixture
def flags(flags_for: Flags, tmp_path: Path) -> Flags:
    """`flags_for` the folder `tmp_path / "out"`."""
    return lambda **changes: flags_for(tmp_path / "out", **changes)


def start(flags: list[str]) -> None:
    """As the recipe is started, with its number of threads."""
    launch(lambda: ppo.main(flags))


@pytest.fixture(scope="module")
def finished(flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a whole run with three scorers."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    start(
        flags_for(folder, scorers=["reward_model", "rouge", "quality"], scorer_weights=[1, 2, 0.5], save_total_limit=9)
    )
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` that a test may change."""
    return shutil.copytree(finished, tmp_path / "out")


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "phase3" / "manifest.json").read_text("utf-8"))


# What is written


def test_it_leaves_an_adapter_results_and_a_page(finished: Path):
    names = {path.name for path in finished.iterdir()}
    assert names == {"phase3", "results.json", "report.html"}
    assert {"adapter_config.json", "tokenizer.json", "manifest.json"} <= {
        p.name for p in (finished / "phase3").iterdir()
    }
    assert all((finished / "phase3" / name).is_file() for name in WEIGHTS)


def test_the_results_compare_the_two_phases(finished: Path, dialogues: Path):
    results = json.loads((finished / "results.json").read_text("utf-8"))
    systems = [(row["name"], row["profile"]) for row in results["systems"]]
    assert systems == [(name, profile) for profile in ("aistages", "strict") for name in ("phase 1", "phase 3")]
    records, _ = load_records(str(dialogues / "eval.jsonl"))
    first = json.loads((finished / "phase3/held_out/step-0.json").read_text("utf-8"))
    expected = rouge(first, [list(record.references) for record in records], "aistages")
    assert results["systems"][0]["mean"] == pytest.approx(expected.mean)
    assert results["difference"]["aistages"]["low"] <= results["difference"]["aistages"]["difference"]


def test_the_page_shows_curves_and_summaries_and_needs_no_network(finished: Path):
    page = (finished / "report.html").read_text("utf-8")
    assert page.count("<svg") == 7
    assert "#Person1#" in page
    assert not re.search(r"(src|href)=\"?http", page)


def test_each_scorer_is_logged_apart_and_the_reward_is_their_weighted_sum(finished: Path):
    line = next(line for line in manifest(finished)["log"] if "score/reward_model" in line)
    total = line["score/reward_model"] + 2 * line["score/rouge"] + 0.5 * line["score/quality"]
    assert line["score"] == pytest.approx(total, abs=1e-5)
    assert {"kl", "entropy", "explained_variance", "rollout_seconds", "learning_seconds"} < line.keys()


def test_the_first_held_out_answers_are_those_of_the_sft_model(finished: Path, sft_model: Path, dialogues: Path):
    records, _ = load_records(str(dialogues / "eval.jsonl"))
    summarizer = Summarizer.load(str(sft_model))
    summarizer.max_new_tokens = 8
    expected = summarizer.summarize([record.dialogue for record in records])
    assert json.loads((finished / "phase3/held_out/step-0.json").read_text("utf-8")) == expected


def test_the_adapter_is_used_as_every_other(finished: Path, dialogues: Path, tmp_path: Path):
    assert AutoPeftModelForCausalLM.from_pretrained(str(finished / "phase3"))
    output = tmp_path / "summaries.csv"
    summarize.main(["--model", str(finished / "phase3"), "--input", str(dialogues), "--output", str(output)])
    assert len(output.read_text("utf-8").splitlines()) == 5


def test_done_is_not_done_again(finished: Path, flags_for: Flags, capsys: pytest.CaptureFixture[str]):
    before = files_in(finished)
    start(
        flags_for(
            finished, scorers=["reward_model", "rouge", "quality"], scorer_weights=[1, 2, 0.5], save_total_limit=9
        )
    )
    assert "Phase 3: already done" in capsys.readouterr().err
    assert files_in(finished) == before


def test_an_unfinished_run_goes_on_and_ends_with_the_same_bits(finished: Path, copied: Path, flags_for: Flags):
    (copied / "phase3/manifest.json").write_text(json.dumps(manifest(copied) | {"finished": False}), "utf-8")
    shutil.rmtree(copied / "phase3/checkpoint-8")
    how = {"scorers": ["reward_model", "rouge", "quality"], "scorer_weights": [1, 2, 0.5], "save_total_limit": 9}
    with pytest.raises(InputError, match="holds an unfinished run"):
        ppo.main(flags_for(copied, **how))
    start(flags_for(copied, **how, resume_from_checkpoint=True))
    for name in WEIGHTS:
        assert (copied / "phase3" / name).read_bytes() == (finished / "phase3" / name).read_bytes()


def test_without_a_reward_model_functions_are_enough(flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "short.py").write_text(
        "def words(prompts, completions, id, dialogue, references, topic):\n"
        "    assert all(one in prompt for one, prompt in zip(dialogue, prompts))\n"
        "    assert len(completions) == len(id) == len(references) == len(topic)\n"
        "    return [-len(c.split()) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    start(flags(scorers=["short:words"], reward_model="nowhere", num_updates=1))
    assert "score/short:words" in manifest(tmp_path / "out")["log"][1]


def test_a_scorer_that_was_edited_does_not_go_on(flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text("def score(completions, **_):\n    return [0.0 for _ in completions]\n")
    monkeypatch.chdir(tmp_path)
    start(flags(scorers=["mine:score"], num_updates=1))
    unfinished = manifest(tmp_path / "out") | {"finished": False}
    (tmp_path / "out/phase3/manifest.json").write_text(json.dumps(unfinished), "utf-8")
    (tmp_path / "mine.py").write_text("def score(completions, **_):\n    return [1.0 for _ in completions]\n")
    with pytest.raises(InputError, match=r"holds a run with other settings \(another file of a scorer"):
        ppo.main(flags(scorers=["mine:score"], num_updates=1, resume_from_checkpoint=True))


def test_only_functions_of_ones_own_have_a_source():
    assert sources_of(["rouge", "math:fsum"]) == {}
    assert sources_of(["json:dumps"]).keys() == {"json:dumps"}
    assert sources_of(["string:capwords"]) != sources_of(["json:dumps"])


def test_a_reward_model_on_a_base_of_its_own(flags: Flags, tmp_path: Path, reward_model: Path, tiny_model: Path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    moved = shutil.copytree(reward_model, tmp_path / "reward")
    config = json.loads((moved / "model/adapter_config.json").read_text("utf-8"))
    (moved / "model/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
    start(flags(reward_model=moved, separate_reward_model=True, num_updates=1))
    together = tmp_path / "together"
    start([*flags(num_updates=1), "--output_dir", str(together)])
    scores = [[line["score/reward_model"] for line in manifest(folder)["log"] if "score/reward_model" in line]
              for folder in (tmp_path / "out", together)]  # fmt: skip
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_going_on_from_ppo_is_called_so(flags: Flags, tmp_path: Path, finished: Path):
    start(flags(sft_model=finished / "phase3", scorers=["rouge"], num_updates=1))
    results = json.loads((tmp_path / "out/results.json").read_text("utf-8"))
    assert [row["name"] for row in results["systems"][:2]] == ["earlier phase 3", "phase 3"]
    assert "<h1>Earlier phase 3 against phase 3" in (tmp_path / "out/report.html").read_text("utf-8")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_phase_3_on_4_bit_weights(flags: Flags, tmp_path: Path, sft_model: Path, checkpointing: bool):
    how = {"reread_prompts": checkpointing, "gradient_checkpointing": checkpointing}
    start(flags(load_in_4bit=True, **how, num_updates=1, load_best_model_at_end=False))
    log = manifest(tmp_path / "out")["log"]
    (line,) = (line for line in log if "policy_loss" in line)
    assert line["kl"] == 0.0  # the policy began as the reference
    assert line["grad_norm"] > 0
    before, after = (load_file(folder / WEIGHTS[0]) for folder in (sft_model, tmp_path / "out/phase3"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert manifest(tmp_path / "out")["settings"]["load_in_4bit"] is True


# Scorers


def test_rouge_and_quality_as_scorers(dialogues: Path):
    records, _ = load_records(str(dialogues / "eval.jsonl"))
    scorers = load_scorers(["rouge", "quality"], LabelArguments(), lambda: pytest.fail("no reward model was asked for"))
    columns = {
        "id": ["same"] * 4,
        "dialogue": [record.dialogue for record in records],
        "references": [list(record.references) for record in records],
    }
    good = [record.references[1] for record in records]
    bad = [*good[1:], ""]
    for scorer in scorers.values():
        better, worse = scorer(completions=good, **columns), scorer(completions=bad, **columns)
        assert len(better) == 4
        assert all(b > w for b, w in zip(better, worse, strict=True))
    assert scorers["rouge"](completions=bad, **columns)[-1] == 0.0


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_model": "nowhere"}, r"no model/reward\.json in it.*; or leave reward_model out of --scorers"),
        ({"sft_model": "nowhere"}, "--sft_model nowhere: no adapter"),
        ({"scorers": ["nonsense"]}, "--scorers nonsense: expected reward_model, rouge, quality, or module:function"),
        ({"scorers": ["no_such_module:f"]}, "--scorers no_such_module:f: No module named"),
        ({"scorers": ["json:f"]}, "--scorers json:f: module 'json' has no attribute 'f'"),
        ({"scorers": ["json:__name__"]}, "--scorers json:__name__: is 'json'. Expected a function"),
        ({"scorers": ["./mine.py:f"]}, r"--scorers \./mine\.py:f: .*Expected a module that Python finds from here"),
        ({"scorers": [":f"]}, "--scorers :f: .*Expected a module that Python finds from here"),
        ({"scorers": ["rouge", "rouge"]}, "--scorers .*each once"),
        ({"scorers": ["rouge"], "allow_unfit": True}, "--allow_unfit, .* without reward_model among --scorers"),
        ({"scorer_weights": [1, 2]}, "--scorer_weights .*one for each of --scorers"),
        ({"scorer_weights": [0]}, "--scorer_weights .*every completion would be paid 0"),
        ({"scorer_weights": ["nan"]}, "--scorer_weights .nan.: expected finite numbers"),
        ({"rollout_batch_size": 3}, "--rollout_batch_size 3: expected a multiple of 2"),
        ({"max_length": 9999}, "--max_length 9999: expected at most 2048"),
        ({"max_length": 16}, "the first turn, with room for the summary"),
        ({"vllm_url": "http://127.0.0.1:9"}, "--vllm_url http://127.0.0.1:9: .*refused.*Expected a vLLM server"),
        ({"metric_profile": "bleu"}, "--metric_profile bleu"),
        ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint nowhere"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(flags: Flags, changes: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        ppo.main(flags(**changes))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad_syntax", "def f(:\n", r"SyntaxError: .*\(bad_syntax\.py, line 1\)\. Correct it there"),
        ("bad_import", "{}['x']\n", r"KeyError: 'x' \(.*bad_import\.py:1\)\. Correct it there"),
    ],
)
def test_a_module_that_fails_as_it_is_imported_is_told(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, message: str
):
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"--scorers {name}:f: {message}"):
        ppo.main(flags(scorers=[f"{name}:f"]))


def test_an_unfit_reward_model_is_refused_unless_it_is_wanted(flags: Flags, tmp_path: Path, reward_model: Path):
    unfit = shutil.copytree(reward_model, tmp_path / "reward")
    report = json.loads((unfit / "report.json").read_text("utf-8"))
    (unfit / "report.json").write_text(json.dumps(report | {"fit": False, "accuracy": 0.5, "min_accuracy": 0.65}))
    with pytest.raises(InputError, match=r"not fit for PPO \(accuracy 0\.500, below 0\.65\)"):
        ppo.main(flags(reward_model=unfit))
    (unfit / "report.json").unlink()
    with pytest.raises(InputError, match=r"not fit for PPO \(no report\.json\)"):
        ppo.main(flags(reward_model=unfit))
    start(flags(reward_model=unfit, allow_unfit=True, num_updates=1))
    assert manifest(tmp_path / "out")["finished"]


def test_a_reward_model_for_another_base_is_refused_unless_said_so(flags: Flags, tmp_path: Path, reward_model: Path):
    other = shutil.copytree(reward_model, tmp_path / "reward")
    config = json.loads((other / "model/adapter_config.json").read_text("utf-8"))
    (other / "model/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/other"}))
    with pytest.raises(InputError, match=r"it is for some/other, not for .*--separate_reward_model true"):
        ppo.main(flags(reward_model=other))


def test_a_checkpoint_of_another_run_is_refused(flags: Flags, copied: Path, finished: Path):
    (copied / "phase3/manifest.json").write_text(json.dumps(manifest(copied) | {"finished": False}), "utf-8")
    how = {"scorers": ["reward_model", "rouge", "quality"], "scorer_weights": [1, 2, 0.5], "save_total_limit": 9}
    with pytest.raises(InputError, match="not a whole checkpoint of this run"):
        ppo.main(flags(**how, resume_from_checkpoint=finished / "phase3/checkpoint-4"))


def test_the_page_of_another_recipe_is_not_overwritten(flags: Flags, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("of the reward model", "utf-8")
    with pytest.raises(InputError, match=r"report\.html exists\. Choose another --output_dir"):
        ppo.main(flags())
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


def test_other_settings_do_not_touch_a_finished_run(flags: Flags, copied: Path):
    before = files_in(copied)
    with pytest.raises(InputError, match="holds a run with other settings"):
        ppo.main(flags(kl_coef=0.2))
    assert files_in(copied) == before


def test_what_is_to_be_overwritten_is_kept_until_the_new_run_is_finished(
    flags: Flags, copied: Path, capsys: pytest.CaptureFixture[str]
):
    kept, before = copied / "phase3.replaced", list(files_in(copied / "phase3").values())
    for _ in range(2):  # the second time it is the failed run that goes
        fail_to_overwrite(flags)
        assert list(files_in(kept).values()) == before
    assert capsys.readouterr().err.count(f"it is in {kept} until the new one is finished") == 1
    start(flags(num_updates=1, overwrite_output_dir=True))
    assert manifest(copied)["finished"]
    assert manifest(copied)["settings"]["num_updates"] == 1
    assert not kept.exists()


def fail_to_overwrite(flags: Flags) -> None:
    with pytest.raises(InputError, match="--value_warmup_updates 99"):  # told where the trainer is made
        ppo.main(flags(value_warmup_updates=99, overwrite_output_dir=True))


def test_after_a_failed_overwriting_the_run_of_before_is_put_back(
    flags: Flags, copied: Path, capsys: pytest.CaptureFixture[str]
):
    before = files_in(copied)
    fail_to_overwrite(flags)
    how = {"scorers": ["reward_model", "rouge", "quality"], "scorer_weights": [1, 2, 0.5], "save_total_limit": 9}
    start(flags(**how))
    told = capsys.readouterr().err
    assert "came to nothing; the run of before is back" in told
    assert "Phase 3: already done" in told
    assert files_in(copied) == before


def test_a_finished_run_is_kept_rather_than_one_that_was_to_be_deleted(flags: Flags, copied: Path):
    left = shutil.copytree(copied / "phase3", copied / "phase3.replaced")
    (left / "old").touch()
    fail_to_overwrite(flags)
    assert not (left / "old").exists()
    assert json.loads((left / "manifest.json").read_text("utf-8"))["finished"]


def test_what_is_not_ours_is_not_deleted_for_an_overwriting(flags: Flags, copied: Path):
    own = copied / "phase3.replaced" / "thesis.txt"
    own.parent.mkdir()
    own.touch()
    with pytest.raises(InputError, match=r"phase3\.replaced: the run .* would be kept there\. Move that away first"):
        ppo.main(flags(overwrite_output_dir=True))
    shutil.rmtree(copied / "phase3")
    start(flags(num_updates=1))
    assert own.exists()


def test_overwriting_follows_a_link(flags: Flags, copied: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(copied / "phase3", elsewhere)
    (copied / "phase3").symlink_to(elsewhere)
    start(flags(num_updates=1, overwrite_output_dir=True))
    assert (copied / "phase3").resolve() == elsewhere
    assert manifest(copied)["settings"]["num_updates"] == 1
    assert not list(tmp_path.glob("**/*.replaced"))


def test_a_checkpoint_of_what_is_to_be_overwritten_is_refused(flags: Flags, copied: Path):
    shutil.copytree(copied / "phase3", copied / "phase3.replaced")
    (copied / "phase3/manifest.json").write_text(json.dumps(manifest(copied) | {"finished": False}), "utf-8")
    with pytest.raises(InputError, match="not a whole checkpoint of this run"):
        ppo.main(flags(resume_from_checkpoint=copied / "phase3.replaced/checkpoint-4"))


def test_the_folder_that_one_is_in_is_not_overwritten(flags: Flags, copied: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(copied / "phase3")
    before = files_in(copied)
    with pytest.raises(InputError, match="you are in the folder that is to be overwritten"):
        ppo.main(flags(overwrite_output_dir=True))
    assert files_in(copied) == before


def test_a_refused_run_leaves_the_lists_of_the_one_that_is_there(flags_for: Flags, copied: Path, tmp_path: Path):
    rows = [
        {
            "id": str(i),
            "dialogue": f"#Person1#: {i}호입니다.\n" + "#Person2#: 네, 안녕하세요.\n" * 90,
            "summary": "인사한다.",
        }
        for i in range(12)
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {"id": "bad", "dialogue": ""}])), "utf-8")
    how = {"dataset_path": path, "max_length": 600, "bad_rows": "skip"}
    before = files_in(copied)
    with pytest.raises(InputError, match="other dialogues"):
        ppo.main(flags_for(copied, **how))
    assert files_in(copied) == before
    start(flags_for(tmp_path / "other", **how, num_updates=1))
    assert {path.name for path in (tmp_path / "other").iterdir()} >= {"rejected.jsonl", "shortened.json"}


def test_rouge_pays_a_summary_by_its_own_language_whatever_is_beside_it():
    rouge_of = load_scorers(["rouge"], LabelArguments(), lambda: pytest.fail("no reward model was asked for"))["rouge"]
    korean = {
        "completions": ["둘은 역에서 만난다."],
        "dialogue": ["A: 역에서 봐.\nB: 응."],
        "references": [["둘은 역에서 본다."]],
    }
    english = {"completions": ["They meet."], "dialogue": ["A: Hi.\nB: Hey."], "references": [["They meet today."]]}
    both = {name: english[name] + korean[name] for name in korean}
    assert rouge_of(**both) == rouge_of(**english) + rouge_of(**korean)
    assert 0 < rouge_of(**korean)[0] < 1


# Merging


def test_merged_it_says_the_same_without_peft(finished: Path, dialogues: Path, tmp_path: Path, capsys: Any):
    merge.main(["--model", str(finished / "phase3"), "--output_dir", str(tmp_path / "merged")])
    found = re.search(r"largest difference ([\d.]+), mean", capsys.readouterr().err)
    assert float(found.group(1)) < 1e-3
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    texts = [record.dialogue for record in load_records(str(dialogues / "eval.jsonl"))[0]]
    assert Summarizer.load(str(tmp_path / "merged")).summarize(texts) == Summarizer.load(
        str(finished / "phase3")
    ).summarize(texts)


@pytest.mark.parametrize(
    ("model", "message"), [("nowhere", "no adapter, where"), ("base", "a whole model, where a trained adapter")]
)  # fmt: skip
def test_only_an_adapter_is_merged(tiny_model: Path, tmp_path: Path, model: str, message: str):
    with pytest.raises(InputError, match=message):
        merge.main(["--model", str(tiny_model if model == "base" else model), "--output_dir", str(tmp_path / "merged")])


def test_an_earlier_merge_is_replaced_when_the_new_one_is_whole(finished: Path, tmp_path: Path, monkeypatch: Any):
    flags = ["--model", str(finished / "phase3"), "--output_dir", str(tmp_path / "merged")]
    merge.main(flags)
    outputs.release()
    with pytest.raises(InputError, match="exists"):
        merge.main(flags)
    (tmp_path / "merged/old").touch()
    with monkeypatch.context() as killed:
        killed.setattr(PreTrainedTokenizerBase, "save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge.main([*flags, "--overwrite_output_dir", "true"])
    outputs.release()
    assert (tmp_path / "merged/old").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    merge.main([*flags, "--overwrite_output_dir", "true"])
    assert not (tmp_path / "merged/old").exists()
    assert "merged_from" in (run.read_manifest(tmp_path / "merged") or {})
    assert not (tmp_path / "merged.partial").exists()


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_adapter_is_not_merged_over_its_own_base(finished: Path, tmp_path: Path):
    adapter = Path(shutil.copytree(finished / "phase3", tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    base = Path(shutil.copytree(config["base_model_name_or_path"], tmp_path / "base"))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    run.write_json({"merged_from": "elsewhere"}, base / "manifest.json")
    before = files_in(base)
    with pytest.raises(InputError, match="has the adapter or its base in it"):
        merge.main(["--model", str(adapter), "--output_dir", str(base), "--overwrite_output_dir", "true"])
    assert files_in(base) == before


def test_merging_overwrites_nothing(finished: Path, tmp_path: Path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        merge.main(
            [
                "--model",
                str(finished / "phase3"),
                "--output_dir",
                str(tmp_path / "merged"),
                "--overwrite_output_dir",
                "true",
            ]
        )
    assert (tmp_path / "merged/mine.txt").read_text() == "mine"
