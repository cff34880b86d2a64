"""The contender of benchmarks/ppo.py: `PPOTrainer` of trl 1.12, in an environment that has it.

Started with a folder (model/, rows.json, never.json), the number of updates, and the dialogues a micro-batch. It waits
for a line before each update and tells how long the update took. All settings are those of our side; where trl has no
setting it is as it comes: the value is a whole model of its own and trained whole, and so is, untrained, the reward.
"""

import json
import os
import resource
import sys
import tempfile
import time

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

FOLDER, UPDATES, MICRO_BATCH = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
PROMPTS, NEW_TOKENS, EPOCHS = 8, 32, 4
started = 0.0


class Tell(TrainerCallback):
    """Tells how long an update took."""

    def on_step_end(self, *_, **__):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps({"seconds": time.perf_counter() - started, "peak_memory_gib": peak}), flush=True)


def main():
    generate = ppo_trainer.batch_generation

    def in_turn(*args, **kwargs):  # an update begins with it
        global started
        sys.stdin.readline()
        started = time.perf_counter()
        return generate(*args, **kwargs)

    ppo_trainer.batch_generation = in_turn
    path = f"{FOLDER}/model"
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    with open(f"{FOLDER}/rows.json") as file:
        rows = Dataset.from_list([{"input_ids": row["input_ids"]} for row in json.load(file)])
    with open(f"{FOLDER}/never.json") as file:
        tokenizer.pad_token_id = json.load(file)  # which no completion has, so that all have 32 tokens
    torch.manual_seed(0)
    critics = [
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32) for _ in range(2)
    ]
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=tempfile.mkdtemp(), total_episodes=PROMPTS * UPDATES, num_ppo_epochs=EPOCHS, num_mini_batches=1,
            per_device_train_batch_size=MICRO_BATCH, gradient_accumulation_steps=PROMPTS // MICRO_BATCH,
            response_length=NEW_TOKENS, temperature=1.0, learning_rate=1e-5, save_strategy="no", report_to="none",
            num_sample_generations=0, bf16=False, gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(),
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        ref_model=None,
        value_model=critics[0],
        reward_model=critics[1],
        train_dataset=rows,
        eval_dataset=rows,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Tell()],
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    main()
