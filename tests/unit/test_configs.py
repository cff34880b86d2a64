"""Every shipped YAML is one that the recipe takes, and says how."""

import re

import pytest
import yaml

from alignment.arguments import (
    DataArguments,
    ModelArguments,
    PromptArguments,
    RewardArguments,
    SFTArguments,
)
from alignment.errors import InputError
from alignment.parser import CONFIGS, parse
from alignment.ppo.config import PPOArguments
from alignment.seq2seq import BaselineArguments
from recipes import merge
from reward.labels import LabelArguments

CLASSES = (ModelArguments, DataArguments, PromptArguments, SFTArguments)
ALL = sorted(CONFIGS.glob("*.yaml"))
BASELINES = [file for file in ALL if "baseline" in yaml.safe_load(file.read_text("utf-8"))]  # encoder-decoders
FILES = [file for file in ALL if file not in BASELINES]
CONTEXTS = {"EleutherAI/polyglot-ko-5.8b": 2048, "kakaobrain/kogpt": 2048, "upstage/SOLAR-10.7B-v1.0": 4096}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_baseline = pytest.mark.parametrize("file", BASELINES, ids=lambda file: file.stem)
every_file = pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)


def header(file):
    return re.match(r"(#.*\n)+", file.read_text("utf-8")).group()


def test_no_model_has_two_configs():
    models = {yaml.safe_load(file.read_text("utf-8"))["model_name_or_path"] for file in ALL}
    assert len(models) == len(ALL)


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


def parse_for_baseline(words):
    classes = (ModelArguments, DataArguments, BaselineArguments)
    return parse(classes, words, passed_over=(PromptArguments,), section="baseline")


@each_baseline
def test_the_baseline_recipe_takes_its_own_part_and_the_model(file):
    model, _, baseline = parse_for_baseline(["--config", str(file)])
    written = yaml.safe_load(file.read_text("utf-8"))
    assert {key: getattr(baseline, key) for key in written["baseline"]} == written["baseline"]
    assert written.keys() == {"model_name_or_path", "baseline"}
    assert model.model_name_or_path == written["model_name_or_path"]


@each_baseline
def test_other_recipes_see_nothing_in_it_but_the_model(file):
    own = parse(CLASSES, ["--config", str(file)])
    plain = parse(CLASSES, ["--model_name_or_path", own[0].model_name_or_path])
    assert [vars(one) for one in own[:3]] == [vars(one) for one in plain[:3]]
    assert (own[3].output_dir, own[3].learning_rate) == (SFTArguments.output_dir, SFTArguments.learning_rate)


@each_file
def test_the_merge_recipe_takes_the_same_yaml(file, tmp_path):
    with pytest.raises(InputError, match=f"--model {tmp_path}: no adapter"):
        merge.main(["--config", str(file), "--model", str(tmp_path)])


@each_file
def test_the_baseline_recipe_takes_no_yaml_of_a_decoder(file):
    with pytest.raises(InputError, match="Put this recipe's settings in a part of its own, `baseline:`"):
        parse_for_baseline(["--config", str(file)])


@every_file
def test_the_header_has_the_command_that_names_this_file(file):
    command = re.search(r"^# (accelerate launch .*)$", header(file), re.MULTILINE).group(1)
    words = command.split()
    assert words[words.index("--config") + 1] == f"recipes/configs/{file.name}"
    assert words[words.index("--config") - 1] == f"recipes/{'baseline' if file in BASELINES else 'sft'}.py"


@each_file
def test_the_command_in_the_header_is_one_that_the_recipe_takes(file):
    words = re.search(r"^# (accelerate launch .*)$", header(file), re.MULTILINE).group(1).split()
    root = CONFIGS.parents[1]
    assert (root / words[words.index("--config_file") + 1]).is_file()
    flags = words[words.index("recipes/sft.py") + 1 :]
    flags[flags.index("--config") + 1] = str(root / flags[flags.index("--config") + 1])
    assert parse(CLASSES, flags)[0].model_name_or_path == yaml.safe_load(file.read_text("utf-8"))["model_name_or_path"]


@each_baseline
def test_the_command_in_the_header_is_one_that_the_baseline_recipe_takes(file):
    words = re.search(r"^# (accelerate launch .*)$", header(file), re.MULTILINE).group(1).split()
    root = CONFIGS.parents[1]
    assert (root / words[words.index("--config_file") + 1]).is_file()
    flags = words[words.index("recipes/baseline.py") + 1 :]
    flags[flags.index("--config") + 1] = str(root / flags[flags.index("--config") + 1])
    model, data, _ = parse_for_baseline(flags)
    assert model.model_name_or_path == yaml.safe_load(file.read_text("utf-8"))["model_name_or_path"]
    assert data.dataset_path == "my_dialogues.csv"


@every_file
@pytest.mark.parametrize("line", ["Hardware", "Licence", "Measured"])
def test_the_header_says(file, line):
    assert re.search(rf"^# {line}: \S+", header(file), re.MULTILINE)


def test_two_configs_never_write_into_one_folder():
    contents = [yaml.safe_load(file.read_text("utf-8")) for file in ALL]
    folders = {written.get("baseline", written).get("output_dir", SFTArguments.output_dir) for written in contents}
    assert len(folders) == len(ALL)


@pytest.mark.parametrize(("model", "context_tokens"), CONTEXTS.items())
def test_max_length_fits_the_context(model, context_tokens):
    (file,) = [file for file in FILES if f"model_name_or_path: {model}\n" in file.read_text("utf-8")]
    assert parse(CLASSES, ["--config", str(file)])[3].max_length <= context_tokens
