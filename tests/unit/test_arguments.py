"""`parse()`: default < YAML < command line, and a clear refusal of everything else."""

from pathlib import Path

import pytest
import torch

from alignment.arguments import DataArguments, ModelArguments, PromptArguments, RewardArguments, SFTArguments
from alignment.errors import InputError
from alignment.parser import parse
from reward.labels import LabelArguments

CLASSES = (ModelArguments, DataArguments, PromptArguments, SFTArguments)
REWARD = (ModelArguments, DataArguments, PromptArguments, LabelArguments, RewardArguments)


@pytest.fixture
def config(tmp_path):
    """A function that writes a YAML file and returns its path."""

    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def settings(*argv, default_config=None):
    parsed = parse(CLASSES, [str(word) for word in argv], default_config)
    return {key: value for arguments in parsed for key, value in vars(arguments).items()}


def refusal(*argv, default_config=None):
    with pytest.raises(InputError) as error:
        settings(*argv, default_config=default_config)
    return str(error.value)


# --- default < YAML < command line


def test_a_default_stands_where_nothing_is_said():
    assert settings()["lora_r"] == 16


def test_yaml_goes_before_the_default(config):
    assert settings("--config", config("lora_r: 4"))["lora_r"] == 4


def test_the_command_line_goes_before_yaml(config):
    assert settings("--lora_r", 8, "--config", config("lora_r: 4\nlora_alpha: 5"))["lora_r"] == 8


def test_the_default_config_is_read_when_no_model_is_named(config):
    assert settings(default_config=config("lora_r: 4"))["lora_r"] == 4


@pytest.mark.parametrize(
    "flag",
    [["--model_name_or_path", "a/b"], ["--model_name_or_path=a/b"], ["--model-name-or-path", "a/b"]],
)
def test_the_default_config_is_not_read_when_a_model_is_named(config, flag):
    assert settings(*flag, default_config=config("lora_r: 4"))["lora_r"] == 16


@pytest.mark.parametrize("words", [["--model-name-or-path=~/m"], ["--model_name_or_path", "~/m"]])
def test_the_users_home_is_put_in_where_no_shell_does(config, words):
    home = str(Path.home() / "m")
    assert settings(*words)["model_name_or_path"] == home
    assert settings("--config", config("model_name_or_path: ~/m"))["model_name_or_path"] == home
    assert settings("--model_name_or_path", "a~/m")["model_name_or_path"] == "a~/m"


def test_a_config_takes_the_place_of_the_default_config(config, tmp_path):
    (tmp_path / "other.yaml").write_text("lora_r: 2")
    given = settings("--config", tmp_path / "other.yaml", default_config=config("lora_alpha: 5"))
    assert (given["lora_r"], given["lora_alpha"]) == (2, 32)


# --- values in YAML


def test_2e_4_is_a_float_although_yaml_reads_a_string(config):
    assert settings("--config", config("learning_rate: 2e-4"))["learning_rate"] == 2e-4


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False), ("'no'", False)])
def test_booleans(config, word, value):
    assert settings("--config", config(f"use_peft: {word}"))["use_peft"] is value


def test_a_list(config):
    given = settings("--config", config("lora_target_modules: [q_proj, v_proj]"))
    assert given["lora_target_modules"] == ["q_proj", "v_proj"]


def test_an_empty_list(config):
    assert settings("--config", config("report_to: []"))["report_to"] == []


def test_a_value_that_begins_with_a_dash(config):
    assert settings("--config", config("output_dir: -runs"))["output_dir"] == "-runs"


def test_null_where_none_is_a_value(config):
    assert settings("--config", config("max_length: null"))["max_length"] is None


