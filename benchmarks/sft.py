"""Fine-tuning with Yoyak against plain TRL: tokens a second, peak memory, and the same losses.

    python benchmarks/sft.py --dataset_path my_dialogues.csv
    python benchmarks/sft.py --dataset_path my_dialogues.csv --json

Two processes train the embedded model in float32 on the same dialogues with the same settings, and take turns at every
update, so that both meet the same weather on the machine. `plain` is TRL's `SFTTrainer` as it comes, fed the same
updates in the order of a shuffled file; `ours` is `DialogueSFTTrainer`. The figures are ratios ours / plain, of the
time the median over the updates after the first two.
"""

import argparse
import json
import multiprocessing
import queue
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

SEED = 42
BATCH, ACCUMULATION = 4, 1


def train(kind, examples, steps, dtype, my_turn, other_turn, results):
    """One contender, in its own process: trains, and hands over the turn after every update."""
    from alignment import models, pretrained
    from alignment.arguments import ModelArguments, SFTArguments
    from alignment.launch import silence_libraries
    from alignment.progress import peak_memory_gib
    from alignment.sft import DialogueSFTTrainer

    # after ours, which silences them
    import torch  # isort: skip
    from datasets import Dataset  # isort: skip
    from transformers import PrinterCallback, TrainerCallback, set_seed  # isort: skip
    from trl import SFTTrainer  # isort: skip

    class Turns(TrainerCallback):
        """Waits for the turn before an update, and notes how long the update took."""

        def __init__(self):
            self.seconds = []

        def on_step_begin(self, args, state, control, **_):
            my_turn.acquire()
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.started)
            other_turn.release()

    silence_libraries()
    model_args = ModelArguments(dtype=dtype, lora_dropout=0.0)
    args = SFTArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION,
        max_steps=steps, learning_rate=1e-3, eval_strategy="no", save_strategy="no", load_best_model_at_end=False,
        dataset_kwargs={"skip_prepare_dataset": True}, seed=SEED,
        train_sampling_strategy="batch_rebalance" if kind == "ours" else "sequential",
    )  # fmt: skip
    turns = Turns()
    set_seed(SEED)  # both start from the same adapters
    trainer = (DialogueSFTTrainer if kind == "ours" else SFTTrainer)(
        model=models.load_for_training(model_args),
        args=args,
        train_dataset=Dataset.from_list(examples),
        processing_class=pretrained.load_tokenizer(model_args.model_name_or_path),
        callbacks=[turns],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    results.put((kind, {"seconds": turns.seconds, "losses": losses, "peak_memory_gib": peak_memory_gib()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_path", default="embedded-ko", help="dialogues with summaries")
    parser.add_argument("--steps", type=int, default=20, help="updates of each contender")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="type of the base weights")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()

    from alignment import data, dialogue, pretrained

    import torch  # isort: skip

    if options.steps < 3:
        parser.error(f"--steps {options.steps}: expected 3 or more, as the first two are not timed")
    rows = options.steps * BATCH * ACCUMULATION
    records, _ = data.load_records(options.dataset_path, need_references=True, max_rows=rows)
    if len(records) < rows:
        parser.error(f"{options.steps} updates need {rows} dialogues, {options.dataset_path} has {len(records)}")
    tokenizer = pretrained.load_tokenizer("embedded")
    fitted, _ = dialogue.fit_records(records, "instruction", tokenizer, 1536)
    examples = [
        dialogue.encode_example(record, dialogue.instructions_for(record, 1)[0], "instruction", tokenizer)
        for record in fitted
    ]
    # The order in which `batch_rebalance` takes its updates, so that `plain` meets the same dialogues in each.
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(SEED)).tolist()
    datasets = {"plain": [examples[i] for i in order], "ours": examples}

    context = multiprocessing.get_context("spawn")
    turns = {"plain": context.Semaphore(1), "ours": context.Semaphore(0)}
    results = context.Queue()
    workers = []
    for kind, other in (("plain", "ours"), ("ours", "plain")):
        arguments = (kind, datasets[kind], options.steps, options.dtype, turns[kind], turns[other], results)
        workers.append(context.Process(target=train, args=arguments, daemon=True))
        workers[-1].start()
    measured: dict[str, dict] = {}
    while len(measured) < len(workers):
        try:
            measured |= [results.get(timeout=10)]
        except queue.Empty:
            if died := [worker.exitcode for worker in workers if worker.exitcode]:
                sys.exit(f"a contender has died (exit code {died[0]}; -9: killed, for want of memory as a rule)")
    for worker in workers:
        worker.join()

    ours, plain = measured["ours"], measured["plain"]
    ratios = [b / a for a, b in zip(ours["seconds"], plain["seconds"], strict=True)][2:]
    tokens = sum(len(example["input_ids"]) for example in examples) / options.steps
    differences = [abs(a - b) / abs(b) for a, b in zip(ours["losses"], plain["losses"], strict=True)]
    figures = {
        "tokens_per_second_ratio": round(statistics.median(ratios), 2),
        "peak_memory_ratio": round(ours["peak_memory_gib"] / plain["peak_memory_gib"], 3),
        "max_relative_loss_difference": max(differences),
        "tokens_per_second": round(tokens / statistics.median(ours["seconds"]), 1),
        "trl_tokens_per_second": round(tokens / statistics.median(plain["seconds"]), 1),
        "peak_memory_gib": round(ours["peak_memory_gib"], 2),
        "trl_peak_memory_gib": round(plain["peak_memory_gib"], 2),
        "updates": options.steps,
        "dialogues": len(examples),
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:30} {value}")


if __name__ == "__main__":
    main()
