"""PPOTrainer as a notebook uses it, on a model of two layers and a vocabulary of 16 letters."""

import gc
import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model_state_dict
from recipe_runs import LIMIT_SECONDS, forked
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from alignment.errors import InputError
from alignment.launch import silence_libraries
from alignment.ppo import PPOConfig, PPOTrainer, Roles
from alignment.ppo import rollout as rollouts
from alignment.ppo.guards import reward_hacking
from alignment.ppo.prompt_cache import PromptCache
from alignment.ppo.roles import POLICY, REFERENCE
from alignment.run import last_checkpoint, step_of

LETTERS = [chr(97 + i) for i in range(14)]
PROMPTS = ["b c d", "e f", "g h i j", "k", "l m n a b", "c", "d e", "f g h"]
TIMES = ("_seconds", "tokens_per_second", "runtime", "per_second")


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *LETTERS])}
    one = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    one.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=one, pad_token="<pad>", eos_token="<eos>", chat_template=template)


def model() -> LlamaForCausalLM:
    """Random, and with a head that tells letters apart."""
    torch.manual_seed(0)
    one = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    with torch.no_grad():
        one.lm_head.weight.mul_(10)
    return one


def share_of_a(completions: list[str], **_: Any) -> list[float]:
    """At most 1: eight times `a`."""
    return [completion.split().count("a") / 8 for completion in completions]


def trainer(folder: Path, scorer: Any = share_of_a, prompts: Any = None, **settings: Any) -> PPOTrainer:
    silence_libraries()
    keywords = {
        name: settings.pop(name)
        for name in ("eval_dataset", "metric", "scorer_weights", "callbacks")
        if name in settings
    }
    values = {
        "output_dir": str(folder), "num_updates": 2, "rollout_batch_size": 8, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1, "num_ppo_epochs": 2, "max_new_tokens": 8, "learning_rate": 1e-3,
        "eval_strategy": "steps" if "metric" in keywords else "no", "save_strategy": "no", "use_cpu": True,
        "load_best_model_at_end": False, "missing_eos_penalty": 0.0, "max_kl": 1e9, "value_warmup_updates": 0,
    } | settings  # fmt: skip
    return PPOTrainer(
        model=values.pop("model", None) or model(),
        args=PPOConfig(**values),
        train_dataset=Dataset.from_dict(
            {"prompt": prompts or PROMPTS, "name": [str(i + 1) for i in range(len(prompts or PROMPTS))]}
        ),
        scorer=scorer,
        processing_class=tokenizer(),
        **keywords,
    )


def scores(one: PPOTrainer) -> list[float]:
    return [line["score"] for line in one.state.log_history if "score" in line]


def test_the_last_rollout_goes_when_training_is_over(tmp_path: Path):
    one = trainer(tmp_path)
    one.train()
    gc.collect()
    assert one.state.global_step == 8
    assert not [kept for kept in gc.get_objects() if isinstance(kept, PromptCache) and kept.layers]


# It learns

