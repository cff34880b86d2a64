"""Averages of LoRA weights and of distributions, against arithmetic done another way."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from alignment.arguments import ModelArguments
from alignment.ensemble import AveragedDistributions, load_average, shares
from alignment.errors import InputError
from alignment.generation import Decoding
from alignment.summarizer import Summarizer

DIALOGUES = ["#Person1#: 내일 볼까?\n#Person2#: 좋아.", "#Person1#: 배고파. 밥 먹으러 가자.\n#Person2#: 그래, 어디로?"]


def adapter(base: Path, folder: Path, seed: int, rank: int = 4, **settings) -> Path:
    """An adapter whose update is not zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_model, tiny_tokenizer, tmp_path_factory) -> list[str]:
    """Two adapters, of rank 4 and 8."""
    folder = tmp_path_factory.mktemp("adapters")
    found = [adapter(tiny_model, folder / name, i, rank) for i, (name, rank) in enumerate((("one", 4), ("two", 8)))]
    for one in found:
        tiny_tokenizer.save_pretrained(one)
    return [str(one) for one in found]


def update(base: Path, folder: str) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight of its base."""
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).merge_and_unload()
    return {name: weight - before[name] for name, weight in after.state_dict().items()}


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.8, 0.2]])
def test_the_average_is_the_mean_of_the_updates_whatever_their_ranks(weights, adapters, tiny_model):
    model, _ = load_average(adapters, weights, ModelArguments(dtype="float32"))
    assert isinstance(model, LlamaForCausalLM)
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    one, two = (update(tiny_model, folder) for folder in adapters)
    moved = 0
    for name, weight in model.state_dict().items():
        expected = weights[0] * one[name] + weights[1] * two[name]
        torch.testing.assert_close(weight.cpu() - base[name], expected, atol=1e-5, rtol=1e-5)
        moved += bool(expected.abs().max() > 0.01)
    assert moved == 14  # seven linear layers in each of two blocks


def test_an_average_with_itself_writes_the_same(adapters):
    alone = Summarizer.load(adapters[0], ModelArguments(dtype="float32"))
    average = Summarizer.load_average([adapters[0]] * 2, None, ModelArguments(dtype="float32"))
    alone.max_new_tokens = average.max_new_tokens = 12
    assert average.summarize(DIALOGUES) == alone.summarize(DIALOGUES)


def test_what_does_not_add_up_is_refused(adapters, tiny_model, tiny_tokenizer, tmp_path):
    for kind in ("use_dora", "use_rslora"):
        folder = adapter(tiny_model, tmp_path / kind, 3, **{kind: True})
        tiny_tokenizer.save_pretrained(folder)
        with pytest.raises(InputError, match=f"{kind} was trained with {kind}, which does not add up"):
            load_average([adapters[0], str(folder)], [0.5, 0.5], ModelArguments())


def test_adapters_of_other_bases_are_refused(adapters, tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"--combine lora_average: --model .*: a whole model, where a trained adapter"):
        load_average([adapters[0], str(tiny_model)], [0.5, 0.5], ModelArguments())
    other = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(other)
    folder = adapter(other, tmp_path / "other", 3)
    with pytest.raises(InputError, match=r"lora_average: .*one is for .*llama, .*other for .*base, and .*Use --comb"):
        load_average([adapters[0], str(folder)], [0.5, 0.5], ModelArguments())


def test_weights_become_shares():
    assert shares(None, 4) == [0.25] * 4
    assert shares([3, 1], 2) == [0.75, 0.25]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(InputError, match="expected 2 numbers above 0, one a model"):
        shares(weights, 2)


# --- distributions ----------------------------------------------------------------------------------------------------


def next_logits(one: Summarizer, ids: list[int]) -> torch.Tensor:
    """What a model says of the token after these, read without a cache."""
    return one.model(torch.tensor([ids], device=one.model.device)).logits[0, -1]


def by_hand(summarizers: list[Summarizer], weights: list[float], dialogue: str, tokens: int) -> list[int]:
    """Greedy by the mean probabilities, reading everything anew for each token."""
    completion: list[int] = []
    while len(completion) < tokens:
        mean = sum(
            weight * next_logits(one, one.prompts([dialogue])[0] + completion).double().softmax(-1)
            for one, weight in zip(summarizers, weights, strict=True)
        )
        if not completion:
            mean[one_end(summarizers)] = 0
        completion.append(int(mean.argmax()))
        if completion[-1] == one_end(summarizers):
            break
    return completion


def one_end(summarizers: list[Summarizer]) -> int:
    return summarizers[0].tokenizer.eos_token_id


@pytest.fixture(scope="module")
def pair(adapters) -> list[Summarizer]:
    """Two models with prompts of different lengths."""
    pair = [Summarizer.load(folder, ModelArguments(dtype="float32")) for folder in adapters]
    pair[1].form = "chat"
    for one in pair:
        one.max_new_tokens = 12
    return pair


@torch.no_grad()
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.9, 0.1]])
def test_greedy_takes_the_token_of_the_highest_mean_probability(weights, pair):
    written = pair[0].summarize(DIALOGUES, others=pair[1:], weights=weights)
    for dialogue, text in zip(DIALOGUES, written, strict=True):
        ids = by_hand(pair, weights, dialogue, 12)
        assert text == pair[0].tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert written != pair[0].summarize(DIALOGUES)


@torch.no_grad()
def test_beams_end_with_the_log_probability_of_the_mean(pair):
    """The caches follow the beams: the best beam's score is what reading it whole gives."""
    first, second = pair
    prompts = [one.prompts(DIALOGUES) for one in pair]
    seen = {}

    class Watched(AveragedDistributions):
        def __call__(self, input_ids, scores):
            mixed = super().__call__(input_ids, scores)
            for row, log_probs in zip(input_ids.tolist(), mixed, strict=True):
                seen[tuple(row[self._prompt_tokens :]), row.count(first.tokenizer.pad_token_id)] = log_probs
            return mixed

    batches = [
        first.tokenizer.pad({"input_ids": own}, padding_side="left", return_tensors="pt").to(first.model.device)
        for own in prompts
    ]
    width = batches[0].input_ids.shape[1]
    first.model.generate(
        **batches[0], num_beams=4, max_new_tokens=8, do_sample=False,
        logits_processor=[Watched([second.model], batches[1:], [0.5, 0.5], width)],
    )  # fmt: skip
    assert len(seen) > 2 * 4 * 4
    for (completion, padding), log_probs in seen.items():
        row = next(i for i, own in enumerate(prompts[0]) if width - len(own) == padding)
        mean = sum(
            next_logits(one, own[row] + list(completion)).softmax(-1) / 2
            for one, own in zip(pair, prompts, strict=True)
        )
        torch.testing.assert_close(log_probs.exp(), mean, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_what_is_forbidden_stays_forbidden_and_the_rest_sums_to_1(pair):
    tokenizer, prompts, device = pair[1].tokenizer, pair[1].prompts(DIALOGUES), pair[1].model.device
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(device)
    scores = torch.randn(2, len(tokenizer), generator=torch.Generator().manual_seed(0)).to(device)
    scores[0, 5:900] = scores[1, 3] = -torch.inf
    ids = torch.zeros(2, 4, dtype=torch.long, device=device)
    mixed = AveragedDistributions([pair[1].model], [batch], [0.3, 0.7], 4)(ids, scores)
    assert torch.equal(mixed.isneginf(), scores.isneginf())
    torch.testing.assert_close(mixed.exp().sum(1), torch.ones(2, device=device))


def test_models_of_other_tokens_are_refused(pair, tiny_tokenizer):
    other = Summarizer(pair[1].model, tiny_tokenizer.__class__.from_pretrained(pair[1].origin["model"]))
    other.tokenizer.add_tokens(["새말"])
    other.origin = {"model": "other"}
    with pytest.raises(
        InputError, match=r"and other have different tokenizers \(1000 and 1001 tokens\).*--combine mbr"
    ):
        pair[0].summarize(DIALOGUES, others=[other])


def test_models_that_end_summaries_otherwise_are_refused(pair):
    other = Summarizer(pair[1].model, copy.deepcopy(pair[1].tokenizer))
    other.origin, other.form = {"model": "other"}, "template"
    other.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ '<pad>' }}{% endfor %}"
    with pytest.raises(
        InputError, match=r"end a summary with different tokens \(instruction, template\).*--combine mbr"
    ):
        pair[0].summarize(DIALOGUES, others=[other])


