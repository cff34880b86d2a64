"""Four roles on one frozen base: policy, reference, reward and value are LoRA adapters, two of them with a head.

The policy and the value learn; the base, the reference and the reward never move. Prompts are read once an update
(see prompt_cache.py), and not in every epoch: by the policy as it is when it samples, and for the value by the adapter
that it started from, which stays as it is. What learns from an update is how a completion goes on from there.

Prior art: TRL #373; Hydra-RLHF (arXiv 2309.00754); LLaMA-Factory's `reward_model_type: lora`. The value begins as the
reward model (LLaMA-Factory #1563), scaled to foresee the first scores.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import SAFE_WEIGHTS_NAME

from alignment.attention import avoid_faulty_attention
from alignment.errors import InputError
from alignment.head import SCALES, TokenLogProbs
from alignment.ppo.prompt_cache import PromptCache, join, pad, split
from alignment.training import let_gradients_through
from alignment.weights import HEAD, intact

POLICY, REFERENCE, REWARD, VALUE = "default", "reference", "reward", "value"  # PEFT saves "default" at the top
ADAPTER = f"adapter_{SAFE_WEIGHTS_NAME}"

MicroBatch = dict[str, Tensor]


class RewardStart(NamedTuple):
    """Where a reward model for the same base is, and the scale of its raw scores."""

    folder: Path
    mean: float = 0.0
    deviation: float = 1.0


class Roles(nn.Module):
    """A base with the adapters and heads of four roles.

    Args:
        model: A base with the adapter to train, or without one: then the policy begins as the base itself, with
            rank 16 on all linear layers.
        reward: A reward model for this base, as which the value begins. Without one, the value begins as the policy,
            with a head of zeros.

    Raises:
        InputError: It is no model, has roles already, or scales its logits after the head; or the reward adapter does
            not fit it.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, reward: RewardStart | None = None) -> None:
        super().__init__()
        avoid_faulty_attention()
        if isinstance(model, str | Path):
            raise InputError(
                f"model={str(model)!r:.80}: expected a model that is loaded, as by "
                "AutoModelForCausalLM.from_pretrained(...)."
            )
        if REFERENCE in getattr(model, "peft_config", {}):
            raise InputError(
                f"{model.name_or_path or 'The model'} has the roles of another PPOTrainer. Load it again, or hand "
                "over `trainer.roles` to go on with them."
            )
        if not isinstance(model, PeftModel):
            lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, lora, autocast_adapter_dtype=False)
        self.model, self.config = let_gradients_through(model), model.config
        text = self.config.get_text_config()
        if scaled := [name for name in SCALES if getattr(text, name, None) not in (None, 1, 1.0)]:
            raise InputError(f"{self.name_or_path}: {scaled[0]} scales its logits, which PPO here does not support.")
        if isinstance(model.get_output_embeddings(), BaseTunerLayer):
            raise InputError("An adapter on the LM head cannot be trained by PPO. Leave it out of the LoRA targets.")
        self._add(REFERENCE, POLICY)
        if reward is not None:
            try:
                model.load_adapter(
                    str(reward.folder), REWARD, torch_device="cpu", is_trainable=False, autocast_adapter_dtype=False
                )
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                reason = f"{self.name_or_path}: {str(error).strip().splitlines()[-1]:.300}"
                raise InputError(f"{reward.folder}: this adapter does not fit {reason}") from error
        for config in model.peft_config.values():
            for name in ("modules_to_save", "trainable_token_indices"):
                if getattr(config, name, None):  # of which there is one copy for all roles: the reference would move
                    what = f"{name} {getattr(config, name)}"
                    raise InputError(f"An adapter with {what} cannot share its base. Train it with LoRA layers alone.")
        self.prompt_role = REWARD if reward is not None else REFERENCE
        self._add(VALUE, self.prompt_role)
        for module in model.modules():  # the first ratio must be 1, and a rollout is scored as it was sampled
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in ("dropout", "attention_dropout", "activation_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        self.layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for role in (POLICY, REFERENCE, VALUE):
            for parameter in self._of(role):  # bfloat16 would round away most steps of 1e-5
                parameter.data = parameter.data.float()
        device = model.get_output_embeddings().weight.device
        self.value_head = nn.Linear(text.hidden_size, 1, dtype=torch.float32, device=device)
        self.reward_head = nn.Linear(text.hidden_size, 1, bias=False, dtype=torch.float32, device=device)
        self.reward_head.requires_grad_(False)
        with torch.no_grad():
            for parameter in (*self.value_head.parameters(), self.reward_head.weight):
                parameter.zero_()
            if reward is not None:  # values are of scores, which are centred and scaled
                weight = read_head(reward.folder, self.reward_head.weight.shape)
                self.reward_head.weight.copy_(weight)
                self.value_head.weight.copy_(weight / reward.deviation)
                self.value_head.bias.fill_(-reward.mean / reward.deviation)
        self.checkpointing = False
        self.known: dict[tuple[int, ...], PromptCache] = {}
        self._activate(POLICY)

    def _add(self, role: str, like: str) -> None:
        """A new adapter with the shape and the weights of another."""
        config = copy(self.model.peft_config[like])
        config.inference_mode = False
        self.model.add_adapter(role, config, autocast_adapter_dtype=False)
        weights = get_peft_model_state_dict(self.model, adapter_name=like)
        set_peft_model_state_dict(self.model, weights, adapter_name=role)

    def policy_weights(self) -> dict[str, Tensor]:
        """A copy of the policy's weights, in host memory."""
        weights = get_peft_model_state_dict(self.model, adapter_name=POLICY)
        return {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}

    def restart(self, weights: dict[str, Tensor]) -> None:
        """Gives the policy the weights that `policy_weights` gave before."""
        set_peft_model_state_dict(self.model, weights, adapter_name=POLICY)

    @property
    def name_or_path(self) -> str:
        """Where the base came from."""
        return self.model.get_base_model().name_or_path

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.value_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the base computes in."""
        return self.model.dtype

    def train(self, mode: bool = True) -> "Roles":
        """Training mode is only for recomputing activations; there is no dropout in PPO."""
        return super().train(mode and self.checkpointing)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recomputes the policy's activations in its backward pass; as `transformers.Trainer` calls it."""
        self.checkpointing = True
        self.model.get_base_model().activation_checkpointing_enable(**kwargs)

    def _activate(self, role: str) -> None:
        for layer in self.layers:
            layer.set_adapter(role, inference_mode=True)  # which freezes every role (peft#2436)
        for parameter in self.trained():
            parameter.requires_grad_(True)

    @contextmanager
    def acting(self, role: str) -> Iterator[None]:
        """Within it, the base answers in this role; outside, it is the policy."""
        self._activate(role)
        try:
            yield
        finally:
            self._activate(POLICY)

    def trained(self) -> list[Tensor]:
        """The parameters of policy and value, which are all that an optimiser may move."""
        return [*self._of(POLICY), *self._of(VALUE), *self.value_head.parameters()]

    def forget_gradients_of_policy(self) -> None:
        """Has the optimiser's next step pass over the policy."""
        for parameter in self._of(POLICY):
            parameter.grad = None

    def _of(self, role: str) -> list[Tensor]:
        parameters: list[Tensor] = []
        for layer in self.layers:
            for name in layer.adapter_layer_names:
                adapters = getattr(layer, name)
                if role in adapters:
                    own = adapters[role]
                    parameters += [own] if isinstance(own, nn.Parameter) else list(own.parameters())
        return parameters

    def _hidden(self, ids: Tensor, mask: Tensor, cache: Cache | None = None, keep: bool = False) -> tuple:
        """Last hidden states (B x t x H) of the last t tokens of a mask B x T, and the KV cache if kept."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model.get_base_model().base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=keep
        )
        return output.last_hidden_state, output.past_key_values

    def _before(self, batch: MicroBatch, role: str, prompts: list[PromptCache] | None) -> Tensor:
        """Hidden states that each completion token follows (B x C x H), the prompt read anew where it is not given."""
        mask, last = batch["completion_mask"], batch["prompt_ids"].shape[1] - 1
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"][:, :-1]], dim=1)
        whole = torch.cat([batch["prompt_mask"], mask[:, :-1]], dim=1).long()
        cache, start = (None, 0) if prompts is None else (join(prompts, self.device), last)
        # Recomputing would meet a cache that has grown since, and in the value's backward pass the policy.
        recomputed = nullcontext() if role == POLICY and cache is None else self._no_checkpointing()
        with recomputed, self.acting(role):
            hidden, _ = self._hidden(ids[:, start:], whole, cache, keep=cache is not None)
        return hidden[:, last - start :]

    def log_probs(
        self, batch: MicroBatch, temperature: float = 1.0, role: str = POLICY, prompts: list[PromptCache] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy at each completion token (both B x C, 0 where there is none)."""
        mask = batch["completion_mask"]
        hidden, head = self._before(batch, role, prompts)[mask], self.model.get_output_embeddings()
        found = TokenLogProbs.apply(hidden, head.weight, head.bias, batch["completion_ids"][mask], temperature)
        empty = torch.zeros_like(mask, dtype=torch.float32)
        log_probs, entropy = (empty.masked_scatter(mask, values) for values in found)
        return log_probs, entropy

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]], role: str) -> list[PromptCache]:
        """All but the last token of each prompt (N), as a role reads them: together, and equal ones once."""
        rows = list(dict.fromkeys(map(tuple, prompts)))
        ids, mask = (block.to(self.device) for block in pad([row[:-1] for row in rows], 0, "left"))
        if ids.shape[1] == 0:
            return [PromptCache(0, [], None)] * len(prompts)
        with self._no_checkpointing(), self.acting(role):
            _, cache = self._hidden(ids, mask.long(), keep=True)
        read = dict(zip(rows, split(cache, [len(row) - 1 for row in rows]), strict=True))
        return [read[tuple(prompt)] for prompt in prompts]

    @contextmanager
    def knowing(self, prompts: Sequence[Sequence[int]], read: list[PromptCache]) -> Iterator[None]:
        """Within it, the reward goes on from these prompts as `prompt_role` has read them, in batches of no others."""
        if self.prompt_role == REWARD:
            self.known = dict(zip(map(tuple, prompts), read, strict=True))
        try:
            yield
        finally:
            self.known = {}

    def values(self, batch: MicroBatch, prompts: list[PromptCache]) -> Tensor:
        """The value before each completion token (B x C), given what `prefill` of `prompt_role` returned."""
        hidden = self._before(batch, VALUE, prompts)
        return self.value_head(hidden.float()).squeeze(-1) * batch["completion_mask"]

    @contextmanager
    def _no_checkpointing(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        completion_ids: Tensor,
        completion_mask: Tensor,
        policy_prompts: list[PromptCache] | None,
        value_prompts: list[PromptCache],
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies and values (B x C each); the backward pass may follow at once.

        The policy goes last: with gradient checkpointing its backward pass runs its forward pass again, under whichever
        adapter is active by then.
        """
        batch = {
            "prompt_ids": prompt_ids, "prompt_mask": prompt_mask,
            "completion_ids": completion_ids, "completion_mask": completion_mask,
        }  # fmt: skip
        values = self.values(batch, value_prompts)
        log_probs, entropy = self.log_probs(batch, temperature, prompts=policy_prompts)
        return log_probs, entropy, values

    def save(self, folder: str | Path) -> None:
        """Writes the policy's adapter, as PEFT loads it, and below `value/` the value's adapter and head."""
        self.save_adapter(POLICY, Path(folder))
        self.save_adapter(VALUE, Path(folder) / VALUE)
        head = {name: tensor.cpu() for name, tensor in self.value_head.state_dict().items()}
        save_file(head, Path(folder) / VALUE / HEAD)

    def save_adapter(self, role: str, folder: Path) -> None:
        """Writes the adapter of a role, as PEFT loads it."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(self.model, adapter_name=role)
        save_file({name: weight.contiguous().cpu() for name, weight in weights.items()}, folder / ADAPTER)
        config = copy(self.model.peft_config[role])
        config.inference_mode = True
        config.base_model_name_or_path = self.name_or_path
        config.save_pretrained(str(folder))

    def load(self, folder: str | Path) -> None:
        """Puts policy and value back as `save` wrote them."""
        for role, place in ((POLICY, Path(folder)), (VALUE, Path(folder) / VALUE)):
            set_peft_model_state_dict(self.model, load_file(place / ADAPTER), adapter_name=role)
        self.value_head.load_state_dict(load_file(Path(folder) / VALUE / HEAD))


def read_head(folder: Path, shape: torch.Size) -> Tensor:
    """The weight of a reward model's head."""
    if not (path := folder / HEAD).is_file():
        raise InputError(f"{folder}: no {HEAD} in it. Expected a folder that recipes/reward.py has written.")
    with intact(path):
        weight = load_file(path)["weight"]
    if weight.shape != shape:
        raise InputError(f"{path}: a head of {tuple(weight.shape)} for a base of {tuple(shape)}.")
    return weight


class RewardRole:
    """The base in the reward role, called as a sequence classifier with one label is.

    It gives the raw score of each row at its last token that is not the pad token.
    """

    def __init__(self, roles: Roles, pad_token_id: int) -> None:
        self.roles, self.pad_token_id = roles, pad_token_id
        self.config = roles.config

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.roles.device

    @torch.no_grad()
    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> SequenceClassifierOutputWithPast:
        """Raw scores (B x 1) and the KV cache."""
        roles = self.roles
        if past_key_values is None and use_cache:
            blocks = zip(input_ids.tolist(), attention_mask.bool().tolist(), strict=True)
            prompts = [tuple(compress(ids, mask)) for ids, mask in blocks]
            if all(prompt in roles.known and len(prompt) > 1 for prompt in prompts):
                past_key_values = join([roles.known[prompt] for prompt in prompts], self.device)
                input_ids = input_ids[:, -1:]
        with roles._no_checkpointing(), roles.acting(REWARD):
            hidden, cache = roles._hidden(input_ids, attention_mask, past_key_values, use_cache)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = ((input_ids != self.pad_token_id) * places).argmax(1)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return SequenceClassifierOutputWithPast(
            logits=roles.reward_head(hidden[rows, last].float()), past_key_values=cache
        )