def test_null_where_a_value_is_needed(config):
    message = refusal("--config", config("learning_rate: null"))
    assert "run.yaml: learning_rate has no value" in message
    assert "leave the line out" in message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lora_r: 5.5", "run.yaml: lora_r '5.5': expected int"),
        ("lora_r: true", "run.yaml: lora_r 'True': expected int"),
        ("lora_r: [1, 2]", "run.yaml: lora_r [1, 2]: expected one value, found a list"),
        ("use_peft: [false]", "run.yaml: use_peft [False]: expected one value, found a list"),
        ("learning_rate: fast", "run.yaml: learning_rate 'fast': expected float"),
        ("use_peft: perhaps", "run.yaml: use_peft: Truthy value expected: got perhaps"),
        ("dtype: int3", "run.yaml: dtype 'int3': expected one of bfloat16, float16, float32."),
    ],
)
def test_a_wrong_type_is_refused_with_file_and_key(config, line, says):
    assert says in refusal("--config", config(line))


def test_an_unknown_key_is_refused_with_file_and_nearest_name(config):
    message = refusal("--config", config("learning_rte: 1"))
    assert "run.yaml: unknown key `learning_rte`. Did you mean `learning_rate`?" in message


def test_an_unknown_key_like_no_other_points_to_help(config):
    assert "unknown key `zzzz`. --help lists all." in refusal("--config", config("zzzz: 4"))


# --- the file


def test_a_missing_config_is_refused_with_those_that_there_are(tmp_path):
    message = refusal("--config", tmp_path / "none.yaml")
    assert "none.yaml: no such file" in message
    assert "embedded.yaml" in message


@pytest.mark.parametrize(("text", "found"), [("- a\n- b", "a list"), ("# nothing yet", "nothing"), ("word", "a str")])
def test_yaml_without_keys_is_refused(config, text, found):
    assert f"run.yaml: expected lines of `key: value`, found {found}" in refusal("--config", config(text))


def test_broken_yaml_is_refused_with_its_line(config):
    message = refusal("--config", config("lora_r: 4\n  lora_alpha: 5"))
    assert "run.yaml: not valid YAML" in message
    assert "line 2" in message


def test_config_with_an_equals_sign_is_refused_with_the_right_spelling():
    assert "write `--config x.yaml`" in refusal("--config=x.yaml")


@pytest.mark.parametrize("argv", [["--config"], ["--config", "--lora_r", "4"]])
def test_config_without_a_path_is_refused(argv):
    assert "--config: expected the path of a YAML file" in refusal(*argv)


def test_two_configs_are_refused(config):
    path = config("lora_r: 4")
    assert "--config: given twice" in refusal("--config", path, "--config", path)


# --- the command line


def test_an_abbreviation_is_refused_with_the_whole_name():
    assert refusal("--learning_rat", "1e-3") == "unknown argument `--learning_rat`. Did you mean `learning_rate`?"


@pytest.mark.parametrize("argv", [["foo"], ["--lora_r", "4", "foo"]])
def test_a_word_without_a_name_is_refused(argv):
    assert refusal(*argv).startswith("unexpected on the command line: foo.")


def test_a_wrong_type_is_refused_with_its_flag():
    assert refusal("--lora_r", "four") == "--lora_r 'four': expected int."


def test_a_flag_without_its_value_is_refused():
    assert refusal("--lora_r") == "--lora_r: expected one argument"


def test_dashes_for_underscores_and_no_for_false_are_taken():
    given = settings("--lora-r", 3, "--no_use_peft")
    assert (given["lora_r"], given["use_peft"]) == (3, False)


def test_8_bit_and_4_bit_together_are_refused():
    assert "load_in_8bit and load_in_4bit: both are true" in refusal("--load_in_8bit", "--load_in_4bit")


# --- columns


def test_columns_as_json():
    assert settings("--columns", '{"dialogue": "text"}')["columns"] == {"dialogue": "text"}


def test_columns_as_yaml(config):
    assert settings("--config", config("columns:\n  dialogue: text"))["columns"] == {"dialogue": "text"}


@pytest.mark.parametrize("text", ["{dialogue: text}", "dialogue", '["text"]', '{"dialogue": 3}'])
def test_columns_of_another_shape_are_refused_with_an_example(text):
    message = refusal("--columns", text)
    assert message.startswith(f"--columns {text}")
    assert 'such as {"dialogue": "text"}' in message


