"""reward/model.py on tiny random models of five architectures: reading, saving, publishing, centring, training."""

import json
import math
import shutil
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma3TextConfig,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from alignment import dialogue, models
from alignment.arguments import ModelArguments, RewardArguments
from alignment.data import load_records
from alignment.errors import InputError
from alignment.ppo.roles import HEAD
from alignment.records import Record
from alignment.run import write_json
from reward import model as reward_model
from reward.attribution import Attribution
from reward.model import RewardModel, Scale, encode_summaries, head_of, load_scorer, make_batch, raw_scores, select
from reward.pairs import Pair
from reward.trainer import PairCollator, make_examples, make_trainer

SIZES = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = SIZES | {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "gpt_neox": GPTNeoXConfig(**SIZES, intermediate_size=64),
    "gptj": GPTJConfig(vocab_size=1000, n_embd=32, n_layer=2, n_head=2, rotary_dim=8),
    "qwen3": Qwen3Config(**GROUPED),
    "gemma3": Gemma3TextConfig(**GROUPED, sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
}
FORM = {"form": "instruction", "phase": 1}
SCALE = Scale(mean=0.5, deviation=2.0, length_slope=0.3, mean_log_length=3.0, shortest=2.0, longest=6.0)
ATTRIBUTION = Attribution({" said": 0.5, " asks": -0.3})
PARTS = {"form": "instruction", "phase": 1, "scale": SCALE, "attribution": ATTRIBUTION, "attribution_weight": 0.7}
RECORDS = sorted(load_records("embedded-ko")[0], key=lambda record: len(record.dialogue))[:40:10]
DIALOGUES = [record.dialogue for record in RECORDS]
REFERENCES = [record.references[0] for record in RECORDS]


@dataclass
class Saved:
    """A reward model in memory, and the folders of its base, of the adapter it grew from, and of itself."""

    model: RewardModel
    base: Path
    sft: Path
    folder: Path


def arguments(base: Path, **changes) -> ModelArguments:
    return ModelArguments(model_name_or_path=str(base), dtype="float32", lora_dropout=0.0, **changes)


def pair(record: Record, chosen: str, rejected: str, margin: float = 0.1) -> Pair:
    return Pair(record.id, chosen, rejected, margin, "reference > other", "like length")


def trainer_of(model: PeftModel, tokenizer: PreTrainedTokenizerFast, folder: Path, **changes):
    """A trainer on two pairs of two dialogues."""
    pairs = [pair(RECORDS[0], REFERENCES[0], REFERENCES[1]), pair(RECORDS[1], REFERENCES[1], REFERENCES[0])]
    examples, _ = make_examples(pairs, RECORDS[:2], 1024, **FORM, tokenizer=tokenizer)
    args = RewardArguments(
        use_cpu=True, eval_strategy="no", save_strategy="no", load_best_model_at_end=False,
        **changes,
    )  # fmt: skip
    return make_trainer(model, tokenizer, args, folder, examples, examples)


@pytest.fixture(scope="module")
def saved_for(tmp_path_factory, tiny_tokenizer) -> Callable[[str], Saved]:
    """A reward model of an architecture, saved as the recipe saves it, with random adapters and head."""

    @cache
    def save(name: str) -> Saved:
        torch.manual_seed(0)
        root = tmp_path_factory.mktemp(name)
        base, sft, folder = root / "base", root / "sft", root / "reward"
        AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(base)
        policy = models.load_for_training(arguments(base))
        for parameter_name, parameter in policy.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        policy.save_pretrained(sft)
        scorer = load_scorer(arguments(base), sft)
        torch.nn.init.normal_(head_of(scorer).weight)
        trainer_of(scorer, tiny_tokenizer, folder).save_model()
        model = RewardModel(scorer.eval(), tiny_tokenizer, **PARTS)
        model.save(folder)
        write_json({"finished": True, "settings": {"dtype": "float32"}}, folder / "manifest.json")
        return Saved(model, base, sft, folder)

    return save


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, saved_for) -> Saved:
    return saved_for(request.param)


@pytest.fixture(scope="module")
def llama(saved_for) -> Saved:
    return saved_for("llama")


@pytest.fixture
def copied(llama, tmp_path) -> Path:
    """A copy of a reward model's folder that a test may damage."""
    return shutil.copytree(llama.folder, tmp_path / "copied")


