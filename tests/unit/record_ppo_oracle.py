"""Records what trl 1.12's `PPOTrainer` computes on a tiny model: the fixture of test_ppo_oracle.py.

    python -m venv scratch && scratch/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.12.0 rich
    scratch/bin/python tests/unit/record_ppo_oracle.py tests/unit/ppo_oracle.safetensors

It looks into the running `train()` where it whitens the advantages and where it calls backward, and changes nothing.
"""

import os
import sys
import tempfile

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PAD, END = 0, 1
CONFIG = LlamaConfig(
    vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, pad_token_id=PAD, eos_token_id=END, num_labels=1,
)  # fmt: skip
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]
LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}
SEEN = (
    "logprobs", "ref_logprobs", "values", "scores", "kl", "rewards", "returns", "responses", "padding_mask",
    "padding_mask_p1",
)  # fmt: skip
SEEN_IN_STEP = ("micro_batch_inds", "new_logprobs", "vpred", "pg_loss", "vf_loss")


class Tokenizer:
    """As much of a tokenizer as the trainer asks for."""

    pad_token_id, eos_token_id, padding_side = PAD, END, "left"

    def save_pretrained(self, folder):
        pass


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    return {"input_ids": torch.tensor([[PAD] * (width - len(row["input_ids"])) + row["input_ids"] for row in rows])}


def models(seed):
    """Base, policy adapter and heads with weights large enough to matter."""
    torch.manual_seed(seed)
    base = LlamaForCausalLM(CONFIG)
    critics = [LlamaForSequenceClassification(CONFIG) for _ in range(2)]
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_(0, 0.3)
        for critic in critics:
            critic.model.load_state_dict(base.model.state_dict())
            critic.score.weight.normal_(0, 0.3)
    weights = {f"base.{name}": tensor.clone() for name, tensor in base.state_dict().items()}
    policy = get_peft_model(base, LoraConfig(**LORA))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    weights |= {f"policy.{name}": tensor.clone() for name, tensor in get_peft_model_state_dict(policy).items()}
    return policy, *critics, weights | {"value_head": critics[0].score.weight.detach().clone()}


def record(seed, estimator, stop):
    policy, value, reward, weights = models(seed)
    seen, steps = {}, []
    whiten = ppo_trainer.masked_whiten

    def looking_whiten(values, mask, shift_mean=True):
        found = whiten(values, mask, shift_mean)
        there = sys._getframe(1).f_locals
        seen.update({name: there[name].clone() for name in SEEN} | {"raw_advantages": values, "advantages": found})
        seen["queries"] = there["queries"].clone()
        return found

    ppo_trainer.masked_whiten = looking_whiten
    args = PPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=4, gradient_accumulation_steps=1,
        num_mini_batches=1, total_episodes=4, response_length=6, num_ppo_epochs=2, learning_rate=1e-2,
        kl_estimator=estimator, kl_coef=0.2, temperature=0.9, stop_token="eos" if stop else None,
        missing_eos_penalty=None, report_to="none", save_strategy="no", num_sample_generations=0, use_cpu=True,
        bf16=False, gradient_checkpointing=False, seed=seed,
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": PROMPTS})
    trainer = PPOTrainer(
        args=args, processing_class=Tokenizer(), model=policy, ref_model=None, reward_model=reward, value_model=value,
        train_dataset=rows, eval_dataset=rows, data_collator=collate,
    )  # fmt: skip
    backward = trainer.accelerator.backward

    def looking_backward(loss):
        there = sys._getframe(1).f_locals
        steps.append({name: torch.as_tensor(there[name]).detach().clone() for name in SEEN_IN_STEP})
        return backward(loss)

    trainer.accelerator.backward = looking_backward
    trainer.train()
    ppo_trainer.masked_whiten = whiten
    for i, step in enumerate(steps):
        seen |= {f"step{i}.{name}": tensor for name, tensor in step.items()}
    return weights | seen


def main():
    found = {}
    for case, (estimator, stop) in {"full": ("k1", False), "ended": ("k3", True)}.items():
        for seed in range(1000):
            one = record(seed, estimator, stop)
            ends = one["padding_mask"].any(1)
            if (PAD in one["responses"][~one["padding_mask"]]) or (ends.sum() not in (2, 3) if stop else ends.any()):
                continue
            found |= {f"{case}.{name}": tensor.contiguous() for name, tensor in one.items()}
            print(f"{case}: seed {seed}")
            break
        else:
            raise SystemExit(f"{case}: no seed gives what the case needs")
    save_file(found, sys.argv[1])


if __name__ == "__main__":
    main()