@pytest.mark.parametrize(
    "flag",
    [["--packing", "true"], ["--completion_only_loss", "true"], ["--eos_token", "<end>"], ["--padding_free", "true"]],
)
def test_a_setting_without_effect_is_refused(flag):
    assert f"{flag[0]}: has no effect here" in refusal(*flag)


def test_code_of_a_model_folder_is_never_run():
    assert "--trust_remote_code: no code" in refusal("--trust_remote_code", "true")


def test_one_process_takes_one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert SFTArguments().n_gpu == 1


def test_the_best_model_by_rouge_needs_rows_to_summarise():
    assert "needs --rouge_eval_rows" in refusal("--metric_for_best_model", "eval_rouge", "--rouge_eval_rows", "0")


@pytest.mark.parametrize(
    ("words", "value"), [([], None), (["--load_in_4bit"], True), (["--load_in_4bit", "false"], False)]
)
def test_quantisation_is_on_off_or_not_said(words, value):
    assert settings(*words)["load_in_4bit"] is value


@pytest.mark.parametrize("name", ["tensorbaord", "alll"])
def test_an_unknown_tracker_is_refused_and_not_recommended(name):
    assert refusal("--report_to", name) == f"--report_to {name}: expected trackio, tensorboard, wandb or none."


# --- a recipe's own section


def of_reward(*argv):
    parsed = parse(REWARD, [str(word) for word in argv], section="reward")
    return {key: value for arguments in parsed for key, value in vars(arguments).items()}


def refusal_of_reward(*argv):
    with pytest.raises(InputError) as error:
        of_reward(*argv)
    return str(error.value)


def test_settings_of_fine_tuning_are_passed_over(config):
    text = "learning_rate: 1\noutput_dir: mine\nphases: '1'\nrouge_eval_rows: 3\nreward:"
    given = of_reward("--config", config(text))
    assert (given["learning_rate"], given["output_dir"]) == (5e-4, "runs/reward")


def test_model_and_data_above_the_section_are_shared(config):
    given = of_reward("--config", config("model_name_or_path: a/b\ndataset_path: mine.csv\nreward:\n  samples: 1"))
    assert (given["model_name_or_path"], given["dataset_path"]) == ("a/b", "mine.csv")


def test_the_section_is_read_with_the_settings_of_every_class(config):
    text = "learning_rate: 1\nreward:\n  learning_rate: 2e-3\n  samples: 7\n  min_margin: 0.2\n  temperatures: [0.5]"
    given = of_reward("--config", config(text))
    assert (given["learning_rate"], given["samples"], given["min_margin"]) == (2e-3, 7, 0.2)
    assert given["temperatures"] == [0.5]


def test_the_section_goes_before_what_stands_above_it(config):
    text = "reward:\n  dataset_path: own.csv\ndataset_path: shared.csv"
    assert of_reward("--config", config(text))["dataset_path"] == "own.csv"


def test_the_command_line_goes_before_the_section(config):
    assert of_reward("--config", config("reward:\n  samples: 7"), "--samples", 2)["samples"] == 2


@pytest.mark.parametrize("text", ["lora_r: 4", "lora_r: 4\nreward:"])
def test_a_section_may_be_missing_or_empty(config, text):
    given = of_reward("--config", config(text))
    assert (given["lora_r"], given["samples"]) == (4, 4)


@pytest.mark.parametrize("text", ["reward:\n  sampels: 3", "sampels: 3"])
def test_an_unknown_key_in_or_above_the_section_is_refused_with_the_nearest_name(config, text):
    message = refusal_of_reward("--config", config(text))
    assert ("run.yaml: reward: unknown" in message) == text.startswith("reward")
    assert "unknown key `sampels`. Did you mean `samples`?" in message


def test_a_setting_of_fine_tuning_in_the_section_is_refused(config):
    assert "unknown key `phase2_epochs`" in refusal_of_reward("--config", config("reward:\n  phase2_epochs: 1"))