LEARNING = {
    "num_updates": 15, "rollout_batch_size": 32, "per_device_train_batch_size": 16, "num_ppo_epochs": 4,
    "learning_rate": 2e-3, "kl_coef": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises_from_chance_to_near_its_maximum(tmp_path: Path, seed: int):
    one = trainer(tmp_path, seed=seed, **LEARNING)
    one.train()
    assert scores(one)[0] < 0.3  # chance, for this model
    assert sum(scores(one)[-3:]) / 3 > 0.9


@pytest.mark.parametrize("settings", [{"num_generations": 4}, {"reread_prompts": True}])
def test_so_it_does_in_other_ways_to_learn(tmp_path: Path, settings: dict[str, Any]):
    one = trainer(tmp_path, **LEARNING, **settings)
    one.train()
    assert scores(one)[0] < 0.3
    assert sum(scores(one)[-3:]) / 3 > 0.9


def test_with_a_large_kl_coefficient_the_policy_stays_put(tmp_path: Path):
    found = {}
    for kl_coef in (0.0, 10.0):
        settings = LEARNING | {"num_updates": 12, "learning_rate": 5e-4, "kl_coef": kl_coef}
        one = trainer(tmp_path / str(kl_coef), **settings)
        one.train()
        found[kl_coef] = [line["kl"] for line in one.state.log_history if "kl" in line][-1], scores(one)[-1]
    assert found[0.0][0] > 10 * abs(found[10.0][0])
    assert found[0.0][1] > found[10.0][1] + 0.1


def test_while_the_value_warms_up_the_policy_does_not_move(tmp_path: Path):
    moved = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            now = one.roles.named_parameters()
            moved[state.global_step] = {name for name, weight in now if not torch.equal(weight, before[name])}

    one = trainer(tmp_path, value_warmup_updates=1, weight_decay=0.5, callbacks=[Watch()])
    before = {name: parameter.clone() for name, parameter in one.roles.named_parameters()}
    one.train()
    assert moved[4]  # the last step of the first update
    assert all(".value." in name or name.startswith("value_head") for name in moved[4])
    assert any(".default." in name for name in moved[5])
    steps = {
        name.split(".")[-2]: int(one.optimizer.state[weight]["step"])
        for name, weight in one.roles.named_parameters()
        if weight in one.optimizer.state
    }
    assert steps == {"default": 4, "value": 8, "value_head": 8}  # of Adam: the policy begins with its own first step


def test_killed_after_the_warm_up_it_ends_with_the_same_bits(tmp_path: Path):
    settings = {"num_updates": 3, "value_warmup_updates": 1, "save_strategy": "steps", "save_steps": 1}
    settings |= {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "save_total_limit": 9}
    one, again = (trainer(tmp_path, **settings) for _ in range(2))
    one.train()
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{one.steps_per_update}"))
    torch.testing.assert_close(again.roles.state_dict(), one.roles.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_amid_an_update_is_refused(tmp_path: Path):
    class Save(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = True

    trainer(tmp_path, num_updates=1, save_strategy="steps", save_total_limit=9, callbacks=[Save()]).train()
    with pytest.raises(InputError, match=r"checkpoint-3: saved amid an update \(step 3, where an update has 4\)"):
        trainer(tmp_path, save_strategy="steps").train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    trainer(tmp_path, save_strategy="steps").train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_only_policy_and_value_move(tmp_path: Path):
    one = trainer(tmp_path)
    before = {name: parameter.clone() for name, parameter in one.roles.named_parameters()}
    one.train()
    held = {id(parameter) for group in one.optimizer.param_groups for parameter in group["params"]}
    names = {name for name, parameter in one.roles.named_parameters() if id(parameter) in held}
    learning = {n for n in before if ".default." in n or ".value." in n or n.startswith("value_head")}
    assert names == learning
    for name, parameter in one.roles.named_parameters():
        learns = ".default." in name or ".value." in name or name.startswith("value_head")
        assert torch.equal(parameter, before[name]) != learns, name
    assert any(f".{REFERENCE}." in name for name in before)


def test_the_first_ratio_is_exactly_1(tmp_path: Path):
    one = trainer(tmp_path, num_updates=1, num_ppo_epochs=1, gradient_accumulation_steps=2)
    one.train()
    first = one.state.log_history[0]
    assert (first["ratio"], first["approx_kl"], first["kl"], first["clipped"]) == (1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("reread", "checkpointing"), [(False, False), (True, False), (True, True)])
def test_the_split_into_micro_batches_does_not_matter(tmp_path: Path, reread: bool, checkpointing: bool):
    weights = []
    for micro, accumulation in ((8, 1), (2, 4)):
        settings = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
        settings |= {"reread_prompts": reread, "gradient_checkpointing": checkpointing}
        one = trainer(tmp_path / str(micro), **settings)
        one.train()
        weights.append(torch.cat([parameter.flatten() for parameter in one.roles.trained()]))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)


# Rollouts


def sampled(prompts: list[list[int]], places: Sequence[int], tokens: int, temperature: float = 1.0) -> list[list[int]]:
    roles = Roles(model())
    of_policy = roles.prefill(prompts, POLICY)
    return rollouts.sample(roles, prompts, places, 0, 1, temperature, tokens, of_policy, batch_size=len(prompts))


def test_a_completion_does_not_depend_on_what_shares_its_batch():
    prompts = [[5, 6, 7], [8], [8], [9, 10, 11, 12]]  # one of them twice, which is read once
    together = sampled(prompts, range(4), 8)
    roles = Roles(model())
    of_policy = rollouts.prefill(roles, prompts, POLICY, 3)
    assert rollouts.sample(roles, prompts, range(4), 0, 1, 1.0, 8, of_policy, batch_size=2) == together
    alone = [sampled([prompt], [i], 8)[0] for i, prompt in enumerate(prompts)]
    assert together == alone
    assert len({tuple(ids) for ids in together}) == 4


def test_tokens_are_sampled_as_often_as_they_are_likely():
    prompt = [5, 6, 7]
    tokens = sampled([prompt] * 4000, range(4000), 1, temperature=0.7)
    shares = torch.bincount(torch.tensor(tokens).flatten(), minlength=16) / 4000
    with torch.no_grad():
        expected = (model()(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.03)


def test_a_completion_stops_at_its_end_token():
    prompts = [[5 + i % 8] for i in range(64)]
    completions = sampled(prompts, range(64), 8)
    assert all(1 not in ids[:-1] for ids in completions)
    assert any(ids[-1] == 1 and len(ids) < 8 for ids in completions)
    assert all(len(ids) == 8 for ids in completions if ids[-1] != 1)


# Scorers


def test_several_scorers_are_weighted_and_logged_apart(tmp_path: Path):
    seen = []

    def of_name(completions: list[str], name: list[str], prompts: list[str], **_: Any) -> list[float]:
        seen.extend(zip(name, prompts, strict=True))
        return [float(one) for one in name]

    one = trainer(tmp_path, scorer={"a": share_of_a, "name": of_name}, scorer_weights={"name": 0.5}, num_updates=1)
    one.train()
    first = one.state.log_history[0]
    assert sorted(seen) == [(str(i + 1), prompt) for i, prompt in enumerate(PROMPTS)]
    assert first["score/name"] == 4.5
    assert first["score"] == pytest.approx(first["score/a"] + 0.5 * 4.5)


def test_completions_of_a_prompt_are_paid_by_what_sets_them_apart(tmp_path: Path):
    seen = []

    def of_name(completions: list[str], name: list[str], **_: Any) -> list[float]:
        seen.extend(name)
        return [float(one) for one in name]

    one = trainer(tmp_path, scorer=of_name, num_generations=4, num_updates=4)
    before = {name: weight.clone() for name, weight in one.roles.named_parameters() if ".default." in name}
    one.train()
    assert all(len(set(seen[i : i + 4])) == 1 for i in range(0, len(seen), 4))
    assert sorted(seen) == sorted([*"12345678"] * 4)  # each prompt once, four times
    assert [line["reward"] for line in one.state.log_history if "reward" in line] == [0.0] * 4
    after = dict(one.roles.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())  # nothing to learn from that


def test_the_value_begins_by_foreseeing_the_first_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fitted = {}
    begin = PPOTrainer._begin_value

    def look(self: PPOTrainer, scores: Any, values: Any, mask: Any) -> None:
        begin(self, scores, values, mask)
        fitted.update(scores=scores, values=values, mask=mask)

    monkeypatch.setattr(PPOTrainer, "_begin_value", look)
    one = trainer(tmp_path, missing_eos_penalty=2.0, num_updates=1)
    torch.nn.init.normal_(one.roles.value_head.weight)  # an opinion about something else
    batches = one.make_rollout(0)
    mask = fitted["mask"]
    of_tokens = fitted["scores"].unsqueeze(1).expand_as(mask)
    assert of_tokens[mask].mean().abs() > 0.1  # completions that did not end cost something
    torch.testing.assert_close(fitted["values"][mask].mean(), of_tokens[mask].mean(), rtol=1e-4, atol=1e-5)
    assert (fitted["values"] - of_tokens)[mask].var() <= of_tokens[mask].var() + 1e-6
    assert torch.equal(rollouts.concatenated(batches, "old_values"), fitted["values"])


def test_a_completion_that_does_not_end_costs(tmp_path: Path):
    one = trainer(tmp_path, scorer=lambda completions, **_: [0.0] * len(completions), missing_eos_penalty=2.0)
    one.train()
    first = one.state.log_history[0]
    assert 0 < first["ended"] < 1
    assert first["reward"] == pytest.approx(-2 * (1 - first["ended"]))


def test_scorers_get_lists(tmp_path: Path):
    kinds = set()

    def look(**columns: Any) -> list[float]:
        kinds.update((name, type(column)) for name, column in columns.items())
        return [0.0] * len(columns["completions"])

    trainer(tmp_path, scorer=look).train()
    assert kinds == {("prompts", list), ("completions", list), ("name", list)}


def test_a_notebook_needs_few_settings(tmp_path: Path):
    one = PPOTrainer(
        model=model(), scorer=share_of_a, train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer(),
        args=PPOConfig(
            output_dir=str(tmp_path), num_updates=2, rollout_batch_size=8, gradient_accumulation_steps=2,
            max_new_tokens=8, use_cpu=True,
        ),
    )  # fmt: skip
    one.train()
    assert len(scores(one)) == 2


def test_a_metric_without_the_figure_that_chooses_is_told_at_once(tmp_path: Path):
    evaluation = held_out([1.0] * 9) | {"metric": lambda completions, **_: {"bleu": 1.0}}
    evaluation |= {"save_strategy": "steps", "load_best_model_at_end": True}
    with pytest.raises(InputError, match=r"eval_rouge: there is none\. Evaluation gives .*eval_bleu"):
        trainer(tmp_path, **evaluation).train()


def test_a_conversation_is_a_prompt_too(tmp_path: Path):
    talks = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert trainer(tmp_path, prompts=talks).prompt_ids == trainer(tmp_path).prompt_ids


# Guards


def held_out(values: list[float]) -> dict[str, Any]:
    """An evaluation whose true metric takes these values in turn."""
    given = iter(values)
    return {
        "eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:2], "name": ["1", "2"]}),
        "metric": lambda completions, **_: {"rouge": next(given)},
        "eval_steps": 1,
    }


def test_the_best_checkpoint_by_the_true_metric_is_kept(tmp_path: Path):
    values = [10.0, 11.0, 30.0, 20.0]
    one = trainer(
        tmp_path, num_updates=3, save_strategy="steps", save_steps=1, load_best_model_at_end=True, **held_out(values)
    )
    one.train()
    assert [line["eval_rouge"] for line in one.state.log_history if "eval_rouge" in line] == values
    best = tmp_path / "checkpoint-8"  # after two updates of four steps
    assert Path(one.state.best_model_checkpoint) == best
    one.save_model(str(tmp_path / "end"))
    assert (tmp_path / "end/adapter_model.safetensors").read_bytes() == (
        best / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("values", "greater"), [([30.0, 10.0, 29.0, 20.0], True), ([1.0, 3.0, 1.5, 2.0], False)])
def test_where_nothing_is_gained_the_policy_is_as_it_began(
    tmp_path: Path, values: list[float], greater: bool, capsys: pytest.CaptureFixture[str]
):
    keep = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "greater_is_better": greater}
    one = trainer(tmp_path, num_updates=3, **keep, **held_out(values))
    began = {name: weight.clone() for name, weight in one.roles.model.named_parameters() if ".default." in name}
    one.train()
    ended = {name: weight for name, weight in one.roles.model.named_parameters() if ".default." in name}
    torch.testing.assert_close(ended, began, rtol=0, atol=0)
    moved = load_file(tmp_path / "checkpoint-12" / "adapter_model.safetensors")
    assert any(not torch.equal(weight, began[f"{name[:-7]}.default.weight"]) for name, weight in moved.items())
    told = f"eval_rouge was {values[0]:.4g} before, and at best {values[2]:.4g} after"
    assert f"Nothing was gained: {told}. The policy is as it began." in capsys.readouterr().err
    assert one.state.best_model_checkpoint is None


def test_where_roles_are_handed_over_the_policy_is_as_it_was_handed(tmp_path: Path):
    first = trainer(tmp_path / "first", num_updates=2)
    first.train()
    handed = first.roles.policy_weights()
    keep = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    again = trainer(tmp_path / "again", model=first.roles, num_updates=2, **keep, **held_out([30.0, 10.0, 20.0]))
    again.train()
    torch.testing.assert_close(again.roles.policy_weights(), handed, rtol=0, atol=0)
    reference = get_peft_model_state_dict(again.roles.model, adapter_name=REFERENCE)
    assert any(not torch.equal(weight, reference[name]) for name, weight in handed.items())


@pytest.mark.parametrize(
    ("given", "evaluated", "saved"),
    [
        ({"save_steps": 1}, [0, 3, 6], [1, 2, 3, 4, 5, 6]),
        ({"save_steps": 3, "eval_steps": 2}, [0, 2, 4, 6], [2, 4, 6]),
        ({"eval_steps": 3, "save_steps": 0.5}, [0, 3, 6], [3, 6]),
    ],
)
def test_steps_of_saving_and_evaluating_need_not_be_of_one_kind(
    tmp_path: Path, given: dict, evaluated: list, saved: list
):
    keep = {"save_strategy": "steps", "load_best_model_at_end": True, "save_total_limit": 9}
    settings = {"num_updates": 6, **keep, **held_out([float(i) for i in range(9)]), "eval_steps": 0.5} | given
    one = trainer(tmp_path, **settings)
    one.train()
    log = [line["step"] for line in one.state.log_history if "eval_rouge" in line]
    assert [step // one.steps_per_update for step in log] == evaluated
    checkpoints = sorted(step_of(path) // one.steps_per_update for path in tmp_path.glob("checkpoint-*"))
    assert checkpoints == saved
    assert step_of(Path(one.state.best_model_checkpoint)) // one.steps_per_update == max({*saved} & {*evaluated})


def test_without_held_out_prompts_any_steps_will_do(tmp_path: Path):
    one = PPOTrainer(
        model=model(), scorer=share_of_a, train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer(),
        args=PPOConfig(output_dir=str(tmp_path), use_cpu=True, num_updates=9, max_new_tokens=8, save_steps=5),
    )  # fmt: skip
    assert one.args.save_steps == 5 * one.steps_per_update


def test_early_stopping_waits_until_the_policy_learns(tmp_path: Path):
    patient = {"early_stopping_patience": 2, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    one = trainer(tmp_path, num_updates=9, value_warmup_updates=5, **patient, **held_out([10.0] * 99))
    one.train()
    # The evaluation after the fifth update is the first that counts, and two more are no better.
    assert one.state.global_step // one.steps_per_update == 7


def test_killed_after_it_stopped_early_it_does_not_go_on(tmp_path: Path):
    patient = {"early_stopping_patience": 2, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    one = trainer(tmp_path, num_updates=5, **patient, **held_out([10.0, 30.0, 20.0, 20.0]))
    one.train()
    again = trainer(tmp_path, num_updates=5, **patient, **held_out([99.0] * 9))
    again.train(resume_from_checkpoint=str(last_checkpoint(tmp_path)))
    assert again.state.global_step == one.state.global_step == 3 * one.steps_per_update
    assert again.state.best_model_checkpoint == one.state.best_model_checkpoint
    torch.testing.assert_close(again.roles.state_dict(), one.roles.state_dict(), rtol=0, atol=0)


def test_a_weight_of_no_scorer_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="scorer_weights: lenght: expected some of score"):
        trainer(tmp_path, scorer_weights={"lenght": 2.0})


def test_the_kl_coefficient_doubles_above_half_of_max_kl_and_ppo_stops_above_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one = trainer(tmp_path, **LEARNING | {"num_updates": 30, "max_kl": 6.0, "kl_coef": 0.001, "learning_rate": 1e-3})
    one.train()
    lines = [line for line in one.state.log_history if "kl_coef" in line]
    assert len(lines) < 30
    raised = [line["kl_coef"] for line in lines]
    for before, after, line in zip(raised, raised[1:], lines, strict=False):
        assert after == (before * 2 if line["kl"] > 3.0 else before)
    assert raised[-1] > 0.001
    assert "is above --max_kl 6.0. There is no checkpoint to go back to" in capsys.readouterr().err


def test_above_max_kl_it_goes_back_to_the_last_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = LEARNING | {"num_updates": 30, "max_kl": 4.0, "kl_coef": 0.0, "learning_rate": 1e-3}
    one = trainer(tmp_path, save_strategy="steps", save_steps=1, **settings)
    one.train()
    last = last_checkpoint(tmp_path, before=one.state.global_step)
    assert last != last_checkpoint(tmp_path)  # which is the policy that went too far
    assert f"The policy is that of {last.name}" in capsys.readouterr().err
    one.save_model(str(tmp_path / "end"))
    assert (tmp_path / "end/adapter_model.safetensors").read_bytes() == (
        last / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("values", [[9.0, 20.0, *range(8, -22, -1)], [9.0, *range(10, 41)]], ids=["first", "last"])
def test_above_max_kl_it_goes_back_to_the_best_checkpoint_before_where_that_is_wanted(
    tmp_path: Path, values: list[float], capsys: pytest.CaptureFixture[str]
):
    settings = LEARNING | {"num_updates": 30, "max_kl": 4.0, "kl_coef": 0.0, "learning_rate": 1e-3}
    settings |= {
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "early_stopping_patience": 30,
    }
    one = trainer(tmp_path, **settings, **held_out(values))
    one.train()
    if values[1] == 20:
        best = Path(one.state.best_model_checkpoint)
        assert step_of(best) == one.steps_per_update
    else:  # the best would be the policy that went too far
        best = last_checkpoint(tmp_path, before=one.state.global_step)
    assert f"The policy is that of {best.name}" in capsys.readouterr().err
    one.save_model(str(tmp_path / "end"))
    assert (tmp_path / "end/adapter_model.safetensors").read_bytes() == (
        best / "adapter_model.safetensors"
    ).read_bytes()


def test_the_kl_coefficient_follows_its_target(tmp_path: Path):
    one = trainer(tmp_path, num_updates=3, kl_target=5.0, kl_coef=0.1)
    one.train()
    coefficients = [line["kl_coef"] for line in one.state.log_history if "kl_coef" in line]
    assert coefficients == pytest.approx([0.1, 0.098, 0.098**2 / 0.1])  # far below the target


@pytest.mark.parametrize(
    ("reward", "rouge", "hacked"),
    [([0, 1, 2], [30, 29, 25], True), ([0, 1, 2], [30, 29, 31], False), ([0, -1, -1], [30, 29, 25], False),
     ([0, 1], [30, 20], False), ([0, 0, 1, 1, 2], [30, 29, 31, 28, 25], True),  # the last two decide
     ([0, 1, 2], [30, 30, 25], False), ([0, 0, 2], [30, 29, 25], False), ([], [], False)],
)  # fmt: skip
def test_reward_hacking_is_told_with_figures(reward: list[float], rouge: list[float], hacked: bool):
    log = [
        {"step": 4 * i, "eval_score": r, "eval_rouge": m, "eval_length_characters": 90 + i}
        for i, (r, m) in enumerate(zip(reward, rouge, strict=True))
    ]
    log.insert(1, {"step": 1, "loss": 0.5})
    warning = reward_hacking(log, "eval_rouge", 4)
    assert (warning is not None) == hacked
    if warning:
        assert warning.startswith(f"reward hacking: from update 0 to {len(reward) - 1} the score rose")
        assert "eval_score 0 -> 2, eval_rouge 30 -> 25, eval_length_characters 90 -> 9" in warning


def test_reward_hacking_is_said_while_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rising = iter(range(100))
    one = trainer(
        tmp_path, scorer=lambda completions, **_: [next(rising) / 100] * len(completions), num_updates=3,
        **held_out([30.0, 29.0, 28.0, 27.0]),
    )  # fmt: skip
    one.train()
    assert "reward hacking: from update 0 to 3" in capsys.readouterr().err


# A model that is handed over


def test_the_seed_decides_how_a_new_adapter_begins(tmp_path: Path):
    bases = model(), model()
    one = trainer(tmp_path, model=bases[0], seed=7)
    torch.manual_seed(1)  # as whatever a notebook did before
    again = trainer(tmp_path, model=bases[1], seed=7)
    torch.testing.assert_close(again.roles.state_dict(), one.roles.state_dict(), rtol=0, atol=0)


def test_roles_serve_a_second_trainer_and_their_base_does_not(tmp_path: Path):
    base = model()
    one = trainer(tmp_path, model=base)
    trainer(tmp_path, model=one.roles, num_updates=1).train()
    for used in (base, one.roles.model):
        with pytest.raises(
            InputError, match=r"has the roles of another PPOTrainer.*Load it again, or .*trainer\.roles"
        ):
            trainer(tmp_path, model=used)


def test_the_name_of_a_model_is_not_one(tmp_path: Path):
    with pytest.raises(InputError, match=r"model='some/name': expected .*AutoModelForCausalLM\.from_pretrained"):
        trainer(tmp_path, model="some/name")


# Evaluation


def test_only_the_prompts_that_were_held_out_are_evaluated(tmp_path: Path):
    one = trainer(tmp_path / "one", **held_out([10.0, 20.0]))
    assert one.evaluate()["eval_rouge"] == 10.0
    with pytest.raises(InputError, match="answers the eval_dataset of this trainer alone"):
        one.evaluate(eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:1]}))
    with pytest.raises(InputError, match="answers the eval_dataset of this trainer alone"):
        trainer(tmp_path / "none").evaluate()


def test_another_metric_needs_no_name_where_no_checkpoint_is_chosen(tmp_path: Path):
    evaluation = held_out([]) | {"metric": lambda completions, **_: {"length": 3.0}}
    one = trainer(tmp_path, **evaluation)
    one.train()
    assert [line["eval_length"] for line in one.state.log_history if "eval_length" in line] == [3.0] * 3


@pytest.mark.parametrize("best", ["length", "eval_length"])
def test_the_metric_that_chooses_is_named_with_eval_or_without(tmp_path: Path, best: str):
    keep = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": best}
    given = iter([1.0, 3.0, 2.0])
    one = trainer(
        tmp_path, **keep, **held_out([]) | {"metric": lambda completions, **_: {"length": next(given)}}
    )  # fmt: skip
    one.train()
    assert step_of(Path(one.state.best_model_checkpoint)) == one.steps_per_update


# Bad input


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda completions, **_: 1 / 0, r"Scorer score: ZeroDivisionError: division by zero \(.*\.py:\d+"),
        (lambda completions, **_: [float("nan")] * len(completions), "Scorer score: nan for .*a finite number"),
        (lambda completions, **_: [1.0], "Scorer score: 1 scores for 8 completions"),
        (lambda completions, **_: None, "Scorer score: TypeError"),
        (lambda completions: [0.0] * len(completions), "Scorer score: TypeError.*prompts, completions and name"),
    ],
)  # fmt: skip
def test_a_faulty_scorer_is_told(tmp_path: Path, scorer: Callable, message: str):
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, scorer=scorer).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout_batch_size": 10}, r"--rollout_batch_size 10: expected a multiple of 4, which is --per_device"),
        ({"max_new_tokens": 60}, "Prompt 4: 5 tokens and 60 for the completion.*at most 64"),
        ({"prompts": ["a", ""]}, "Prompt 1: 0 tokens"),
        ({"kl_estimator": "k2"}, "--kl_estimator k2: expected one of k1, k3"),
        ({"temperature": 0.0}, "--temperature 0.0: expected more than 0"),
        ({"kl_coef": -1.0}, "--kl_coef -1.0: expected 0 or more"),
        ({"lam": 1.5}, "--lam 1.5"),
        ({"lam": math.nan}, "--lam nan"),
        ({"kl_coef": math.nan}, "--kl_coef nan: expected 0 or more"),
        ({"kl_coef": math.inf}, "--kl_coef inf: expected 0 or more"),
        ({"temperature": math.inf}, "--temperature inf: expected more than 0"),
        ({"temperature": math.nan}, "--temperature nan: expected more than 0"),
        ({"max_kl": math.nan}, "--max_kl nan: expected more than 0"),
        ({"kl_target": math.nan}, "--kl_target nan"),
        ({"kl_target": 7.0, "max_kl": 6.0}, "--kl_target 7.0"),
        ({"num_ppo_epochs": 0}, "--num_ppo_epochs 0: expected 1 or more"),
        ({"max_new_tokens": -5}, "--max_new_tokens -5: expected 1 or more"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0: expected 1 or more"),
        ({"num_updates": -1}, "--num_updates -1: expected 1 or more"),
        ({"num_generations": 3}, "--num_generations 3: expected a divisor of the 8 completions"),
        ({"max_length": 20, "max_new_tokens": 16}, "Prompt 4: 5 tokens and 16 for the completion.*at most 20"),
        ({"enable_jit_checkpoint": True}, "--enable_jit_checkpoint: would save amid an update"),
        ({"save_strategy": "epoch"}, "--save_strategy, --logging_strategy: PPO counts updates; expected steps or no"),
        (
            {"save_strategy": "steps", "load_best_model_at_end": True},
            "--eval_strategy no, --save_strategy steps, .* the best checkpoint is one that was evaluated and saved",
        ),
        ({"load_best_model_at_end": True, "metric_for_best_model": None}, "--metric_for_best_model: none, where"),
        ({"max_steps": 7}, "--max_steps 7: PPO counts updates; use --num_updates"),
        ({"gradient_checkpointing": True}, "--gradient_checkpointing true has no effect .* --reread_prompts true"),
        ({"bf16": True}, "--bf16, --fp16: .* the type of --dtype"),
        ({"value_warmup_updates": 2}, "--value_warmup_updates 2: of 2 updates none is left for the policy"),
    ],
)
def test_settings_that_do_not_fit_are_told(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, **settings)


