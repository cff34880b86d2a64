"""Four roles on one base: what each says, what moves, and what it costs."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from alignment.errors import InputError
from alignment.models import add_adapter
from alignment.ppo import Roles
from alignment.ppo.prompt_cache import PromptCache
from alignment.ppo.roles import HEAD, POLICY, REFERENCE, REWARD, VALUE, RewardRole, RewardStart
from alignment.ppo.rollout import concatenated, micro_batches
from reward.model import make_batch, raw_scores

SIZE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
ARCHITECTURES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=8)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZE, num_key_value_heads=1, head_dim=8, sliding_window=4)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE)),
    "gptj": lambda: GPTJForCausalLM(
        GPTJConfig(vocab_size=40, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    ),
}
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15, 16]]
COMPLETIONS = [[20, 21, 22, 1], [23, 1], [24, 25, 26, 27, 28]]


def words() -> PreTrainedTokenizerFast:
    """A word for each token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0")), pad_token="w0"
    )


def randomise(model: PeftModel, seed: int) -> PeftModel:
    """Adapters that change something, with dropout that would be seen."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    return model


def base(name: str = "llama") -> torch.nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES[name]().eval()


def adapted(seed: int, name: str = "llama") -> PeftModel:
    lora = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    return randomise(get_peft_model(base(name), lora, autocast_adapter_dtype=False), seed)


@pytest.fixture
def reward(tmp_path: Path) -> RewardStart:
    """A reward model's adapter of another rank, and its head."""
    model = get_peft_model(base(), LoraConfig(r=3, target_modules="all-linear"))
    randomise(model, 2).save_pretrained(tmp_path)
    save_file({"weight": torch.randn(1, 32)}, tmp_path / HEAD)
    return RewardStart(tmp_path, mean=0.5, deviation=2.0)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return micro_batches(PROMPTS, COMPLETIONS, pad_token_id=0, batch_size=3)[0]


