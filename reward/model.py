"""The reward model: a base with an adapter and a scalar head, which scores summaries of dialogues.

The head is saved apart from the adapter, beside the scale of its scores on reference summaries, which centres it. Who
does what, which small models guess at, is told by a linear model of its own (reward/attribution.py), and added.
"""

import json
import math
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache, PreTrainedTokenizerBase
from trl.trainer.reward_trainer import suppress_seqcls_warning

from alignment import dialogue, models, pretrained
from alignment.arguments import ModelArguments
from alignment.cache import GROWING
from alignment.errors import InputError
from alignment.ppo.roles import RewardRole, RewardStart, Roles, read_head
from alignment.progress import Progress
from alignment.records import Record
from alignment.run import read_manifest, write_json
from alignment.training import let_gradients_through
from reward.attribution import Attribution

FACTS = "reward.json"  # prompt form and phase, weight of the attribution, scale

CHUNKS = 4

Batch = dict[str, Tensor]


def network_of(folder: str | Path, cure: str = "") -> Path:
    """The folder of the model inside what recipes/reward.py left.

    Args:
        cure: What the message ends with.

    Raises:
        InputError: There is none.
    """
    if not (facts := Path(folder) / "model" / FACTS).is_file():
        raise InputError(
            f"--reward_model {folder}: no model/{FACTS} in it. Expected the output folder of a finished "
            f"recipes/reward.py{cure}."
        )
    return facts.parent