def test_more_processes_are_told_how_many_steps_to_accumulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PPOConfig, "world_size", 3)
    with pytest.raises(
        InputError, match=r"48: expected a multiple of 96, .* With --gradient_accumulation_steps 4 it is"
    ):
        PPOConfig(
            output_dir=str(tmp_path), use_cpu=True, rollout_batch_size=48, per_device_train_batch_size=4,
            gradient_accumulation_steps=8, eval_strategy="no", save_strategy="no",
        )  # fmt: skip


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(tmp_path: Path):
    bare = tokenizer()
    bare.pad_token = None
    one = PPOTrainer(
        model=model(), scorer=share_of_a, train_dataset=Dataset.from_dict({"prompt": PROMPTS}), processing_class=bare,
        args=PPOConfig(
            output_dir=str(tmp_path), use_cpu=True, num_updates=2, rollout_batch_size=8, max_new_tokens=4,
            per_device_train_batch_size=4, gradient_accumulation_steps=1, eval_strategy="no", save_strategy="no",
        ),
    )  # fmt: skip
    one.train()
    assert len(scores(one)) == 2


def test_no_prompts_are_told(tmp_path: Path):
    with pytest.raises(InputError, match="No prompts to train on"):
        PPOTrainer(
            model=model(), args=PPOConfig(output_dir=str(tmp_path), use_cpu=True), scorer=share_of_a,
            train_dataset=Dataset.from_dict({"prompt": []}), processing_class=tokenizer(),
        )  # fmt: skip


