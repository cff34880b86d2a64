"""Every shipped YAML is one that the recipe takes, and says how."""

import re

import pytest
import yaml

from alignment.arguments import (
    CONFIGS,
    DataArguments,
    ModelArguments,
    PromptArguments,
    RewardArguments,
    SFTArguments,
    parse,
)
from alignment.ppo.config import PPOArguments
from reward.labels import LabelArguments

CLASSES = (ModelArguments, DataArguments, PromptArguments, SFTArguments)
FILES = sorted(CONFIGS.glob("*.yaml"))
CONTEXTS = {"EleutherAI/polyglot-ko-5.8b": 2048, "kakaobrain/kogpt": 2048, "upstage/SOLAR-10.7B-v1.0": 4096}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def header(file):
    return re.match(r"(#.*\n)+", file.read_text("utf-8")).group()


def test_no_model_has_two_configs():
    models = {yaml.safe_load(file.read_text("utf-8"))["model_name_or_path"] for file in FILES}
    assert len(models) == len(FILES)


@each_file
def test_the_recipe_takes_it(file):
    model, data, prompt, sft = parse(CLASSES, ["--config", str(file)])
    written = yaml.safe_load(file.read_text("utf-8"))
    taken = vars(model) | vars(data) | vars(prompt) | vars(sft)
    del written["reward"], written["ppo"]
    assert {key: taken[key] for key in written} == written


@each_file
def test_the_reward_recipe_takes_its_own_part_and_the_model(file):
    classes = (ModelArguments, DataArguments, PromptArguments, LabelArguments, RewardArguments)
    model, data, prompt, label, reward = parse(classes, ["--config", str(file)], section="reward")
    written = yaml.safe_load(file.read_text("utf-8"))
    taken = vars(model) | vars(data) | vars(prompt) | vars(label) | vars(reward)
    assert {key: taken[key] for key in written["reward"]} == written["reward"]
    assert model.model_name_or_path == written["model_name_or_path"]
    assert written["reward"]["sft_model"] == f"{written.get('output_dir', SFTArguments.output_dir)}/phase2"


@each_file
def test_the_ppo_recipe_takes_its_own_part_and_the_model(file):
    classes = (ModelArguments, DataArguments, LabelArguments, PPOArguments)
    model, data, label, ppo = parse(classes, ["--config", str(file)], passed_over=(PromptArguments,), section="ppo")
    written = yaml.safe_load(file.read_text("utf-8"))
    taken = vars(model) | vars(data) | vars(label) | vars(ppo)
    assert {key: taken[key] for key in written["ppo"]} == written["ppo"]
    assert model.model_name_or_path == written["model_name_or_path"]
    of_sft = written.get("output_dir", SFTArguments.output_dir)
    assert (written["ppo"]["sft_model"], of_sft) == (written["reward"]["sft_model"], of_sft)
    assert written["ppo"]["reward_model"] == written["reward"].get("output_dir", RewardArguments.output_dir)


@each_file
def test_the_header_has_the_command_that_names_this_file(file):
    command = re.search(r"^# (accelerate launch .*)$", header(file), re.MULTILINE).group(1)
    words = command.split()
    assert words[words.index("--config") + 1] == f"recipes/configs/{file.name}"
    assert words[words.index("--config") - 1] == "recipes/sft.py"


@each_file
def test_the_command_in_the_header_is_one_that_the_recipe_takes(file):
    words = re.search(r"^# (accelerate launch .*)$", header(file), re.MULTILINE).group(1).split()
    root = CONFIGS.parents[1]
    assert (root / words[words.index("--config_file") + 1]).is_file()
    flags = words[words.index("recipes/sft.py") + 1 :]
    flags[flags.index("--config") + 1] = str(root / flags[flags.index("--config") + 1])
    assert parse(CLASSES, flags)[0].model_name_or_path == yaml.safe_load(file.read_text("utf-8"))["model_name_or_path"]


@each_file
@pytest.mark.parametrize("line", ["Hardware", "Licence", "Measured"])
def test_the_header_says(file, line):
    assert re.search(rf"^# {line}: \S+", header(file), re.MULTILINE)


def test_two_configs_never_write_into_one_folder():
    folders = {yaml.safe_load(file.read_text("utf-8")).get("output_dir", SFTArguments.output_dir) for file in FILES}
    assert len(folders) == len(FILES)


@pytest.mark.parametrize(("model", "context_tokens"), CONTEXTS.items())
def test_max_length_fits_the_context(model, context_tokens):
    (file,) = [file for file in FILES if f"model_name_or_path: {model}\n" in file.read_text("utf-8")]
    assert parse(CLASSES, ["--config", str(file)])[3].max_length <= context_tokens
