"""Phases 1 and 2: from a file of dialogues to a model that summarises them.

    accelerate launch recipes/sft.py
    accelerate launch recipes/sft.py --config recipes/configs/qwen3-4b.yaml --dataset_path my_dialogues.csv
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/sft.py \
        --config recipes/configs/solar-10.7b.yaml

Without arguments it trains the embedded model on the embedded dialogues. Phase 1 fine-tunes with one instruction,
phase 2 goes on from phase 1's adapter with five. Results: OUTPUT_DIR/phase1 and OUTPUT_DIR/phase2.
"""

import copy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from transformers import PreTrainedTokenizerBase

from alignment import data, dialogue, models, outputs, pretrained, run, splits
from alignment.arguments import DataArguments, ModelArguments, PromptArguments, SFTArguments
from alignment.errors import InputError
from alignment.launch import launch
from alignment.parser import CONFIGS, parse
from alignment.progress import reset_peak_memory
from alignment.records import Record
from alignment.sft import check_goes_on, encode, make_trainer
from alignment.weights import weights_of
from reward.rouge import check_profiles, rouge

Split = tuple[list[Record], list[Record]]  # to train on, held out


def main(argv: list[str] | None = None) -> None:
    classes = (ModelArguments, DataArguments, PromptArguments, SFTArguments)
    model_args, data_args, prompt_args, args = parse(classes, argv, default_config=CONFIGS / "embedded.yaml")
    check_profiles("--rouge_profile", args.rouge_profile)
    prompt_args.prompt_form = prompt_args.prompt_form or "instruction"
    prompt_args.max_new_tokens = prompt_args.max_new_tokens or 128
    model_args.load_in_4bit, model_args.load_in_8bit = bool(model_args.load_in_4bit), bool(model_args.load_in_8bit)
    output = Path(args.output_dir)
    outputs.claim_folder(output)

    pretrained.check_architecture(model_args.model_name_or_path, model_args.model_revision)
    tokenizer = pretrained.load_tokenizer(model_args.model_name_or_path, model_args.model_revision)
    pretrained.check_length(args.max_length, model_args.model_name_or_path, model_args.model_revision)
    (train, held_out), rejected = splits.load_train_and_eval(data_args)
    splits.tell_of_references(train)
    fit = {"form": prompt_args.prompt_form, "tokenizer": tokenizer, "max_tokens": args.max_length}
    train, shortened = dialogue.fit_records(train, bad_rows=data_args.bad_rows, **fit)
    held_out, more = dialogue.fit_records(held_out, bad_rows=data_args.bad_rows, **fit)
    run.say(f"{len(train)} dialogues to train on, {len(held_out)} held out, of {data_args.dataset_path}.")

    first, *_ = phases = [*map(int, args.phases.split(","))]
    for phase in phases:
        current = start_phase(phase, (train, held_out), model_args, prompt_args, args)
        if phase == first:
            data.write_rejected(rejected, output / "rejected.jsonl")
            dialogue.write_shortened(shortened + more, output / "shortened.json")
        if not current.finished:
            train_phase(current, (train, held_out), tokenizer, model_args, prompt_args, args)


def start_phase(
    phase: int, split: Split, model_args: ModelArguments, prompt_args: PromptArguments, args: SFTArguments
) -> run.Run:
    """What is to do for a phase, which goes on from the base (1) or from phase 1's result (2)."""
    before = Path(args.output_dir) / "phase1"
    if phase == 2 and not (run.read_manifest(before) or {}).get("finished"):
        raise InputError(f"Phase 2 goes on from phase 1, but {before} holds no finished result. Use --phases 1,2.")
    settings = run.settings_of(model_args, prompt_args, args)
    settings = {key: value for key, value in settings.items() if phase == 2 or not key.startswith("phase2_")}
    facts = {
        "phase": phase,
        "prompt_form": prompt_args.prompt_form,
        "data": dict(zip(("train", "held_out"), map(data.stamp, split), strict=True)),
    }
    folder = before.with_name(f"phase{phase}")
    if phase == 2:
        earlier = None if args.overwrite_output_dir else run.read_manifest(folder)
        check_goes_on(settings, (earlier or run.read_manifest(before))["settings"])
        facts["starts_from"] = weights_of(before)
    resume = (args.overwrite_output_dir, args.resume_from_checkpoint)
    alone = "--phases 2 " if phase == 2 else ""  # or phase 1 would be trained again
    return run.Run.start(f"Phase {phase}", folder, settings, facts, *resume, f"{alone}--overwrite_output_dir true")


def train_phase(
    current: run.Run,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    model_args: ModelArguments,
    prompt_args: PromptArguments,
    args: SFTArguments,
) -> None:
    """Takes a phase to a finished folder."""
    (train, held_out), phase = split, current.manifest["phase"]
    reset_peak_memory()  # phase 1's model is gone

    def show(step: int, text: str) -> None:
        run.say(f"Phase {phase} step {step} writes: {' '.join(text.split())}")

    encoded = encode(
        train, held_out, phase, prompt_args.prompt_form, tokenizer, args, prompt_args.max_new_tokens,
        score=lambda texts, references: rouge(texts, references, args.rouge_profile).mean,
        context=pretrained.context_tokens(model_args.model_name_or_path, model_args.model_revision),
        show=show,
    )  # fmt: skip
    phase_args = copy.copy(args)
    phase_args.output_dir = str(current.folder)
    if phase == 2:
        phase_args.num_train_epochs = args.phase2_epochs
        own = args.phase2_learning_rate
        phase_args.learning_rate = args.learning_rate if own is None else own
    model = models.load_for_training(model_args, start_from=current.folder.with_name("phase1") if phase == 2 else None)
    trainer = make_trainer(model, tokenizer, phase_args, encoded, f"Phase {phase}")
    if encoded.held_out:
        reference = " ".join(encoded.held_out.references[0][0].split())
        run.say(f"Phase {phase}, a held-out dialogue's reference: {reference}")
    current.train(trainer)
    current.finish()


if __name__ == "__main__":
    launch(main)