def test_nothing_but_empty_completions_are_told(tmp_path: Path):
    silent = model()
    with torch.no_grad():  # the end token, whatever comes before
        silent.model.norm.weight.zero_()
        silent.lm_head.weight.zero_()
    original = silent.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        output.logits[..., 1] += 100
        return output

    silent.forward = forward
    with pytest.raises(InputError, match="every completion is empty"):
        trainer(tmp_path, model=silent).train()


def test_a_loss_that_is_no_number_stops_the_run_and_saves_its_batch(tmp_path: Path):
    class Break(TrainerCallback):
        def on_step_end(self, *args: Any, model: Roles, **kwargs: Any) -> None:
            with torch.no_grad():
                model.value_head.weight.fill_(float("nan"))

    with pytest.raises(
        InputError, match=r"The loss is not finite at step 1; .*not-finite\.0\.safetensors has the batch"
    ):
        trainer(tmp_path, callbacks=[Break()]).train()
    saved = load_file(tmp_path / "not-finite.0.safetensors")
    assert saved["completion_ids"].shape == saved["advantages"].shape


# Killed and resumed

RESUMED = {
    "num_updates": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "learning_rate": 5e-3,
}
# What is about to be called, and for which time, when the process is killed.
MOMENTS = {
    "before anything": ("alignment.ppo.trainer.sample", 1),
    "in the first rollout": ("alignment.ppo.rollout.judge_batch", 2),
    "between sampling and scoring": ("alignment.ppo.trainer.score", 3),
    "in the third rollout": ("alignment.ppo.trainer.sample", 3),
    "before a mini-batch": ("alignment.ppo.trainer.PPOTrainer.compute_loss", 6),
    "between forward and step": ("torch.optim.AdamW.step", 7),
    "while saving the policy": ("alignment.ppo.roles.save_file", 4),
    "while saving the value": ("alignment.ppo.roles.save_file", 5),
    "while saving the optimiser": ("transformers.Trainer._save_optimizer_and_scheduler", 2),
    "before the state is written": ("transformers.trainer_callback.TrainerState.save_to_json", 3),
}