def forward(roles: Roles, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    of_value = roles.prefill(PROMPTS, roles.prompt_role)
    return roles(**batch, policy_prompts=None, value_prompts=of_value, temperature=1.0)


def plain_log_probs(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs_are_those_of_the_model_alone(name: str, batch: dict[str, Tensor]):
    alone, roles = adapted(1, name).eval(), Roles(adapted(1, name))
    ours, _ = roles.log_probs(batch)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected = plain_log_probs(alone, prompt, completion)
        torch.testing.assert_close(ours[row, : len(completion)], expected, rtol=1e-4, atol=1e-5)
        assert ours[row, len(completion) :].eq(0).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prompts_read_once_give_the_same_log_probs(name: str, batch: dict[str, Tensor]):
    roles = Roles(adapted(1, name))
    ours, _ = roles.log_probs(batch, prompts=roles.prefill(PROMPTS, POLICY))
    torch.testing.assert_close(ours, roles.log_probs(batch)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_that_several_rows_share_is_read_once(name: str):
    roles = Roles(adapted(1, name))
    rows = [PROMPTS[1], PROMPTS[1], PROMPTS[0], PROMPTS[1]]
    (batch,) = micro_batches(rows, [*COMPLETIONS, [30, 1]], pad_token_id=0, batch_size=4)
    prompts = roles.prefill(rows, POLICY)
    assert prompts[0] is prompts[1] is prompts[3] is not prompts[2]
    ours, _ = roles.log_probs(batch, prompts=prompts)
    torch.testing.assert_close(ours, roles.log_probs(batch)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("apart", [True, False])
def test_how_many_prompts_are_read_together_changes_nothing(name: str, apart: bool, batch: dict[str, Tensor]):
    roles = Roles(adapted(1, name))
    expected, _ = roles.log_probs(batch)
    if apart:
        own = [roles.prefill([prompt], POLICY)[0] for prompt in PROMPTS]
        ours, _ = roles.log_probs(batch, prompts=own)
    else:  # and go on apart
        own = roles.prefill(PROMPTS, POLICY)
        parts = micro_batches(PROMPTS, COMPLETIONS, pad_token_id=0, batch_size=1)
        both = zip(parts, own, strict=True)
        ours = concatenated(
            [{"log_probs": roles.log_probs(part, prompts=[prompt])[0]} for part, prompt in both], "log_probs"
        )
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_micro_batch_is_as_wide_as_its_own_completions():
    completions = [[5, 1], [6, 7, 1], [8, 9, 10, 11, 1], [1]]
    batches = micro_batches([*PROMPTS, PROMPTS[0]], completions, pad_token_id=0, batch_size=2)
    assert [batch["completion_ids"].shape for batch in batches] == [(2, 3), (2, 5)]
    mask = concatenated(batches, "completion_mask")
    assert mask.shape == (4, 5)
    assert mask.sum(1).tolist() == [2, 3, 5, 1]
    assert concatenated(batches, "completion_ids")[mask].tolist() == list(chain(*completions))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_completions_of_one_token_are_judged_with_and_without_what_was_read(name: str):
    roles = Roles(adapted(1, name))
    (batch,) = micro_batches(PROMPTS, [[1], [7], [3]], pad_token_id=0, batch_size=3)
    anew, read = roles.log_probs(batch)[0], roles.log_probs(batch, prompts=roles.prefill(PROMPTS, POLICY))[0]
    assert anew.shape == (3, 1)
    torch.testing.assert_close(read, anew, rtol=1e-4, atol=1e-5)
    for row, (prompt, token) in enumerate(zip(PROMPTS, (1, 7, 3), strict=True)):
        logits = roles.model(input_ids=torch.tensor([prompt])).logits[0, -1]
        torch.testing.assert_close(anew[row, 0], logits.log_softmax(0)[token], rtol=1e-4, atol=1e-5)


def test_the_reward_does_not_read_again_what_is_known(reward: RewardStart):
    roles = Roles(adapted(1), reward)
    role, one = RewardRole(roles, pad_token_id=0), make_batch(PROMPTS, [[ids] for ids in COMPLETIONS], words())
    expected = raw_scores(role, one)
    tokens = []
    counting = roles.model.get_base_model().base_model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    raw_scores(role, one)
    of_all = sum(tokens)
    tokens.clear()
    with roles.knowing(PROMPTS, known := roles.prefill(PROMPTS, REWARD)):
        tokens.clear()
        torch.testing.assert_close(raw_scores(role, one), expected, rtol=1e-4, atol=1e-5)
    assert of_all - sum(tokens) == 3 * (7 - 1)  # three rows as long as the longest prompt, but for its last token
    with roles.knowing(PROMPTS[:2], known[:2]):  # one is not known: all are read
        tokens.clear()
        raw_scores(role, one)
    assert sum(tokens) == of_all
    counting.remove()
    assert torch.equal(raw_scores(role, one), expected)


def test_prompts_read_once_give_the_gradient_of_the_completion_alone(batch: dict[str, Tensor]):
    roles = Roles(adapted(1))
    policy = roles._of(POLICY)

    def gradients(prompts: list[PromptCache] | None) -> list[Tensor]:
        return list(torch.autograd.grad(roles.log_probs(batch, prompts=prompts)[0].sum(), policy, allow_unused=True))

    def cut(_: Any, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :last].detach(), output[:, last:]], dim=1)

    ours, whole, last = (
        gradients(roles.prefill(PROMPTS, POLICY)),
        gradients(None),
        batch["prompt_ids"].shape[1] - 1,
    )
    for name, module in roles.model.get_base_model().named_modules():
        if name.endswith(("k_proj", "v_proj")):
            module.register_forward_hook(cut)
    expected = gradients(None)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(one, other, rtol=1e-2) for one, other in zip(whole, expected, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_begin_as_a_head_on_the_whole_text(name: str, batch: dict[str, Tensor]):
    alone, roles = adapted(1, name).eval(), Roles(adapted(1, name))
    torch.nn.init.normal_(roles.value_head.weight)
    ours = roles.values(batch, roles.prefill(PROMPTS, roles.prompt_role))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        with torch.no_grad():
            hidden = alone.get_base_model().base_model(torch.tensor([prompt + completion])).last_hidden_state
        expected = roles.value_head(hidden[0, len(prompt) - 1 : -1]).squeeze(1)
        torch.testing.assert_close(ours[row, : len(completion)], expected, rtol=1e-4, atol=1e-5)


def test_entropy_is_that_of_the_distribution(batch: dict[str, Tensor]):
    alone, roles = adapted(1).eval(), Roles(adapted(1))
    _, entropy = roles.log_probs(batch, temperature=0.7)
    with torch.no_grad():
        logits = alone(torch.tensor([PROMPTS[0] + COMPLETIONS[0]])).logits[0, len(PROMPTS[0]) - 1 : -1]
    expected = torch.distributions.Categorical(logits=logits / 0.7).entropy()
    torch.testing.assert_close(entropy[0, :4], expected, rtol=1e-4, atol=1e-5)


def test_the_policy_begins_as_the_reference_to_the_bit(batch: dict[str, Tensor]):
    roles = Roles(adapted(1))
    assert torch.equal(roles.log_probs(batch)[0], roles.log_probs(batch, role=REFERENCE)[0])


def test_without_an_adapter_the_policy_begins_as_the_base(batch: dict[str, Tensor]):
    ours, _ = Roles(base()).log_probs(batch)
    torch.testing.assert_close(ours[0, :4], plain_log_probs(base(), PROMPTS[0], COMPLETIONS[0]), rtol=1e-4, atol=1e-5)


def test_the_reward_role_scores_as_a_sequence_classifier_does(reward: RewardStart):
    roles = Roles(adapted(1), reward)
    text = torch.tensor([PROMPTS[0] + COMPLETIONS[0]])
    ours = RewardRole(roles, pad_token_id=0)(text, torch.ones_like(text), torch.arange(text.shape[1]).unsqueeze(0))
    alone = PeftModel.from_pretrained(base(), str(reward.folder)).eval()
    with torch.no_grad():
        hidden = alone.get_base_model().base_model(text).last_hidden_state[:, -1]
    expected = hidden @ load_file(reward.folder / HEAD)["weight"].T
    torch.testing.assert_close(ours.logits, expected, rtol=1e-4, atol=1e-5)


def test_the_value_begins_as_the_centred_score(reward: RewardStart):
    roles = Roles(adapted(1), reward)
    whole = PROMPTS[0] + COMPLETIONS[0]
    text = torch.tensor([whole])
    raw = RewardRole(roles, 0)(text, torch.ones_like(text), torch.arange(len(whole)).unsqueeze(0)).logits.item()
    (batch,) = micro_batches([PROMPTS[0]], [[*COMPLETIONS[0], 30]], pad_token_id=0, batch_size=1)
    after_the_end = roles.values(batch, roles.prefill(PROMPTS[:1], roles.prompt_role))[0, -1].item()
    assert after_the_end == pytest.approx((raw - 0.5) / 2.0, rel=1e-4)


def test_one_base_and_not_four(reward: RewardStart):
    roles = Roles(adapted(1), reward)
    of_base = sum(parameter.numel() for parameter in base().parameters())
    of_adapters = {role: sum(parameter.numel() for parameter in roles._of(role)) for role in (POLICY, REFERENCE)}
    of_rewards = {role: sum(parameter.numel() for parameter in roles._of(role)) for role in (REWARD, VALUE)}
    heads = 32 + 32 + 1
    assert of_adapters[POLICY] == of_adapters[REFERENCE] > of_rewards[REWARD] == of_rewards[VALUE] > 0
    everything = of_base + sum(of_adapters.values()) + sum(of_rewards.values()) + heads
    assert sum(parameter.numel() for parameter in roles.parameters()) == everything


def trained_names(roles: Roles) -> set[str]:
    return {name for name, parameter in roles.named_parameters() if parameter.requires_grad}


def test_policy_and_value_learn_and_nothing_else_whatever_was_active(reward: RewardStart, batch: dict[str, Tensor]):
    roles = Roles(adapted(1), reward)
    before = trained_names(roles)
    assert {".default." in name or ".value." in name or name.startswith("value_head.") for name in before} == {True}
    assert len(before) == 2 * 2 * 7 * 2 + 2  # policy and value; A and B of 7 linear layers in 2 blocks; the head
    for role in (REFERENCE, REWARD, VALUE):
        with roles.acting(role):
            assert trained_names(roles) == before
    forward(roles, batch)
    assert trained_names(roles) == before  # PEFT's set_adapter alone would leave one role (peft#2436)


def gradients(roles: Roles, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    roles.train()
    log_probs, _, values = forward(roles, batch)
    (log_probs.sum() + (values**2).sum()).backward()
    return {name: parameter.grad for name, parameter in roles.named_parameters() if parameter.grad is not None}


def test_gradient_checkpointing_recomputes_with_the_adapter_that_was_active(
    reward: RewardStart, batch: dict[str, Tensor]
):
    plain, checkpointed = Roles(adapted(1), reward), Roles(adapted(1), reward)
    torch.nn.init.normal_(plain.value_head.weight)
    checkpointed.value_head.load_state_dict(plain.value_head.state_dict())
    checkpointed.activation_checkpointing_enable()
    expected, ours = gradients(plain, batch), gradients(checkpointed, batch)
    assert checkpointed.model.training
    assert expected.keys() == ours.keys() == trained_names(plain)
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-6)


def test_dropout_is_off_even_in_training_mode(batch: dict[str, Tensor]):
    roles = Roles(adapted(1))
    expected = forward(roles, batch)
    roles.activation_checkpointing_enable()
    roles.train()
    for ours, one in zip(forward(roles, batch), expected, strict=True):
        torch.testing.assert_close(ours, one, rtol=1e-6, atol=1e-6)


def test_adapters_that_learn_are_float32_on_a_bfloat16_base(batch: dict[str, Tensor]):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    roles = Roles(get_peft_model(base().to(torch.bfloat16), lora, autocast_adapter_dtype=False))
    assert {parameter.dtype for parameter in roles.trained()} == {torch.float32}
    log_probs, _, values = forward(roles, batch)
    assert log_probs.dtype == values.dtype == torch.float32


@pytest.mark.parametrize("bits", [4, 8])
def test_roles_on_quantised_weights_learn(tmp_path: Path, batch: dict[str, Tensor], bits: int):
    # bitsandbytes' kernel for CPUs takes widths that its blocks of 64 divide.
    wide = LlamaConfig(**SIZE | {"hidden_size": 64, "intermediate_size": 128}, num_key_value_heads=2)
    LlamaForCausalLM(wide).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, device_map={"": "cpu"})
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    roles = Roles(randomise(get_peft_model(model, lora), 1))
    torch.nn.init.normal_(roles.value_head.weight)
    found = gradients(roles, batch)
    assert found.keys() == trained_names(roles)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert sum(gradient.abs().sum() for gradient in found.values()) > 0


def test_saved_and_loaded_roles_say_the_same_to_the_bit(tmp_path: Path, reward: RewardStart, batch: dict[str, Tensor]):
    roles = Roles(adapted(1), reward)
    with torch.no_grad():
        for parameter in roles.trained():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    roles.save(tmp_path / "saved")
    other = Roles(adapted(5), reward)
    other.load(tmp_path / "saved")
    for ours, expected in zip(forward(other, batch), forward(roles, batch), strict=True):
        assert torch.equal(ours, expected)


def test_the_saved_policy_loads_as_any_adapter_does(tmp_path: Path, batch: dict[str, Tensor]):
    base().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    roles = Roles(randomise(get_peft_model(model, lora), 1))
    roles.save(tmp_path / "saved")
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "saved")).eval()
    ours, _ = roles.log_probs(batch)
    torch.testing.assert_close(ours[0, :4], plain_log_probs(loaded, PROMPTS[0], COMPLETIONS[0]), rtol=1e-4, atol=1e-5)