@pytest.fixture(scope="module")
def batch(tiny_tokenizer) -> dict[str, torch.Tensor]:
    """Three dialogues of different lengths with three, one and two summaries."""
    prompts = [prompt_ids(text, tiny_tokenizer) for text in DIALOGUES[:3]]
    assert min(map(len, prompts)) > 64  # the sliding window of Gemma here
    assert len(set(map(len, prompts))) == 3
    texts = [REFERENCES[:3], REFERENCES[1:2], REFERENCES[2:]]
    return make_batch(prompts, [encode_summaries(own, "instruction", tiny_tokenizer) for own in texts], tiny_tokenizer)


def prompt_ids(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    prompt = dialogue.prompt_for(Record("a", text, ()), **FORM, tokenizer=tokenizer)
    return dialogue.encode_prompt(prompt, "instruction", tokenizer)


# --- reading


def scores_and_gradients(model: PeftModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    scores = raw_scores(model, batch)
    (scores * torch.arange(1, len(scores) + 1)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {"scores": scores.detach()} | gradients


def test_a_dialogue_read_once_scores_and_learns_as_one_read_with_each_summary(saved, batch):
    model = load_scorer(arguments(saved.base), saved.folder).train()
    head_of(model).load_state_dict(head_of(saved.model.model).state_dict())
    model.config.pad_token_id = saved.model.tokenizer.pad_token_id
    once = scores_and_gradients(model, batch)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    whole = scores_and_gradients(model, batch)
    assert once["scores"].std() > 0.1
    assert all(gradient.any() for gradient in once.values())
    for name, expected in whole.items():
        torch.testing.assert_close(once[name], expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def scaled(of_head: float, text: str, summary: str) -> float:
    """As SCALE says."""
    raw = of_head + 0.7 * ATTRIBUTION.score(text, summary)
    return (raw - 0.5) / 2 - 0.3 * (math.log(len(summary)) - 3)


def test_scores_are_read_at_the_end_token(saved, tiny_tokenizer):
    (summary,) = encode_summaries(REFERENCES[:1], "instruction", tiny_tokenizer)
    ids = prompt_ids(DIALOGUES[0], tiny_tokenizer) + summary
    scorer = saved.model.model
    with torch.inference_mode():
        hidden = scorer(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        expected = scaled(head_of(scorer)(hidden[0, -1]).item(), DIALOGUES[0], REFERENCES[0])
    assert ids[-1] == tiny_tokenizer.eos_token_id
    assert saved.model.score(DIALOGUES[:1], REFERENCES[:1]) == pytest.approx([expected], abs=1e-5)


def shuffled(saved: Saved, order: list[int], **options) -> list[float]:
    """Scores of all references for all dialogues, asked for in this order and given back in their own."""
    asked = [(DIALOGUES[i // 4], REFERENCES[i % 4]) for i in order]
    scores = saved.model.score(*map(list, zip(*asked, strict=True)), **options)
    return [score for _, score in sorted(zip(order, scores, strict=True))]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_do_not_depend_on_the_batch_size(saved, batch_size):
    scores = shuffled(saved, list(range(16)))
    assert max(scores) - min(scores) > 0.1
    assert shuffled(saved, list(range(16)), batch_size=batch_size) == pytest.approx(scores, abs=1e-5)


def test_scores_do_not_depend_on_the_order(saved):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    assert shuffled(saved, order) == pytest.approx(shuffled(saved, list(range(16))), abs=1e-5)


def test_scores_do_not_depend_on_padding(saved, tiny_tokenizer):
    prompts = [prompt_ids(DIALOGUES[0], tiny_tokenizer)]
    summaries = [encode_summaries(REFERENCES[:2], "instruction", tiny_tokenizer)]
    plain, padded = (make_batch(prompts, summaries, tiny_tokenizer, multiple) for multiple in (None, 128))
    assert padded["input_ids"].shape[1] > plain["input_ids"].shape[1]
    assert padded["summary_ids"].shape[1] > plain["summary_ids"].shape[1]
    with torch.inference_mode():
        torch.testing.assert_close(
            raw_scores(saved.model.model, padded), raw_scores(saved.model.model, plain), rtol=0, atol=1e-5
        )


def test_a_score_does_not_depend_on_the_other_summaries_where_the_dialogue_is_beyond_the_context(llama):
    model = RewardModel.load(llama.folder)
    text = "\n".join(f"#Person{1 + i % 2}#: {i}번째로 하는 말입니다." for i in range(400))
    alone = model.score([text], ["짧은 요약."])
    beside = model.score([text, DIALOGUES[0]], ["짧은 요약.", "아주 긴 요약입니다. " * 40])
    assert beside[:1] == pytest.approx(alone, abs=1e-5)


def test_scoring_holds_no_more_copies_of_a_dialogue_than_a_batch_has_rows(saved, monkeypatch):
    caches, rows, alive = [], [], []

    def counted(cache, owner):
        alive.append(sum(one() is not None for one in caches))
        chosen = select(cache, owner)
        caches.append(weakref.ref(chosen))
        rows.append(len(owner))
        return chosen

    expected = saved.model.score(DIALOGUES[:2] * 10, REFERENCES[:1] * 20)
    monkeypatch.setattr(reward_model, "select", counted)
    scores = saved.model.score(DIALOGUES[:2] * 10, REFERENCES[:1] * 20, batch_size=2)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert (max(rows), sum(rows)) == (2, 20)
    assert set(alive) == {0}


def test_nothing_to_score_is_no_scores(llama):
    assert llama.model.score([], []) == []


def test_dialogues_without_their_summaries_are_refused(llama):
    with pytest.raises(InputError, match="2 dialogues but 1 summaries: expected as many of both"):
        llama.model.score(DIALOGUES[:2], REFERENCES[:1])


# --- saving, loading, publishing


def test_a_reward_model_is_not_taken_for_one_that_writes(llama):
    for take in (models.load_for_use, models.check_adapter):
        with pytest.raises(InputError, match="it scores summaries and writes none"):
            take(str(llama.folder), arguments(llama.base))


def test_a_saved_model_scores_the_same_to_the_bit(saved):
    loaded = RewardModel.load(saved.folder)
    assert {name: getattr(loaded, name) for name in PARTS} == PARTS
    assert loaded.score(DIALOGUES, REFERENCES) == saved.model.score(DIALOGUES, REFERENCES)


def test_a_model_without_a_scale_is_refused(llama, tmp_path):
    folder = shutil.copytree(llama.folder, tmp_path / "old")
    write_json(FORM | {"mean": 0.5}, folder / "reward.json")
    with pytest.raises(InputError, match=r"reward\.json: no scale in it.*Run recipes/reward\.py again"):
        RewardModel.load(folder)


def test_the_adapter_file_holds_no_head(saved):
    names = load_file(saved.folder / "adapter_model.safetensors").keys()
    assert names
    assert all("lora_" in name and "score" not in name for name in names)
    assert load_file(saved.folder / HEAD)["weight"].shape == (1, 32)


def test_the_adapter_is_a_second_one_on_a_language_model(saved):
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved.base), saved.sft)
    policy.load_adapter(saved.folder, adapter_name="reward")
    taken, written = (
        get_peft_model_state_dict(policy, adapter_name="reward"),
        load_file(saved.folder / "adapter_model.safetensors"),
    )
    assert taken.keys() == written.keys()
    assert all(taken[name].equal(written[name]) for name in written)


def test_a_published_model_gives_the_raw_score_without_this_library(saved, tmp_path):
    model = RewardModel.load(saved.folder)
    expected = model.score(DIALOGUES[:1], REFERENCES[:1])
    model.publish(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt = dialogue.prompt_for(RECORDS[0], **FORM, tokenizer=tokenizer)
    ids = tokenizer(prompt + REFERENCES[0] + tokenizer.eos_token, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = plain(ids).logits
    assert logits.shape == (1, 1)
    assert json.loads((tmp_path / "reward.json").read_text("utf-8"))["scale"] == asdict(SCALE)
    assert scaled(logits.item(), DIALOGUES[0], REFERENCES[0]) == pytest.approx(expected[0], abs=1e-4)


def test_publishing_leaves_the_model_as_it_was(saved, tmp_path):
    model = RewardModel.load(saved.folder)
    before = model.score(DIALOGUES, REFERENCES)
    model.publish(tmp_path)
    assert model.score(DIALOGUES, REFERENCES) == pytest.approx(before, abs=1e-5)


def test_a_quantised_model_is_not_published(llama, tmp_path):
    model = RewardModel.load(llama.folder, ModelArguments(load_in_4bit=True))
    with pytest.raises(InputError, match=r"ModelArguments\(load_in_4bit=False\)"):
        model.publish(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_scale_is_refused(copied):
    (copied / "reward.json").unlink()
    with pytest.raises(InputError, match=r"no reward\.json in it.*finished recipes/reward\.py"):
        RewardModel.load(copied)


def test_a_folder_without_a_head_is_refused(copied):
    (copied / HEAD).unlink()
    with pytest.raises(InputError, match=r"no head\.safetensors in it.*recipes/reward\.py"):
        RewardModel.load(copied)


def test_a_head_of_another_width_is_refused(copied):
    save_file({"weight": torch.zeros(1, 16)}, copied / HEAD)
    with pytest.raises(InputError, match=r"a head of \(1, 16\) for a base of \(1, 32\)"):
        RewardModel.load(copied)


def test_centred_scores_of_references_have_mean_0_and_deviation_1(llama):
    model = RewardModel.load(llama.folder)
    model.centre(RECORDS)
    scores = torch.tensor(model.score(DIALOGUES, REFERENCES))
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_the_attribution_is_added_in_deviations_of_the_head(llama):
    model = RewardModel.load(llama.folder)
    model.centre(RECORDS)
    alone = torch.tensor(model.score(DIALOGUES, REFERENCES))
    model.centre(RECORDS, attribution_weight=2.0)
    told = torch.tensor([ATTRIBUTION.score(*texts) for texts in zip(DIALOGUES, REFERENCES, strict=True)])
    assert told.std() > 0.1
    expected = alone + 2 * told
    expected = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(torch.tensor(model.score(DIALOGUES, REFERENCES)), expected, atol=1e-5, rtol=0)


def test_of_more_than_ten_references_length_brings_no_score(llama):
    model, records = RewardModel.load(llama.folder), load_records("embedded-ko")[0][:16]
    model.centre(records)
    references = [record.references[0] for record in records]
    scores = torch.tensor(model.score([record.dialogue for record in records], references))
    log_lengths = torch.tensor([math.log(len(text)) for text in references])
    assert abs(model.scale.length_slope) > 1e-3
    assert torch.corrcoef(torch.stack([scores, log_lengths]))[0, 1].item() == pytest.approx(0, abs=1e-4)


def test_beyond_the_lengths_of_references_length_brings_no_more():
    references = ["가" * characters for characters in range(20, 200, 15)]
    raw = np.array([2.0 * math.log(len(text)) + (-1) ** i for i, text in enumerate(references)])
    scale = Scale.of(raw, references)
    assert scale.length_slope > 0.5
    score = [scale.score(0.0, "가" * characters) for characters in (0, 1, 20, 21, 184, 185, 999)]
    assert score[0] == score[1] == score[2] > score[3] > score[4] > score[5] == score[6]
    assert score[2] - score[5] == pytest.approx(scale.length_slope * math.log(185 / 20))


# --- examples and batches


def decoded(ids: torch.Tensor, mask: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(ids[mask.bool()])


def test_each_summary_of_a_dialogue_stands_once_in_a_batch(tiny_tokenizer):
    first, second = RECORDS[:2]
    pairs = [pair(first, "가", "나"), pair(first, "가", "다"), pair(first, "나", "다"), pair(second, "가", "나")]
    examples, _ = make_examples(pairs, RECORDS[:2], 1024, **FORM, tokenizer=tiny_tokenizer)
    batch = PairCollator(tiny_tokenizer)(examples)
    texts = [decoded(*row, tiny_tokenizer) for row in zip(batch["summary_ids"], batch["summary_mask"], strict=True)]
    assert texts == ["가<eos>", "나<eos>", "다<eos>", "가<eos>", "나<eos>"]
    assert batch["owner"].tolist() == [0, 0, 0, 1, 1]


def test_pairs_point_at_their_summaries_and_keep_their_margins(tiny_tokenizer):
    first, second = RECORDS[:2]
    pairs = [pair(first, "가", "나", 0.2), pair(second, "다", "나", 0.3), pair(second, "다", "라", 0.4)]
    examples, _ = make_examples(pairs, RECORDS[:2], 1024, **FORM, tokenizer=tiny_tokenizer)
    batch = PairCollator(tiny_tokenizer)(examples)

    def named(places: torch.Tensor) -> list[tuple[str, str]]:
        prompts = [
            decoded(batch["input_ids"][i], batch["attention_mask"][i], tiny_tokenizer) for i in batch["owner"][places]
        ]
        texts = [decoded(batch["summary_ids"][i], batch["summary_mask"][i], tiny_tokenizer) for i in places]
        return list(zip(prompts, texts, strict=True))

    one, other = (dialogue.prompt_for(record, **FORM, tokenizer=tiny_tokenizer) for record in (first, second))
    assert named(batch["chosen"]) == [(one, "가<eos>"), (other, "다<eos>"), (other, "다<eos>")]
    assert named(batch["rejected"]) == [(one, "나<eos>"), (other, "나<eos>"), (other, "라<eos>")]
    assert batch["margin"].tolist() == pytest.approx([0.2, 0.3, 0.4])


def test_prompts_are_padded_on_the_left_and_summaries_on_the_right(batch):
    assert batch["attention_mask"][:, -1].all()
    assert batch["summary_mask"][:, 0].all()
    assert not batch["attention_mask"].all()
    assert not batch["summary_mask"].all()


def test_a_dialogue_without_pairs_is_no_example(tiny_tokenizer):
    examples, _ = make_examples([pair(RECORDS[1], "가", "나")], RECORDS, 1024, **FORM, tokenizer=tiny_tokenizer)
    assert [example["prompt_ids"] for example in examples] == [prompt_ids(DIALOGUES[1], tiny_tokenizer)]


@pytest.mark.parametrize(
    "longest",
    ["가나다라마바사아자차" * 4, pytest.param("😀" * 30, id="few characters, many tokens")],
)
def test_a_dialogue_too_long_for_its_longest_summary_loses_turns(longest, tiny_tokenizer):
    turns = "\n".join(f"#Person{1 + i % 2}#: {i}번째로 하는 말입니다." for i in range(40))
    record = Record("a", turns, ())
    examples, _ = make_examples([pair(record, longest, "a b " * 10)], [record], 400, **FORM, tokenizer=tiny_tokenizer)
    (example,) = examples
    text = tiny_tokenizer.decode(example["prompt_ids"])
    assert "1: 0번째로" in text.replace("#", "")  # first and last turn stay
    assert "39번째로" in text
    assert "20번째로" not in text
    summaries = example["chosen_ids"] + example["rejected_ids"]
    assert len(example["prompt_ids"]) + max(map(len, summaries)) <= 400


# --- training


def test_the_held_out_loss_does_not_depend_on_the_evaluation_batch(llama, tiny_tokenizer, tmp_path):
    one, other = RECORDS[:2]
    pairs = [pair(one, REFERENCES[0], REFERENCES[1])]
    pairs += [pair(other, REFERENCES[1], text) for text in (REFERENCES[0], REFERENCES[2], REFERENCES[3])]
    examples, _ = make_examples(pairs, RECORDS[:2], 1024, **FORM, tokenizer=tiny_tokenizer)
    losses = []
    for batch_size in (1, 2):
        args = RewardArguments(use_cpu=True, per_device_eval_batch_size=batch_size)
        model = RewardModel.load(llama.folder).model
        trainer = make_trainer(model, tiny_tokenizer, args, tmp_path, examples, examples)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_dialogue_whose_first_turn_does_not_fit_is_left_out_and_told(tiny_tokenizer):
    pairs = [pair(record, "가", "나") for record in RECORDS[:2]]
    records = [replace(RECORDS[0], dialogue="#Person1#: " + "아주 긴 말입니다. " * 99), RECORDS[1]]
    examples, shortened = make_examples(pairs, records, 400, **FORM, tokenizer=tiny_tokenizer)
    assert [example["prompt_ids"] for example in examples] == [prompt_ids(DIALOGUES[1], tiny_tokenizer)]
    assert [(one.id, one.kept_turns) for one in shortened] == [(RECORDS[0].id, 0)]


def parameters_of(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module", params=[False, True], ids=["cached", "checkpointed"])
def stepped(request, llama, tiny_tokenizer, tmp_path_factory):
    """A 4-bit reward model before and after one step, and its trainer."""
    model = load_scorer(arguments(llama.base, load_in_4bit=True), llama.sft)
    trainer = trainer_of(
        model, tiny_tokenizer, tmp_path_factory.mktemp("stepped"), max_steps=1, learning_rate=1e-2, warmup_steps=0,
        per_device_train_batch_size=2, gradient_accumulation_steps=1, gradient_checkpointing=request.param,
    )  # fmt: skip
    torch.nn.init.normal_(head_of(model).weight)  # from a head of zeros no gradient reaches the adapters
    before = parameters_of(model)
    trainer.train()
    return before, parameters_of(model), trainer


def test_a_step_on_4_bit_weights_has_a_finite_loss(stepped):
    losses = [line["loss"] for line in stepped[2].state.log_history if "loss" in line]
    assert len(losses) == 1
    assert 0 < losses[0] < float("inf")


def test_a_step_on_4_bit_weights_moves_adapters_and_head_alone(stepped):
    before, after, trainer = stepped
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name or "score" in name}
    assert any(p.dtype == torch.uint8 for p in trainer.model.parameters())


def test_training_starts_from_the_adapter_of_the_sft_model_and_a_head_of_zeros(llama):
    model = load_scorer(arguments(llama.base), llama.sft)
    written = load_file(llama.sft / "adapter_model.safetensors")
    taken = get_peft_model_state_dict(model)
    assert taken.keys() == written.keys()
    assert all(taken[name].equal(written[name]) for name in written)
    assert not head_of(model).weight.any()
