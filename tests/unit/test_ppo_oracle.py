"""PPO's arithmetic against trl 1.12's own, on the same weights, rollouts and scores, to 1e-5 relative.

record_ppo_oracle.py made the fixture. `full`: k1, no completion ends; `ended`: k3, some end. In the second TRL adds the
score to the position after the end token, on purpose we add it to the end token itself (see alignment/ppo/math.py).
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.ppo import Roles, math
from alignment.ppo.roles import POLICY, REFERENCE
from alignment.ppo.rollout import micro_batches

FIXTURE = load_file(Path(__file__).parent / "ppo_oracle.safetensors")
TEMPERATURE, KL_COEF = 0.9, 0.2
ESTIMATOR = {"full": "k1", "ended": "k3"}
STEPS = [0, 1]  # two epochs of one mini-batch
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)


class Case:
    """What was recorded, by name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Tensor:
        return FIXTURE[f"{self.name}.{name}"]

    def under(self, prefix: str) -> dict[str, Tensor]:
        start = f"{self.name}.{prefix}."
        return {name.removeprefix(start): value for name, value in FIXTURE.items() if name.startswith(start)}

    @property
    def mask(self) -> Tensor:
        return ~self.padding_mask

    @property
    def mask_p1(self) -> Tensor:
        """TRL's: one position more after an end token."""
        return ~self.padding_mask_p1


@pytest.fixture(params=ESTIMATOR)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture
def roles(case: Case) -> Roles:
    """Ours on TRL's weights: reference is the base itself, the policy its LoRA, the value a head on the base."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    base.load_state_dict(case.under("base"))
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    roles = Roles(get_peft_model(base, lora, autocast_adapter_dtype=False))
    assert not set_peft_model_state_dict(roles.model, case.under("policy"), adapter_name=POLICY).unexpected_keys
    with torch.no_grad():
        roles.value_head.weight.copy_(case.value_head)
    return roles


@pytest.fixture
def prompts(case: Case) -> list[list[int]]:
    return [[token for token in row if token] for row in case.queries.tolist()]


@pytest.fixture
def batch(case: Case, prompts: list[list[int]]) -> dict[str, Tensor]:
    completions = [row[: int(n)] for row, n in zip(case.responses.tolist(), case.mask.sum(1), strict=True)]
    (batch,) = micro_batches(prompts, completions, pad_token_id=0, batch_size=4)
    return batch


def test_the_fixture_has_what_its_names_say():
    assert Case("full").mask.all()
    assert 0 < (~Case("ended").mask).any(1).sum() < 4


def test_log_probs_of_policy_and_reference(
    case: Case, roles: Roles, batch: dict[str, Tensor], prompts: list[list[int]]
):
    mask = batch["completion_mask"]
    for role, recorded in ((POLICY, case.logprobs), (REFERENCE, case.ref_logprobs)):
        ours, _ = roles.log_probs(batch, TEMPERATURE, role)
        close(ours[mask], recorded[:, : mask.shape[1]][mask])
        ours, _ = roles.log_probs(batch, TEMPERATURE, role, roles.prefill(prompts, role))
        close(ours[mask], recorded[:, : mask.shape[1]][mask])
    assert (case.logprobs - case.ref_logprobs)[case.mask].abs().max() > 0.05  # two roles, not one


def test_values(case: Case, roles: Roles, batch: dict[str, Tensor], prompts: list[list[int]]):
    mask = batch["completion_mask"]
    ours = roles.values(batch, roles.prefill(prompts, roles.prompt_role))
    close(ours[mask], case.values[:, : mask.shape[1]][mask])


def test_kl(case: Case):
    ours = math.kl_divergence(case.logprobs, case.ref_logprobs, ESTIMATOR[case.name])
    close(ours, case.kl)


def test_rewards(case: Case):
    ours = math.token_rewards(case.kl, case.scores, case.mask, KL_COEF)
    close(ours.sum(1), (case.rewards * case.mask_p1).sum(1))
    at = case.mask if case.name == "full" else case.mask & torch.cat([case.mask[:, 1:], torch.zeros(4, 1) > 0], 1)
    at = at | (case.mask.all(1, keepdim=True) & case.mask)  # all but the end token, to which ours adds the score
    close(ours[at], case.rewards[at])


def test_advantages_and_returns(case: Case):
    advantages, returns = math.advantages_and_returns(case.rewards, case.values, case.mask_p1)
    close(advantages[case.mask_p1], case.raw_advantages[case.mask_p1])
    close(returns[case.mask_p1], case.returns[case.mask_p1])


def test_from_scores_to_returns_where_no_completion_ends():
    case = Case("full")
    rewards = math.token_rewards(case.kl, case.scores, case.mask, KL_COEF)
    advantages, returns = math.advantages_and_returns(rewards, case.values, case.mask)
    close(advantages, case.raw_advantages)
    close(returns, case.returns)


def test_whitening(case: Case):
    ours = math.whiten(case.raw_advantages, case.mask)
    close(ours[case.mask], case.advantages[case.mask])


@pytest.mark.parametrize("step", STEPS)
def test_policy_loss(case: Case, step: int):
    recorded = Case(f"{case.name}.step{step}")
    rows = recorded.micro_batch_inds
    advantages = case.advantages.masked_fill(case.padding_mask, 0)[rows]
    losses, _ = math.policy_loss(recorded.new_logprobs, case.logprobs[rows], advantages, clip=0.2)
    close(losses[case.mask[rows]].mean(), recorded.pg_loss)


@pytest.mark.parametrize("step", STEPS)
def test_value_loss(case: Case, step: int):
    recorded = Case(f"{case.name}.step{step}")
    rows = recorded.micro_batch_inds
    losses, _ = math.value_loss(recorded.vpred, case.values[rows], case.returns[rows], clip=0.2)
    close(losses[case.mask_p1[rows]].mean(), recorded.vf_loss)