def make_batch(
    prompts: list[list[int]],
    summaries: list[list[list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    pad_to_multiple_of: int | None = None,
) -> Batch:
    """Prompts (D x P, padded on the left), the summaries of each (N x C, on the right), and whose each is (N)."""
    options = {"return_tensors": "pt", "pad_to_multiple_of": pad_to_multiple_of}
    one = tokenizer.pad({"input_ids": prompts}, padding_side="left", **options)
    flat = [ids for group in summaries for ids in group]
    other = tokenizer.pad({"input_ids": flat}, padding_side="right", **options)
    owner = torch.tensor([i for i, group in enumerate(summaries) for _ in group])
    return {
        "input_ids": one.input_ids, "attention_mask": one.attention_mask,
        "summary_ids": other.input_ids, "summary_mask": other.attention_mask, "owner": owner,
    }  # fmt: skip


def raw_scores(model: nn.Module | RewardRole, batch: Batch, parts: int = CHUNKS) -> Tensor:
    """The head's raw score of each summary (N), at its last token that is not the pad token.

    That is its end token, or the one before where a tokenizer pads with the end token.

    Args:
        parts: In which the summaries are read, those of like length together, so that little is padding; each has a
            copy of its dialogues' KV cache. By default as many however many summaries there are, so that all processes
            of a trainer call the model equally often.
    """
    lengths = batch["summary_mask"].sum(1)
    order = lengths.argsort(stable=True)
    enough = torch.cat([order, order[-1:].expand(max(0, parts - len(order)))])
    prompt_mask = batch["attention_mask"]
    # What is recomputed under gradient checkpointing keeps no KV cache: each summary is read with its prompt.
    whole = (
        isinstance(model, nn.Module)
        and model.training
        and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    )
    if not whole:
        positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
        of_prompts = model(
            input_ids=batch["input_ids"], attention_mask=prompt_mask, position_ids=positions, use_cache=True
        ).past_key_values
        whole = any(type(layer) not in GROWING for layer in of_prompts.layers)  # a state cannot be given to several
    scores = []
    for rows in enough.tensor_split(parts):
        owner, longest = batch["owner"][rows], int(lengths[rows].max())
        summaries = slice(0, -(-longest // 16) * 16)  # few widths: for each, torch on a CPU keeps work space
        ids, mask = batch["summary_ids"][rows, summaries], batch["summary_mask"][rows, summaries]
        mask = torch.cat([prompt_mask[owner], mask], dim=1)  # n x (P + C)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        if whole:
            ids, cache = torch.cat([batch["input_ids"][owner], ids], dim=1), None
        else:
            cache, positions = select(of_prompts, owner), positions[:, prompt_mask.shape[1] :]
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=not whole
        )
        scores.append(output.logits.squeeze(1))
        del output, cache  # or they would stay until the next part has its own
    return torch.cat(scores)[: len(order)][order.argsort()]


def select(cache: Cache, rows: Tensor) -> Cache:
    """The KV cache of these rows, as one of its own."""
    chosen = copy(cache)
    chosen.layers = [copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def encode_summaries(summaries: list[str], form: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each summary, with the token that ends it."""
    end = dialogue.end_token_id(form, tokenizer)
    return [[*ids, end] for ids in tokenizer(summaries, add_special_tokens=False).input_ids] if summaries else []


def head_of(model: nn.Module) -> nn.Linear:
    """The scalar head of a model, whatever is wrapped around it."""
    return next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "score")


def load_head(model: nn.Module, folder: str | Path) -> None:
    """Puts the weight saved in `folder` into the head.

    Raises:
        InputError: There is none, or one for another width.
    """
    head = head_of(model)
    weight = read_head(Path(folder), head.weight.shape)
    with torch.no_grad():
        head.weight.copy_(weight)


def load_scorer(config: ModelArguments, adapter: str | Path) -> PeftModel:
    """A base with the adapter of a folder, both trainable, and a head of zeros that computes in float32."""
    with suppress_seqcls_warning():  # that the head is new, which is as it should be
        base = let_gradients_through(models.load_base(config, scalar_head=True))
    base.score.to(torch.float32)
    nn.init.zeros_(base.score.weight)
    base.score.register_forward_pre_hook(lambda _, args: (args[0].to(torch.float32),))
    model = models.add_adapter(base, adapter, trainable=True)
    head_of(model).requires_grad_(True)
    return model


def start_of(path: Path) -> RewardStart:
    """The reward model in a folder, for `Roles`."""
    scale = _parts(path)["scale"]
    return RewardStart(path, scale.mean, scale.deviation)


@dataclass(frozen=True)
class Scale:
    """How a raw score becomes one that can be read: in deviations from a mean reference, without what length brings.

    Attributes:
        length_slope: Deviations that a reference gains with the logarithm of its characters.
        shortest: Logarithm of the shortest reference's characters. Below it, and above `longest`, length brings no
            more than there: no slope was seen, and it would pay to say nothing.
    """

    mean: float = 0.0
    deviation: float = 1.0
    length_slope: float = 0.0
    mean_log_length: float = 0.0
    shortest: float = -math.inf
    longest: float = math.inf

    @classmethod
    def of(cls, raw: np.ndarray, references: list[str]) -> "Scale":
        """The scale on which these raw scores of references (N) have mean 0 and no slope over length.

        Their deviation is 1 before what length brings is taken off.

        Of ten references or fewer there is no slope, and of equal scores no deviation (1 stands in).
        """
        log_lengths = np.array(list(map(_log_length, references)))
        mean, deviation, slope = float(raw.mean()), _deviation(raw), 0.0
        if len(raw) > 10 and np.ptp(log_lengths) > 0:
            slope = float(np.polyfit(log_lengths, (raw - mean) / deviation, 1)[0])
        return cls(mean, deviation, slope, *(float(one(log_lengths)) for one in (np.mean, np.min, np.max)))

    def score(self, raw: float, summary: str) -> float:
        """The score of a summary with this raw one."""
        log_length = min(max(_log_length(summary), self.shortest), self.longest)
        return (raw - self.mean) / self.deviation - self.length_slope * (log_length - self.mean_log_length)


def _deviation(scores: np.ndarray) -> float:
    return float(scores.std()) if np.ptp(scores) > 1e-6 else 1.0


def _log_length(text: str) -> float:
    return math.log(max(len(text), 1))


def _parts(path: str | Path) -> dict[str, Any]:
    """What the folder of a reward model holds besides its network, as `RewardModel` takes it."""
    if not (file := Path(path) / FACTS).is_file():
        raise InputError(f"{path}: no {FACTS} in it. Expected the model folder of a finished recipes/reward.py.")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: broken or cut ({error}). Copy it again, or run recipes/reward.py again.") from error
    if "scale" not in facts:
        raise InputError(f"{file}: no scale in it; an earlier version wrote it. Run recipes/reward.py again.")
    return facts | {"scale": Scale(**facts["scale"]), "attribution": Attribution.load(path)}


class RewardModel:
    """Scores summaries of dialogues: 0 is a mean reference summary, 1 a standard deviation better than that.

    What length alone brings a reference summary is taken off, so that neither longer nor shorter ones pay.

    Args:
        attribution_weight: Of `attribution`, beside the head's score.

    Example: `RewardModel.load("runs/reward/model").score([dialogue], [summary])`
    """

    def __init__(
        self,
        model: PeftModel | RewardRole,
        tokenizer: PreTrainedTokenizerBase,
        form: str,
        phase: int,
        scale: Scale = Scale(),
        attribution: Attribution | None = None,
        attribution_weight: float = 0.0,
    ) -> None:
        self.model, self.tokenizer, self.form, self.phase = model, tokenizer, form, phase
        self.scale = scale
        self.attribution, self.attribution_weight = attribution or Attribution({}), attribution_weight

    @classmethod
    def load(cls, path: str | Path, model_args: ModelArguments | None = None) -> "RewardModel":
        """Loads what recipes/reward.py has left in a folder, in the type and quantisation that it was trained in.

        Raises:
            InputError: The folder holds no reward model, or its base cannot be loaded.
        """
        parts = _parts(path)
        config = models.as_trained(model_args or ModelArguments(), (read_manifest(path) or {}).get("settings", {}))
        model = load_scorer(replace(config, model_name_or_path=str(pretrained.base_of(path))), path)
        load_head(model, path)
        tokenizer = pretrained.load_tokenizer(str(path))
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return cls(model.to(PartialState().device).eval(), tokenizer, **parts)

    @classmethod
    def in_role(cls, roles: Roles, path: str | Path) -> "RewardModel":
        """What recipes/reward.py has left in a folder, where a base that it shares has taken on its role."""
        tokenizer = pretrained.load_tokenizer(str(path))
        return cls(RewardRole(roles, tokenizer.pad_token_id), tokenizer, **_parts(path))

    def save(self, path: str | Path) -> None:
        """Writes prompt form, scale and attribution beside the adapter and head that the trainer has saved."""
        facts = {name: getattr(self, name) for name in ("form", "phase", "attribution_weight")}
        write_json(facts | {"scale": asdict(self.scale)}, Path(path) / FACTS)
        self.attribution.save(path)

    def publish(self, path: str | Path) -> None:
        """Writes a whole model that `AutoModelForSequenceClassification` loads, with its tokenizer.

        Its one logit is the head's score of `prompt + summary + end token`; what is added to it, and the scale, stand
        beside it in `attribution.json` and `reward.json`.
        Load it with `dtype="float32"` for the same logits: the head is float32 whatever the base is.

        Raises:
            InputError: The base is quantised: merged into rounded weights, the adapter would be rounded off.
        """
        if isinstance(self.model, RewardRole):
            raise InputError(
                f"{path}: this reward model shares its base with PPO. Publish what RewardModel.load gives."
            )
        if getattr(self.model.config, "quantization_config", None):
            raise InputError(f"{path}: to publish it whole, load it with ModelArguments(load_in_4bit=False).")
        self.model.merge_and_unload().save_pretrained(str(path))
        self.tokenizer.save_pretrained(str(path))
        self.save(path)

    def centre(self, records: list[Record], attribution_weight: float = 0.0, batch_size: int = 8) -> None:
        """Takes the scale from the references of these records.

        Args:
            attribution_weight: Of `attribution`, in deviations of the head's scores.
            batch_size: As `score` takes it.
        """
        self.scale, self.attribution_weight = Scale(), 0.0
        of_references = [(record.dialogue, text) for record in records for text in record.references]
        dialogues, references = map(list, zip(*of_references, strict=True))
        raw = np.array(self.score(dialogues, references, batch_size))
        self.attribution_weight = attribution_weight * _deviation(raw)
        told = np.array(list(map(self.attribution.score, dialogues, references)))
        self.scale = Scale.of(raw + self.attribution_weight * told, references)

    def score(
        self, dialogues: list[str], summaries: list[str], batch_size: int = 8, description: str | None = None
    ) -> list[float]:
        """One score for each summary, in order; a dialogue that comes several times is read once a batch.

        Args:
            batch_size: Dialogues at a time, which are sorted by length, and summaries at a time.
            description: Shown with a progress bar, or None for none.

        Raises:
            InputError: As many dialogues as summaries were expected.
        """
        if len(dialogues) != len(summaries):
            raise InputError(f"{len(dialogues)} dialogues but {len(summaries)} summaries: expected as many of both.")
        ends = encode_summaries(summaries, self.form, self.tokenizer)
        owned: dict[str, list[int]] = {}
        for index, text in enumerate(dialogues):
            owned.setdefault(text, []).append(index)
        prompts = self._prompts({text: max(len(ends[i]) for i in own) for text, own in owned.items()})
        owned = {text: owned[text] for text in sorted(owned, key=lambda text: len(prompts[text]))}
        groups, scores = list(owned.items()), [0.0] * len(summaries)
        with Progress(description, total=len(groups)) as progress, torch.inference_mode():
            for start in range(0, len(groups), batch_size):
                part = groups[start : start + batch_size]
                batch = make_batch(
                    [prompts[text] for text, _ in part], [[ends[i] for i in own] for _, own in part], self.tokenizer
                )
                batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
                indices = [i for _, own in part for i in own]
                parts = max(CHUNKS, math.ceil(len(indices) / batch_size))
                for i, of_head in zip(indices, raw_scores(self.model, batch, parts).tolist(), strict=True):
                    told = self.attribution.score(dialogues[i], summaries[i])
                    scores[i] = self.scale.score(of_head + self.attribution_weight * told, summaries[i])
                progress.advance(len(part))
        return scores

    def _prompts(self, summary_tokens: dict[str, int]) -> dict[str, list[int]]:
        """Token ids of each dialogue's prompt, with room for that many tokens of summary."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        ids = {}
        for text, reserve in summary_tokens.items():
            records = [Record(f"{text[:30]}…", text, ())]
            if context:
                records, _ = dialogue.fit_records(records, self.form, self.tokenizer, context, reserve)
            prompt = dialogue.prompt_for(records[0], self.phase, self.form, self.tokenizer)
            ids[text] = dialogue.encode_prompt(prompt, self.form, self.tokenizer)
        return ids
