"""Peak memory and speed of large models: QLoRA fine-tuning steps, and whole PPO updates.

    python benchmarks/memory.py
    python benchmarks/memory.py --models llama-2-ko-7b solar-10.7b --tasks ppo --json
    python benchmarks/memory.py --tasks yaml

The models have their exact shapes and random weights: nothing is downloaded. `sft` and `ppo` are in 4 bits and of one
size for all; `yaml` and `yaml_ppo` are as the model's file in recipes/configs says, in dialogues of full length. On a
GPU the trainers run, and the figures are torch's `max_memory_allocated` and tokens a second. Everywhere, the same steps
also run on tensors that have a size but no content (torch's meta device), and the most bytes that live at once are the
estimate. To either, the GPU adds what CUDA itself takes and what the allocator loses, about 1 GiB together.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[0] = str(Path(__file__).resolve().parents[1])

from alignment.launch import silence_libraries  # isort: skip  # before torch

import torch
import torch.fx.experimental._config as meta_config
import yaml
from bitsandbytes.functional import create_dynamic_map, name2qmap, quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3Config,
    TrainerCallback,
)

from alignment.arguments import SFTArguments
from alignment.attention import avoid_faulty_attention
from alignment.cache import growing
from alignment.head import loss_in_head
from alignment.parser import CONFIGS
from alignment.ppo import PPOConfig, PPOTrainer, Roles
from alignment.ppo.prompt_cache import join
from alignment.ppo.roles import ADAPTER, HEAD, POLICY, REFERENCE, RewardRole, RewardStart
from alignment.ppo.rollout import judge_batch, prefill
from alignment.sft import DialogueSFTTrainer
from reward.model import CHUNKS, make_batch, raw_scores, select

GIB = 2**30
SHAPES = {
    "polyglot-ko-5.8b": GPTNeoXConfig(
        vocab_size=30080, hidden_size=4096, intermediate_size=16384, num_hidden_layers=28, num_attention_heads=16,
        max_position_embeddings=2048, rotary_pct=0.25,
    ),
    "kogpt": GPTJConfig(vocab_size=64512, n_embd=4096, n_inner=16384, n_layer=28, n_head=16, rotary_dim=64),
    "llama-2-ko-7b": LlamaConfig(
        vocab_size=46336, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=2048,
    ),
    "solar-10.7b": LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=4096,
    ),
    "gemma-3-270m": Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=512,
    ),
} | {
    name: Qwen3Config(
        vocab_size=151936, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, tie_word_embeddings=name != "qwen3-8b",
    )
    for name, hidden, intermediate, layers, heads in (
        ("qwen3-0.6b", 1024, 3072, 28, 16), ("qwen3-1.7b", 2048, 6144, 28, 16), ("qwen3-4b", 2560, 9728, 36, 32),
        ("qwen3-8b", 4096, 12288, 36, 32),
    )
}  # fmt: skip
SUMMARY_TOKENS = 96
SCORED_BATCH = 8  # dialogues that a reward model scores at a time


@dataclass(frozen=True)
class FineTuning:
    """What a step of fine-tuning is of: dialogues, the tokens of each, and how the model is loaded and trained."""

    batch: int = 4
    tokens: int = 512
    in_4_bits: bool = True
    checkpointing: bool = True
    lora_r: int = 16
    lora_dropout: float = 0.0

    @classmethod
    def of(cls, name: str) -> "FineTuning":
        """As the model's YAML in recipes/configs says."""
        settings = settings_of(name)
        return cls(
            settings["per_device_train_batch_size"], settings["max_length"], settings.get("load_in_4bit", False),
            settings.get("gradient_checkpointing", False), settings["lora_r"], settings["lora_dropout"],
        )  # fmt: skip


