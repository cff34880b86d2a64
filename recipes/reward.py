"""The reward model: candidates -> labels -> preference pairs -> training -> report, from the model that phase 2 left.

    accelerate launch recipes/reward.py --sft_model runs/my/phase2 --dataset_path train.csv --eval_dataset_path dev.csv

Results: OUTPUT_DIR/data (candidates, labels, and pairs in TRL's columns, for training and held out), OUTPUT_DIR/model,
report.json and report.html. `--stage` names the last stage to do; what is there already is not done again.
"""

import sys
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from alignment import data, dialogue, formats, models, outputs, pretrained, run, splits
from alignment.arguments import DataArguments, ModelArguments, PromptArguments, RewardArguments
from alignment.errors import InputError
from alignment.generation import Decoding
from alignment.launch import launch
from alignment.parser import CONFIGS, parse
from alignment.progress import reset_peak_memory
from alignment.records import Record
from alignment.summarizer import Summarizer
from alignment.weights import weights_of
from reward import candidates, pairs
from reward.attribution import Attribution
from reward.labels import LabelArguments, label_candidates, read_ratings, show_examples
from reward.model import RewardModel, load_scorer
from reward.report import report, verdict_files, write_report
from reward.trainer import make_examples, make_trainer

SPLITS = ("train", "held_out")


def main(argv: list[str] | None = None) -> None:
    classes = (ModelArguments, DataArguments, PromptArguments, LabelArguments, RewardArguments)
    options = parse(classes, argv, default_config=CONFIGS / "embedded.yaml", section="reward")
    model_args, data_args, prompt_args, label_args, args = options
    models.check_adapter(args.sft_model, model_args.model_name_or_path, "--sft_model")
    form, phase, trained = run.trained_with(args.sft_model)
    if prompt_args.prompt_form not in (None, form):
        raise InputError(f"--prompt_form {prompt_args.prompt_form}: {args.sft_model} was trained with {form}.")
    pretrained.check_length(args.max_length, model_args.model_name_or_path, model_args.model_revision)
    model_args = models.as_trained(model_args, trained)
    models.check_trainable(model_args, scalar_head=args.stage in ("train", "report"))
    output, folder = Path(args.output_dir), Path(args.output_dir) / "data"
    outputs.refuse_existing([] if any(output.glob("model*")) else verdict_files(output), args.overwrite_output_dir)
    outputs.claim_folder(folder)
    (train, held_out), rejected = splits.load_train_and_eval(data_args)
    everything, more = splits.load_all_train(data_args)  # for what costs seconds
    records = {"train": train, "held_out": held_out}
    if args.candidates or args.ratings:
        pairs.check_ids(train, held_out)
    run.say(f"{len(train)} dialogues to train on, {len(held_out)} held out, of {data_args.dataset_path}.")

    given = candidates.read_candidates(Path(args.candidates), train + held_out) if args.candidates else []
    rated, ratings, human = read_ratings(Path(args.ratings), train + held_out) if args.ratings else ([], {}, [])
    load = cache(partial(Summarizer.load, args.sft_model, model_args, prompt_args))  # for both splits
    decoding = Decoding(batch_size=args.sample_batch_size, seed=args.seed)
    facts = {"starts_from": weights_of(args.sft_model), "use": asdict(model_args) | asdict(prompt_args)}
    made = {split: candidates.without_model(records[split], given + rated, args.seed) for split in SPLITS}
    for split in SPLITS if args.samples else ():
        how = (args.samples, args.temperatures, decoding, folder / f"{split}.samples.jsonl", facts)
        made[split] += candidates.samples(load, records[split], *how, args.overwrite_output_dir)
    load.cache_clear()
    data.write_rejected(list(dict.fromkeys(rejected + more)), output / "rejected.jsonl")
    if args.stage == "sample":
        return

    images, of_images = candidates.mirrored(train)
    records["train"], made["train"] = train + images, made["train"] + of_images
    keep = (output / "model").exists() and not args.overwrite_output_dir  # what it was trained on
    labels = {split: label_candidates(made[split], records[split], label_args, ratings) for split in SPLITS}
    for split in SPLITS:
        formats.write_rows(map(asdict, labels[split]), folder / f"{split}.labels.jsonl", keep)
    if args.stage == "label":
        show_examples(labels["train"])
        return

    prompting = {"form": form, "phase": phase, "tokenizer": pretrained.load_tokenizer(args.sft_model)}
    compared = {split: pairs.make_pairs(labels[split], label_args, human) for split in SPLITS}
    for split in SPLITS:
        prompts = {record.id: dialogue.prompt_for(record, **prompting) for record in records[split]}
        formats.write_rows(pairs.as_rows(compared[split], prompts), folder / f"{split}.pairs.jsonl", keep)
    pairs.show_counts(compared, labels)
    if args.stage == "pair":
        return

    facts["data"] = {split: pairs.stamp(compared[split]) for split in SPLITS} | {"all": data.stamp(everything)}
    settings, resume = run.settings_of(model_args, label_args, args), args.resume_from_checkpoint
    current = run.Run.start("Reward model", output / "model", settings, facts, args.overwrite_output_dir, resume)
    if not current.finished:
        for file in verdict_files(output):  # on another model
            file.unlink(missing_ok=True)
        train_model(current, compared, records, Attribution.fit(everything), prompting, model_args, args)
    if args.stage == "report":
        reset_peak_memory()  # the model as it was trained is gone; here it is as it will be used
        judged = RewardModel.load(current.folder), labels["held_out"], compared["held_out"], held_out
        figures = report(*judged, args.min_accuracy, args.per_device_eval_batch_size)
        write_report(figures, f"Reward model {current.folder}", output)


def train_model(
    current: run.Run,
    compared: dict[str, list[pairs.Pair]],
    records: dict[str, list[Record]],
    attribution: Attribution,
    prompting: dict,
    model_args: ModelArguments,
    args: RewardArguments,
) -> None:
    """Trains on the pairs into the folder of the run, and centres the scores on held-out references."""
    reset_peak_memory()  # what sampled is gone
    examples = {}
    for split in SPLITS:
        examples[split], shortened = make_examples(compared[split], records[split], args.max_length, **prompting)
        dialogue.write_shortened(shortened, current.folder / f"{split}.shortened.json")
    model, tokenizer = load_scorer(model_args, args.sft_model), prompting["tokenizer"]
    trainer = make_trainer(model, tokenizer, args, current.folder, examples["train"], examples["held_out"])
    current.train(trainer)
    reward_model = RewardModel(model.eval(), **prompting, attribution=attribution)
    reward_model.centre(records["held_out"], args.attribution_weight, args.per_device_eval_batch_size)
    reward_model.save(current.folder)
    current.finish()


if __name__ == "__main__":
    launch(main, shards=False)