def run_and_die(folder: str, moment: str | None) -> None:
    """Trains in a process of its own, from the last whole checkpoint if there is one, up to a SIGKILL."""
    torch.set_num_threads(1)
    if moment:
        where, times = MOMENTS[moment]
        owner, name = where.rpartition(".")[::2]
        place = _find(owner)
        original, calls = getattr(place, name), [0]

        def deadly(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == times:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(place, name, deadly)
    evaluation = {"eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:3], "name": ["1", "2", "3"]})}
    evaluation["metric"] = lambda completions, **_: {"rouge": sum(map(len, completions)) / 3}
    one = trainer(Path(folder), **RESUMED, **evaluation)
    checkpoint = last_checkpoint(Path(folder))
    one.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    one.save_model(str(Path(folder) / "end"))
    log = [
        {name: value for name, value in line.items() if not name.endswith(TIMES)} for line in one.state.log_history[:-1]
    ]
    (Path(folder) / "log.json").write_text(json.dumps(log, sort_keys=True))


def _find(name: str) -> Any:
    import importlib

    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            place = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            place = getattr(place, part)
        return place
    raise AssertionError(name)


def in_its_own_process(folder: Path, moment: str | None) -> int:
    process = forked(run_and_die, str(folder), moment)
    process.join(LIMIT_SECONDS)
    return process.exitcode


def result(folder: Path) -> dict[str, bytes]:
    files = ["end/adapter_model.safetensors", "end/value/adapter_model.safetensors", "end/value/head.safetensors"]
    return {name: (folder / name).read_bytes() for name in [*files, "log.json"]}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert in_its_own_process(folder, None) == 0
    return result(folder)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path: Path, uninterrupted: dict[str, bytes], moment: str):
    assert in_its_own_process(tmp_path, moment) == -signal.SIGKILL
    assert not (tmp_path / "end").exists()
    assert in_its_own_process(tmp_path, None) == 0
    assert result(tmp_path) == uninterrupted