@dataclass(frozen=True)
class Updates:
    """What an update of PPO is of: completions sampled together, tokens of each, and how the model is loaded."""

    batch: int = 8
    micro_batch: int = 1
    prompt_tokens: int = 768
    new_tokens: int = 96
    in_4_bits: bool = True
    lora_r: int = 16
    lora_dropout: float = 0.0

    @classmethod
    def of(cls, name: str) -> "Updates":
        """As the model's YAML in recipes/configs says, in prompts that fill its length."""
        settings = settings_of(name)
        own = settings["ppo"]
        new_tokens = own.get("max_new_tokens", settings.get("max_new_tokens", 128))
        return cls(
            own.get("generation_batch_size", PPOConfig.generation_batch_size), own["per_device_train_batch_size"],
            own.get("max_length", PPOConfig.max_length) - new_tokens, new_tokens, settings.get("load_in_4bit", False),
            settings["lora_r"], settings["lora_dropout"],
        )  # fmt: skip


def settings_of(name: str) -> dict[str, Any]:
    """What a model's YAML in recipes/configs says."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text("utf-8"))


def build(config: PreTrainedConfig, device: str, how: FineTuning | Updates) -> PreTrainedModel:
    """A model of this shape with random weights and new adapters; 4-bit ones but for embeddings, norms and head."""
    name2qmap["dynamic"] = create_dynamic_map()  # or the first device keeps it, which may be the one without content
    with torch.device("meta"):
        avoid_faulty_attention()
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, module in list(model.named_modules()):  # one at a time: 16-bit weights never exist as a whole
        module.to_empty(device=device, recurse=False)
        model._init_weights(module)
        if how.in_4_bits and isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            model.set_submodule(name, in_4_bits(module))
    model.tie_weights()
    model.is_loaded_in_4bit = how.in_4_bits
    lora = LoraConfig(
        r=how.lora_r, lora_alpha=32, lora_dropout=how.lora_dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, lora, autocast_adapter_dtype=False)


def in_4_bits(linear: nn.Linear) -> Linear4bit:
    """The layer in NF4 with double quantisation."""
    kind = {"compress_statistics": True, "quant_type": "nf4"}
    layer = Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, torch.bfloat16, **kind, device="meta"
    )
    packed, state = quantize_4bit(linear.weight.data, **kind)
    layer.weight = Params4bit(packed, requires_grad=False, quant_state=state, bnb_quantized=True, module=layer, **kind)
    layer.quant_state, layer.bias = state, linear.bias
    return layer


class Peak(TorchDispatchMode):
    """Counts the bytes that live at once, of tensors made within it on one device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.live, self.peak = device, 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        to, first = (kwargs or {}).get("device"), args[0] if args else None
        empty = self.device == "meta" and isinstance(first, Tensor) and first.is_meta
        if empty and to == torch.device("cpu"):
            out = torch.empty_like(first)  # in host memory: without content there too, and not counted
            self._count(out, 0)
            return out
        if empty and func is torch.ops.aten._local_scalar_dense.default:
            return 1  # where content is asked for, it is whether a mask is all true: no prompt is padded
        out = func(*args, **kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._count(tensor, tensor.untyped_storage().nbytes())
        return out

    def _count(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if (key := id(storage)) not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.live -= size


def fused_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """Attention as a GPU computes it, without a matrix of all tokens by all tokens."""
    if torch.is_grad_enabled():  # the backward pass alone wants grouped heads one by one
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    return attention(query, key, value, None, torch.is_grad_enabled())[0]


def sft_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    """A step as `DialogueSFTTrainer` makes it."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with loss_in_head(model.get_output_embeddings(), batch["labels"]):
        loss = model(**inputs, use_cache=False).logits
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def ppo_update(roles: Roles, optimizer: torch.optim.Optimizer, how: Updates) -> None:
    """An update as `PPOTrainer` makes it, but for the tokens between the first and the last of a completion."""
    device, prompt, new = roles.device, how.prompt_tokens, how.new_tokens
    prompts = [[i, *[1] * (prompt - 1)] for i in range(how.batch)]  # none equal, or it would be read once
    ids, mask = (torch.ones(how.batch, prompt + new, dtype=torch.long, device=device) for _ in range(2))
    with torch.no_grad():  # sample
        cache = growing(join(prefill(roles, prompts, POLICY, how.micro_batch), device))
        roles.model(ids[:, prompt - 1 : -1], attention_mask=mask[:, :-1], past_key_values=cache, logits_to_keep=1)
        logits = roles.model(ids[:, -1:], attention_mask=mask, past_key_values=cache, use_cache=True).logits
        logits[:, -1].float().softmax(-1).cumsum(-1, dtype=torch.float64)
        del cache, logits
    cache = join(prefill(roles, prompts, roles.prompt_role, how.micro_batch)[:SCORED_BATCH], device)
    ids, mask, role = ids[:SCORED_BATCH], mask[:SCORED_BATCH], RewardRole(roles, 0)
    positions = mask.cumsum(1) - 1
    role(ids[:, prompt - 1 : prompt], mask[:, :prompt], positions[:, :prompt], cache, use_cache=True)
    for rows in torch.arange(len(ids), device=device).tensor_split(CHUNKS):  # as `raw_scores` goes on
        part = select(cache, rows)
        role(ids[rows, prompt:], mask[rows], positions[rows, prompt:], part, use_cache=True)
        del part
    del cache
    of_part = [roles.prefill(prompts[: how.micro_batch], role) for role in (POLICY, REFERENCE, roles.prompt_role)]
    micro = {
        f"{part}_{kind}": torch.ones(how.micro_batch, tokens, dtype=dtype, device=device)
        for part, tokens in (("prompt", prompt), ("completion", new))
        for kind, dtype in (("ids", torch.long), ("mask", torch.bool))
    }
    judge_batch(roles, micro, 1.0, *of_part)
    prompts = {"policy_prompts": of_part[0], "value_prompts": of_part[2]}
    log_probs, _, values = roles(**micro, **prompts, temperature=1.0)
    (log_probs.sum() + values.sum()).backward()
    optimizer.step()


def save_reward_adapter(model: nn.Module, folder: Path) -> None:
    """A reward model for `model`: an adapter and a head of zeros."""
    weights = get_peft_model_state_dict(model)
    save_file({name: torch.zeros(one.shape, dtype=one.dtype) for name, one in weights.items()}, folder / ADAPTER)
    model.peft_config["default"].save_pretrained(str(folder))
    save_file({"weight": torch.zeros(1, model.config.hidden_size)}, folder / HEAD)


def adam_with_moments(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW as it is after its first step, which makes the moments."""
    optimizer = torch.optim.AdamW(parameters, foreach=False)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def estimate(config: PreTrainedConfig, how: FineTuning | Updates, device: str = "meta") -> float:
    """Peak memory (GiB) of fine-tuning or of PPO; on the meta device without doing it."""
    meta_config.meta_nonzero_assume_all_nonzero = True  # no completion ends early
    attention = fused_attention if device == "meta" else nn.functional.scaled_dot_product_attention
    as_on_a_gpu = patch.object(nn.functional, "scaled_dot_product_attention", attention)
    with tempfile.TemporaryDirectory() as folder, Peak(device) as memory, as_on_a_gpu:
        model = build(config, device, how)
        if isinstance(how, FineTuning):
            for parameter in filter(lambda one: one.requires_grad, model.parameters()):
                parameter.data = parameter.data.to(torch.bfloat16)  # as TRL does where the base has 4 bits
            if how.checkpointing:
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
            optimizer = adam_with_moments([p for p in model.parameters() if p.requires_grad])
            ids = torch.ones(how.batch, how.tokens, dtype=torch.long, device=device)
            labels = torch.full_like(ids, -100)
            labels[:, -SUMMARY_TOKENS:] = 1
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
            memory.peak = memory.live
            sft_step(model, optimizer, batch)
        else:
            save_reward_adapter(model, Path(folder))
            with torch.device(device):  # PEFT would leave the adapters of a model without content on the host
                roles = Roles(model, RewardStart(Path(folder)))
            optimizer = adam_with_moments(roles.trained())
            memory.peak = memory.live
            ppo_update(roles, optimizer, how)
    return memory.peak / GIB


def tokenizer_of(config: PreTrainedConfig) -> PreTrainedTokenizerFast:
    """A word for each token."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", padding_side="left")


def measure(config: PreTrainedConfig, how: FineTuning | Updates, folder: Path) -> dict[str, float]:
    """Peak memory and tokens a second of either task, by the trainers, on what this machine has."""
    on_gpu = torch.cuda.is_available()
    gc.collect()  # trainers refer to themselves: the model of the task before may still be there
    torch.cuda.empty_cache()
    model = build(config, "cuda" if on_gpu else "cpu", how)
    torch.cuda.empty_cache()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    tokenizer = tokenizer_of(config)
    common = {
        "output_dir": str(folder / "run"), "gradient_accumulation_steps": 1, "eval_strategy": "no",
        "save_strategy": "no", "load_best_model_at_end": False, "use_cpu": not on_gpu,
    }  # fmt: skip
    if isinstance(how, FineTuning):
        example = {
            "input_ids": [2] * how.tokens,
            "labels": [-100] * (how.tokens - SUMMARY_TOKENS) + [2] * SUMMARY_TOKENS,
        }
        args = SFTArguments(
            **common, per_device_train_batch_size=how.batch, max_steps=4, gradient_checkpointing=how.checkpointing,
            dataset_kwargs={"skip_prepare_dataset": True}, include_num_input_tokens_seen="all", logging_steps=1,
        )  # fmt: skip
        trainer = DialogueSFTTrainer(
            model=model, args=args, train_dataset=Dataset.from_list([example] * how.batch * 4),
            processing_class=tokenizer,
        )  # fmt: skip
        clock = Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)  # which writes into the JSON
        trainer.train()
        tokens_per_second = how.batch * how.tokens / min(clock.seconds[1:])
    else:
        save_reward_adapter(model, folder)
        roles = Roles(model, RewardStart(folder))
        role = RewardRole(roles, 0)

        def scorer(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
            summaries = [[ids] for ids in tokenizer(completions).input_ids]
            batch = make_batch(tokenizer(prompts).input_ids, summaries, tokenizer)
            return raw_scores(role, {name: tensor.to(roles.device) for name, tensor in batch.items()}).tolist()

        # Each begins in its own way, for a prompt that is there twice is read once.
        prompts = [" ".join([f"w{3 + i}", *["w2"] * (how.prompt_tokens - 1)]) for i in range(how.batch)]
        common |= {"per_device_train_batch_size": how.micro_batch}
        common |= {"gradient_accumulation_steps": how.batch // how.micro_batch}
        args = PPOConfig(
            **common, rollout_batch_size=how.batch, generation_batch_size=how.batch, max_new_tokens=how.new_tokens,
            max_length=None, num_updates=3, logging_steps=1,
        )  # fmt: skip
        trainer = PPOTrainer(
            model=roles, args=args, train_dataset=Dataset.from_dict({"prompt": prompts}),
            scorer=scorer, processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        tokens_per_second = [line["tokens_per_second"] for line in trainer.state.log_history if "reward" in line][-1]
    figures = {"tokens_per_second": round(tokens_per_second, 1)}
    if on_gpu:
        figures["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        figures["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    return figures


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="which models")
    tasks = ["sft", "ppo", "yaml", "yaml_ppo"]
    parser.add_argument("--tasks", nargs="+", default=tasks, choices=tasks, help="which tasks")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each task")
    options = parser.parse_args()
    silence_libraries()
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "none: estimated, not measured"
    for name in options.models:
        for task in options.tasks:
            sizes = {"sft": FineTuning(), "ppo": Updates(), "yaml": FineTuning.of(name), "yaml_ppo": Updates.of(name)}
            how = sizes[task]
            figures = {"estimated_gib": round(estimate(SHAPES[name], how), 2)}
            if on_gpu:
                with tempfile.TemporaryDirectory() as folder:
                    figures |= measure(SHAPES[name], how, Path(folder))
                figures["estimate_ratio"] = round(figures["estimated_gib"] / figures["peak_memory_gib"], 3)
            if options.json:
                print(json.dumps({"model": name, "task": task, "gpu": device} | figures), flush=True)
            else:
                told = ", ".join(f"{key} {value}" for key, value in figures.items())
                print(f"{name:18} {task:4} {told} (GPU: {device})", flush=True)


if __name__ == "__main__":
    main()