def test_models_whose_heads_differ_in_size_are_refused(pair):
    other = Summarizer(copy.deepcopy(pair[1].model), pair[1].tokenizer)
    other.origin = {"model": "other"}
    other.model.resize_token_embeddings(1024)
    with pytest.raises(InputError, match="--combine mbr"):
        pair[0].summarize(DIALOGUES, others=[other])


def test_a_journal_of_one_mixture_is_not_that_of_another(pair, tmp_path):
    def header(**changes) -> str:
        return pair[0].journal(tmp_path / "a", DIALOGUES, **changes)._header

    headers = {
        header(), header(others=pair[1:]), header(others=pair[1:], weights=[0.9, 0.1]),
        header(decoding=replace(Decoding(), num_beams=2)),
    }  # fmt: skip
    assert len(headers) == 4


def test_the_heads_of_all_models_are_fed_without_strides(pair):
    """Or torch copies the head's weight once a row: with a vocabulary of 262,144, ten GiB for 32 dialogues."""
    seen = []
    hook = (
        pair[1]
        .model.get_output_embeddings()
        .register_forward_hook(lambda _, args, output: seen.append((args[0].is_contiguous(), output.shape[1])))
    )
    with hook:
        pair[0].summarize(DIALOGUES, others=pair[1:])
    assert len(seen) == 12
    assert set(seen) == {(True, 1)}