def test_a_wrong_type_in_the_section_is_refused(config):
    assert "run.yaml: reward: samples 'few': expected int" in refusal_of_reward(
        "--config", config("reward:\n  samples: few")
    )


@pytest.mark.parametrize(("text", "found"), [("reward: [samples]", "['samples']"), ("reward: 5", "5")])
def test_a_section_that_is_no_mapping_is_refused(config, text, found):
    message = refusal_of_reward("--config", config(text))
    assert f"run.yaml: reward: expected indented lines of `key: value` under it, found {found}" in message


@pytest.mark.parametrize(
    "word", ["--lora_r=8", "--use_dora", "--no_use_peft", "--lora-dropout", "--label_smoothing_factor"]
)
def test_what_the_adapter_has_settled_is_refused_on_the_command_line(word):
    assert "has no effect in this recipe. Leave it out." in refusal_of_reward(word, "0")


def test_what_the_adapter_has_settled_is_refused_in_the_section(config):
    message = refusal_of_reward("--config", config("lora_r: 4\nreward:\n  lora_alpha: 8"))
    assert "run.yaml: reward: lora_alpha has no effect in this recipe" in message


def test_settings_of_fine_tuning_are_not_taken_for_those_of_a_recipe_with_a_part_of_its_own(config):
    message = refusal_of_reward("--config", config("learning_rate: 1\nsamples: 3\nphases: '1'"))
    assert "run.yaml: learning_rate: what stands above all parts is for fine-tuning" in message
    assert "in a part of its own, `reward:`, which may be empty" in message


def test_a_key_that_comes_twice_is_refused(config):
    message = refusal("--config", config("lora_r: 16\nseed: 1\nlora_r: 32"))
    assert "lora_r comes twice" in message
    assert "line 3, column 1" in message
    assert settings("--config", config("<<: {lora_r: 8}\nlora_alpha: 9"))["lora_r"] == 8


def test_a_key_that_is_no_word_is_refused(config):
    assert "not valid YAML" in refusal("--config", config("? {a: b}\n: c"))


def test_a_date_that_there_is_not_is_refused(config):
    assert "run.yaml: not valid YAML: month must be in 1..12" in refusal("--config", config("run_name: 2024-13-45"))


def test_what_fine_tuning_does_not_read_is_refused_in_its_yaml_too(config):
    message = refusal("--config", config("lora_task_type: SEQ_CLS"))
    assert "run.yaml: lora_task_type has no effect in this recipe. Leave it out." in message


@pytest.mark.parametrize("word", ["--fsdp=full_shard", "--deepspeed=zero3.json"])
def test_sharding_is_refused_where_the_whole_base_is_needed(word):
    assert "has no effect in this recipe" in refusal_of_reward(word)


def test_no_name_is_proposed_for_what_the_recipe_does_not_read():
    assert "unknown argument `--lora_rank`. --help lists all." in refusal_of_reward("--lora_rank", 4)


def test_settings_that_may_be_true_or_nothing(config):
    assert settings("--config", config("resume_from_checkpoint: true"))["resume_from_checkpoint"] == "True"
    assert settings("--phases", 1, "--phase2_epochs", 0)["phase2_epochs"] == 0