def test_an_adapter_for_another_base_is_refused(tmp_path: Path):
    other = LlamaForCausalLM(LlamaConfig(**SIZE | {"hidden_size": 64}, num_key_value_heads=2))
    get_peft_model(other, LoraConfig(r=4, target_modules="all-linear")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not fit"):
        Roles(adapted(1), RewardStart(tmp_path))


def test_a_head_of_another_width_is_refused(reward: RewardStart):
    save_file({"weight": torch.zeros(1, 7)}, reward.folder / HEAD)
    with pytest.raises(InputError, match=r"a head of \(1, 7\) for a base of \(1, 32\)"):
        Roles(adapted(1), reward)


def test_a_model_that_scales_its_logits_is_refused():
    model = base("gemma3")
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match="final_logit_softcapping"):
        Roles(model)


def test_an_adapter_with_a_copy_of_a_layer_is_refused():
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(InputError, match=r"modules_to_save .*lm_head.* cannot share its base"):
        Roles(get_peft_model(base(), lora))


def test_an_adapter_on_the_head_is_refused():
    lora = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(InputError, match="LM head"):
        Roles(get_peft_model(base(), lora))


def test_what_bfloat16_would_round_away_survives_saving_and_loading(tmp_path: Path):
    base().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    roles = Roles(get_peft_model(model, lora, autocast_adapter_dtype=False))
    with torch.no_grad():
        for parameter in roles.trained():
            parameter.add_(1e-6)
    roles.save(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    loaded = Roles(add_adapter(again, tmp_path / "saved", trainable=True))
    assert all(torch.equal(a, b) for a, b in zip(loaded._of(POLICY), roles._of(POLICY), strict=True))
