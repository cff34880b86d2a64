"""What a search is told and what its trials try: ranges, their faults, and the settings that the YAML takes over."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml

from alignment.arguments import DataArguments, ModelArguments, PromptArguments, SFTArguments
from alignment.errors import InputError
from alignment.parser import parse
from alignment.search_space import SearchArguments, SearchSpace, settings_for_sft, settings_of_study

CLASSES = (ModelArguments, DataArguments, PromptArguments, SearchArguments)
FORMS = ["instruction", "chat"]
FIXED = {"learning_rate_range": [1e-3], "lora_r_range": [8], "lora_alpha_ratio_range": [2.0],
         "lora_dropout_range": [0.1], "num_train_epochs_range": [0.5]}  # fmt: skip


def tried(args: SearchArguments, forms: list[str] = FORMS, use_peft: bool = True, trials: int = 60) -> list[dict]:
    """The settings of trials sampled at random."""
    space = SearchSpace(args, forms, use_peft)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.settings(study.ask()) for _ in range(trials)]


# Ranges


@pytest.mark.parametrize(
    ("flag", "instead"), [("--learning_rate", "learning_rate_range"), ("--lora-r=8", "lora_r_range"),
                          ("--lora_alpha", "lora_alpha_ratio_range"), ("--prompt_form", "prompt_forms")],
)  # fmt: skip
def test_a_setting_that_is_searched_for_is_not_typed(flag: str, instead: str):
    with pytest.raises(InputError, match=f"is searched for. Say among which values with --{instead}; one fixes it"):
        parse(CLASSES, ["--trials", "3", flag, "1"], section="search")


def test_every_setting_stays_in_its_range_and_fills_it():
    settings = tried(SearchArguments(learning_rate_range=[1e-5, 1e-2], lora_r_range=[4, 32]))
    rates = [math.log10(trial["learning_rate"]) for trial in settings]
    assert -5 <= min(rates) < -4.5
    assert -2.5 < max(rates) <= -2  # in logarithms, or hardly one would lie below 1e-4
    assert sum(rate < -3.5 for rate in rates) > 15
    assert {trial["lora_r"] for trial in settings} <= set(range(4, 33))
    assert all(1 <= trial["lora_alpha"] / trial["lora_r"] <= 4.2 for trial in settings)  # alpha is a whole number
    assert all(0 <= trial["lora_dropout"] <= 0.2 for trial in settings)
    assert {trial["num_train_epochs"] for trial in settings} == {1.0, 2.0, 3.0}
    assert {trial["prompt_form"] for trial in settings} == set(FORMS)


def test_a_range_of_one_value_is_fixed_and_no_parameter():
    space = SearchSpace(SearchArguments(**FIXED), FORMS, use_peft=True)
    trial = optuna.create_study().ask()
    settings = space.settings(trial)
    assert list(trial.params) == ["prompt_form"]
    fixed = {"learning_rate": 1e-3, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "num_train_epochs": 0.5}
    assert settings == fixed | {"prompt_form": trial.params["prompt_form"]}


def test_two_equal_values_are_one():
    assert {trial["lora_r"] for trial in tried(SearchArguments(lora_r_range=[8, 8]))} == {8}


def test_full_training_has_no_lora_to_search():
    names = {name for settings in tried(SearchArguments(), use_peft=False) for name in settings}
    assert names == {"learning_rate", "num_train_epochs", "prompt_form"}


def test_a_finished_trial_has_the_settings_that_it_was_tried_with():
    space, study = SearchSpace(SearchArguments(), FORMS, use_peft=True), optuna.create_study()
    trial = study.ask()
    settings = space.settings(trial)
    study.tell(trial, 1.0)
    assert space.settings(study.trials[0]) == settings


def test_nothing_to_search_is_refused():
    with pytest.raises(InputError, match="Every range has one value, so there is nothing to search"):
        SearchSpace(SearchArguments(**FIXED), ["chat"], use_peft=True)
    with pytest.raises(InputError, match="nothing to search"):
        SearchSpace(SearchArguments(**FIXED | {"lora_r_range": [8, 64]}), ["chat"], use_peft=False)


# What users get wrong


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--trials 0", "--trials 0: expected 1 or more"),
        ("--trials -3", "--trials -3: expected 1 or more"),
        ("--objective rouge", "--objective rouge: expected eval_rouge or eval_loss"),
        ("--rouge_eval_rows 0", "--objective eval_rouge: needs --rouge_eval_rows of 1 or more"),
        ("--learning_rate_range 1e-3 1e-4", "the lowest is above the highest. Write 0.0001 0.001"),
        (
            "--learning_rate_range 0 1e-3",
            "--learning_rate_range 0 0.001: expected one number or a lowest",
        ),
        ("--learning_rate_range 1 2", "above 0 and at most 1"),
        ("--learning_rate_range 1e-5 1e-4 1e-3", "--learning_rate_range 1e-05 0.0001 0.001: expected one number or"),
        ("--learning_rate_range nan 1e-3", "--learning_rate_range nan 0.001: expected one number or"),
        ("--learning_rate_range low", "--learning_rate_range 'low': expected float"),
        ("--lora_r_range 0 8", "--lora_r_range 0 8: expected one number or a lowest and a highest, 1 or more"),
        ("--lora_r_range 8.5", "--lora_r_range '8.5': expected int"),
        ("--lora_r_range 64 8", "--lora_r_range 64 8: the lowest is above the highest. Write 8 64"),
        ("--lora_alpha_ratio_range 0", "--lora_alpha_ratio_range 0: expected one number or"),
        ("--lora_dropout_range 0 1", "--lora_dropout_range 0 1: expected one number or a lowest and a highest, from 0"),
        ("--lora_dropout_range -0.1 0", "--lora_dropout_range -0.1 0: expected one number or"),
        ("--num_train_epochs_range 0", "--num_train_epochs_range 0: expected one number or"),
        ("--num_train_epochs_range 0.5 2", "--num_train_epochs_range 0.5 2: expected whole numbers"),
        ("--num_train_epochs_range inf", "--num_train_epochs_range inf: expected one number or"),
        ("--max_steps 10", "--max_steps 10: leave it out; --num_train_epochs_range says how long"),
        ("--overwrite_output_dir true", "a study is not deleted here. Choose another --output_dir"),
    ],
)
def test_a_fault_is_told_with_its_value(flags: str, message: str):
    with pytest.raises(InputError) as caught:
        parse(CLASSES, flags.split(), section="search")
    assert message in str(caught.value)


# The YAML


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], list[str]]:
    def write(content: str) -> list[str]:
        (tmp_path / "mine.yaml").write_text(content, "utf-8")
        return ["--config", str(tmp_path / "mine.yaml")]

    return write


def test_a_yaml_for_fine_tuning_is_read_but_for_its_folder(written):
    flags = written("output_dir: runs/mine\nper_device_train_batch_size: 3\nprompt_form: chat\nreward:\n  samples: 2\n")
    _, _, prompt, args = parse(CLASSES, flags, section="search")
    assert (args.per_device_train_batch_size, prompt.prompt_form) == (3, "chat")
    assert args.output_dir == "runs/search"


def test_ranges_stand_in_their_own_part_which_fine_tuning_passes_over(written):
    own = "  trials: 7\n  output_dir: runs/found\n  lora_r_range: [4, 16]\n  learning_rate_range: [1e-4, 1e-3]\n"
    flags = written(f"learning_rate: 1.0e-3\nsearch:\n{own}  per_device_eval_batch_size: 2\n")
    args = parse(CLASSES, [*flags, "--trials", "9"], section="search")[3]
    assert (args.trials, args.output_dir, args.per_device_eval_batch_size) == (9, "runs/found", 2)
    assert (args.lora_r_range, args.learning_rate_range) == ([4, 16], [1e-4, 1e-3])
    assert parse((*CLASSES[:3], SFTArguments), flags)[3].per_device_eval_batch_size == 8


def test_an_unknown_range_is_told_with_its_place(written):
    with pytest.raises(InputError, match=r"mine\.yaml: search: unknown key `lora_rank_range`"):
        parse(CLASSES, written("search:\n  lora_rank_range: [4, 16]\n"), section="search")


def test_what_differs_from_the_defaults_is_taken_over_and_read_again(written, monkeypatch):
    content = {
        "model_name_or_path": "org/model", "load_in_4bit": True, "dtype": "bfloat16", "columns": {"dialogue": "text"},
        "dataset_path": "mine.csv", "gradient_checkpointing": True, "lr_scheduler_type": "linear", "eval_steps": 0.2,
        "save_steps": 0.2, "max_length": 512, "weight_decay": 0.01, "optim_args": "a=1", "phase2_epochs": 1,
        "lora_target_modules": ["q_proj", "v_proj"], "lr_scheduler_kwargs": {"num_cycles": 0.4},
    }  # fmt: skip
    secret = ["--hub_token", "hf_secret", "--output_dir", "runs/x"]
    options = parse(CLASSES, [*written(yaml.safe_dump(content)), *secret], section="search")
    settings = settings_for_sft(*options)
    assert {name: settings[name] for name in content} == content
    assert not settings.keys() & {"hub_token", "output_dir", "trials", "objective", "learning_rate_range"}

    again = parse((*CLASSES[:3], SFTArguments), written(yaml.safe_dump(settings)))
    assert settings_for_sft(*again) | {"metric_for_best_model": "eval_rouge"} == settings


def test_what_a_score_depends_on_makes_the_study_and_nothing_else(tmp_path):
    def settings(*flags: str) -> dict:
        model, _, prompt, args = parse(CLASSES, list(flags), section="search")
        return settings_of_study(model, prompt, args, {"rows": 3})

    before = settings()
    json.dumps(before)
    assert before["data"] == {"rows": 3}
    of_sft = tmp_path / "run.yaml"
    of_sft.write_text("learning_rate: 1\nlora_r: 3\nprompt_form: chat\n", "utf-8")
    same = f"--config {of_sft} --trials 3 --output_dir x --per_device_eval_batch_size 1 --phase2_epochs 9 "
    assert settings(*(same + "--resume_from_checkpoint true").split()) == before
    for flag in (
        "--lora_r_range 2 4",
        "--objective eval_loss",
        "--model_name_or_path x/y",
        "--seed 1",
        "--max_length 9",
    ):
        assert settings(*flag.split()) != before, flag
