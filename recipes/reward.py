"""The reward model: candidates -> labels -> preference pairs -> training -> report, from the model that phase 2 left.

    accelerate launch recipes/reward.py
    accelerate launch recipes/reward.py --sft_model runs/mine/phase2 --dataset_path train.csv \
        --eval_dataset_path dev.csv --output_dir runs/mine/reward
    python recipes/reward.py --stage label --samples 0

Results: OUTPUT_DIR/data (candidates, labels, and pairs in TRL's columns, for training and held out), OUTPUT_DIR/model,
report.json and report.html. `--stage` names the last stage to do; what is there already is not done again.
"""

import copy
import gc
import sys
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from alignment import data, dialogue, models, run
from alignment.arguments import CONFIGS, DataArguments, ModelArguments, PromptArguments, RewardArguments, parse
from alignment.errors import InputError
from alignment.formats import write_rows
from alignment.generation import Decoding
from alignment.progress import reset_peak_memory, show_table
from alignment.summarizer import Summarizer
from reward import candidates, pairs
from reward.labels import LabelArguments, label_candidates, read_ratings, show_examples
from reward.model import RewardModel, load_scorer, make_examples, make_trainer
from reward.report import report, write_report

SPLITS = ("train", "held_out")


def main(argv: list[str] | None = None) -> None:
    classes = (ModelArguments, DataArguments, PromptArguments, LabelArguments, RewardArguments)
    parsed = parse(classes, argv, default_config=CONFIGS / "embedded.yaml", section="reward")
    model_args, data_args, prompt_args, label_args, args = parsed
    models.check_adapter(args.sft_model, model_args.model_name_or_path, "--sft_model")
    sft = run.read_manifest(args.sft_model) or {}
    form, phase = sft.get("prompt_form", "instruction"), sft.get("phase", 1)
    if prompt_args.prompt_form not in (None, form):
        raise InputError(f"--prompt_form {prompt_args.prompt_form}: {args.sft_model} was trained with {form}.")
    models.check_length(args.max_length, model_args.model_name_or_path, model_args.model_revision)
    model_args = models.as_trained(model_args, sft.get("settings", {}))
    output = Path(args.output_dir)
    folder = output / "data"
    run.make_folder(folder)
    (train, held_out), rejected = data.load_train_and_eval(data_args)
    data.write_rejected(rejected, output / "rejected.jsonl")
    pairs.check_splits(train, held_out, ("dialogue", "id") if args.candidates or args.ratings else ("dialogue",))
    records = {"train": train, "held_out": held_out}
    run.say(f"{len(train)} dialogues to train on, {len(held_out)} held out, of {data_args.dataset_path}.")

    given = candidates.read_candidates(Path(args.candidates), train + held_out) if args.candidates else []
    rated, ratings, human = read_ratings(Path(args.ratings), train + held_out) if args.ratings else ([], {}, [])
    load = cache(partial(Summarizer.load, args.sft_model, model_args, prompt_args))  # for both splits
    decoding = Decoding(batch_size=args.sample_batch_size, seed=args.seed)
    facts = {"sft_model": models.weights_of(args.sft_model), "use": asdict(model_args) | asdict(prompt_args)}
    made = {}
    for split in SPLITS:
        made[split] = candidates.without_model(records[split], given + rated, args.seed)
        if args.samples:
            path = folder / f"{split}.samples.jsonl"
            how = (args.samples, args.temperatures, decoding, path, facts, args.overwrite_output_dir)
            made[split] += candidates.samples(load, records[split], *how)
    load.cache_clear()
    if args.stage == "sample":
        return

    images, of_images = candidates.mirrored(train)
    records["train"], made["train"] = train + images, made["train"] + of_images
    keep = (output / "model").exists() and not args.overwrite_output_dir  # what it was trained on
    labels = {split: label_candidates(made[split], records[split], label_args, ratings) for split in SPLITS}
    for split in SPLITS:
        write_rows(map(asdict, labels[split]), folder / f"{split}.labels.jsonl", keep)
    if args.stage == "label":
        show_examples(labels["train"])
        return

    prompting = {"form": form, "phase": phase, "tokenizer": models.load_tokenizer(args.sft_model)}
    compared = {split: pairs.make_pairs(labels[split], label_args, human) for split in SPLITS}
    for split in SPLITS:
        prompts = {record.id: dialogue.prompt_for(record, **prompting) for record in records[split]}
        write_rows(pairs.as_rows(compared[split], prompts), folder / f"{split}.pairs.jsonl", keep)
    title = f"{len(compared['train'])} pairs to train on, {len(compared['held_out'])} held out"
    show_table(title, ("kind", "pairs", *pairs.BINS), pairs.counts(compared["train"]))
    if args.stage == "pair":
        return

    settings = run.settings_of(model_args, label_args, args)
    facts |= {"data": {split: pairs.summary(compared[split]) for split in SPLITS}}
    current = run.Run.start(output / "model", settings, facts, args.overwrite_output_dir, args.resume_from_checkpoint)
    if current.finished:
        run.say(f"Reward model: already done, {current.folder}.")
    else:
        train_model(current, compared, records, prompting, model_args, data_args.bad_rows, args)
    if args.stage == "report":
        texts = {record.id: record.dialogue for record in held_out}
        gc.collect()  # the model as it was trained, before it is loaded as it will be used
        judged = labels["held_out"], compared["held_out"], texts
        reward_model = RewardModel.load(current.folder)
        figures = report(reward_model, *judged, args.min_accuracy, args.per_device_eval_batch_size)
        write_report(figures, f"Reward model {current.folder}", output)


def train_model(
    current: run.Run,
    compared: dict[str, list[pairs.Pair]],
    records: dict[str, list[data.Record]],
    prompting: dict[str, Any],
    model_args: ModelArguments,
    bad_rows: str,
    args: RewardArguments,
) -> None:
    """Trains on the pairs into the folder of the run, and centres the scores on held-out references."""
    gc.collect()  # what sampling left in memory, before the peak of training is counted
    reset_peak_memory()
    examples = []
    for split in SPLITS:
        own, shortened = make_examples(compared[split], records[split], args.max_length, bad_rows, **prompting)
        dialogue.write_shortened(shortened, current.folder / f"{split}.shortened.json")
        examples.append(own)
    args = copy.copy(args)
    args.output_dir = str(current.folder)
    trainer = make_trainer(load_scorer(model_args, args.sft_model), prompting["tokenizer"], args, *examples)
    trainer.train(resume_from_checkpoint=str(current.checkpoint) if current.checkpoint else None)
    trainer.save_model()
    reward_model = RewardModel(trainer.model.eval(), **prompting)
    references = [(record.dialogue, text) for record in records["held_out"] for text in record.references]
    reward_model.centre(*map(list, zip(*references, strict=True)))
    reward_model.save(current.folder)
    current.finish(log=trainer.state.log_history, best_checkpoint=trainer.state.best_model_checkpoint)
    run.say(f"Reward model: done in {current.manifest['seconds'] / 60:.1f} min, {current.folder}.")


if __name__ == "__main__":
    run.launch(main)