def test_a_word_that_yaml_takes_for_a_boolean_is_told_of(config):
    message = refusal("--config", config("eval_strategy: no"))
    assert "run.yaml: eval_strategy: YAML takes an unquoted yes or no for true or false. Write it in quotes." in message


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("--model", "model_name_or_path"), ("--dataset", "dataset_path"), ("--lora_rank", "lora_r"),
        ("--torch_dtype", "dtype"), ("--template", "prompt_form"),
    ],
)  # fmt: skip
def test_the_nearest_name_is_one_with_an_effect(word, nearest):
    assert f"Did you mean `{nearest}`?" in refusal(word, "x")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--seed -1", "--seed -1: expected 0 or more."),
        ("--seed 20240101123", "--seed 20240101123: expected at most 4294967295."),
        ("--save_only_model true", "--save_only_model true: a killed run would go on without its optimizer."),
        ("--batch_eval_metrics true", "--batch_eval_metrics: has no effect here"),
        ("--train_sampling_strategy group_by_length", "--train_sampling_strategy 'group_by_length': expected one of"),
        ("--learning_rate -1", "--learning_rate -1.0: expected 0 or more."),
        ("--learning_rate nan", "--learning_rate nan: expected 0 or more."),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: expected 1 or more."),
        ("--per_device_eval_batch_size 0", "--per_device_eval_batch_size 0: expected 1 or more."),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0: expected 1 or more."),
        ("--num_train_epochs 0", "--num_train_epochs 0.0: expected more than 0."),
        ("--phase2_epochs -1", "--phase2_epochs -1.0: expected more than 0."),
        ("--rouge_eval_rows -1", "--rouge_eval_rows -1: expected 0 or more."),
        ("--metric_for_best_model eval_foo", "--metric_for_best_model eval_foo: expected eval_loss or eval_rouge."),
        ("--lora_r 0", "--lora_r 0, --lora_alpha 32, --lora_dropout 0.1: expected two numbers of 1 or more"),
        ("--lora_dropout 2", "--lora_dropout 2.0: expected two numbers of 1 or more, and a share below 1."),
        ("--bnb_4bit_quant_storage foo", "--bnb_4bit_quant_storage foo: expected uint8, float16"),
        ("--train_sampling_strategy batch_rebalanced", "--train_sampling_strategy 'batch_rebalanced': expected one of"),
        ("--packing_strategy wrapped", "--packing_strategy: has no effect here"),
        ("--dataset_kwargs {}", "--dataset_kwargs: has no effect in this recipe. Leave it out."),
        ("--phase2_learning_rate nan", "--phase2_learning_rate nan: expected 0 or more."),
        ("--num_train_epochs nan", "--num_train_epochs nan: expected more than 0."),
        ("--metric_for_best_model rouge --rouge_eval_rows 0", "needs --rouge_eval_rows of 1 or more"),
        ("--ddp_timeout 9", "--ddp_timeout: has no effect here"),
        (
            "--early_stopping_patience 9 --load_best_model_at_end false",
            "--early_stopping_patience: has no effect without --load_best_model_at_end true.",
        ),
        ("--metric_for_best_model None", "--metric_for_best_model None: expected eval_loss or eval_rouge."),
        ("--save_steps 1", "--eval_steps 0.1, --save_steps 1.0: the best checkpoint is one that was"),
        ("--save_strategy no", "or --load_best_model_at_end false."),
        ("--accelerator_config nowhere.json", "nowhere.json"),
    ],
)
def test_a_value_out_of_range_is_told_before_anything_is_done(words, says):
    assert says in refusal(*words.split())


def test_fine_tuning_ignores_the_section(config):
    given = settings("--config", config("learning_rate: 1e-3\nreward:\n  learning_rate: 2e-3\n  samples: 7"))
    assert given["learning_rate"] == 1e-3
    assert "samples" not in given


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--stage", "ppo"], "--stage ppo: expected one of sample, label, pair, train, report."),
        (["--samples", "-1"], "--samples -1: expected 0 or more."),
        (["--sample_batch_size", "0"], "--sample_batch_size 0: expected 1 or more."),
        (["--train_sampling_strategy", "group_by_length"], "--train_sampling_strategy 'group_by_length': expected"),
        (["--temperatures", "0.7", "0"], "--temperatures [0.7, 0.0]: expected numbers above 0"),
        (["--min_accuracy", "65"], "--min_accuracy 65.0: expected a share from 0 to 1."),
        (["--trust_remote_code", "true"], "--trust_remote_code: no code"),
        (["--eval_steps", "5"], "--save_steps a multiple of --eval_steps, both of them counts or both shares"),
    ],
)
def test_a_setting_of_the_reward_model_out_of_range_is_refused(words, says):
    assert says in refusal_of_reward(*words)
