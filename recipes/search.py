"""Hyper-parameters of phase 1 for a model and data: trials by Optuna, and the best as a YAML for recipes/sft.py.

    accelerate launch recipes/search.py --trials 12
    accelerate launch recipes/search.py --config recipes/configs/qwen3-4b.yaml --dataset_path my_dialogues.csv
    accelerate launch recipes/sft.py --config runs/search/best.yaml

Takes the settings of recipes/sft.py, and ranges in place of those that it searches. The same command goes on after a
stop, and shares the trials when it is started in several shells (one GPU each: CUDA_VISIBLE_DEVICES=1 accelerate ...).
Results: OUTPUT_DIR/best.yaml and trials.csv, written after each trial; the study is OUTPUT_DIR/study.db.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import optuna
from accelerate import PartialState

from alignment import data, dialogue, models, outputs, pretrained, run, splits
from alignment.arguments import DataArguments, ModelArguments, PromptArguments
from alignment.errors import InputError
from alignment.launch import launch
from alignment.parser import CONFIGS, parse
from alignment.search import Search
from alignment.search_space import DIRECTIONS, SearchArguments, SearchSpace, settings_for_sft, settings_of_study
from alignment.sft import encode
from alignment.study import Study
from reward.rouge import check_profiles, rouge


def main(argv: list[str] | None = None) -> None:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # trials are told of here
    classes = (ModelArguments, DataArguments, PromptArguments, SearchArguments)
    model_args, data_args, prompt_args, args = parse(
        classes, argv, default_config=CONFIGS / "embedded.yaml", section="search"
    )
    if PartialState().num_processes > 1:
        raise InputError(
            "A trial runs in one process. Start the same command once for each GPU, with --num_processes 1 and "
            "CUDA_VISIBLE_DEVICES: they share the trials."
        )
    check_profiles("--rouge_profile", args.rouge_profile)
    start = settings_for_sft(model_args, data_args, prompt_args, args)
    prompt_args.max_new_tokens = prompt_args.max_new_tokens or 128
    model_args.load_in_4bit, model_args.load_in_8bit = bool(model_args.load_in_4bit), bool(model_args.load_in_8bit)
    models.check_trainable(model_args)
    pretrained.check_architecture(model_args.model_name_or_path, model_args.model_revision)

    tokenizer = pretrained.load_tokenizer(model_args.model_name_or_path, model_args.model_revision)
    pretrained.check_length(args.max_length, model_args.model_name_or_path, model_args.model_revision)
    with_template = tokenizer.chat_template is not None
    args.prompt_forms = args.prompt_forms or [form for form in dialogue.FORMS if form != "template" or with_template]
    for form in args.prompt_forms:
        dialogue.render("", "", form, tokenizer)  # refuses what this model cannot do
    space = SearchSpace(args, args.prompt_forms, model_args.use_peft)
    (train, held_out), rejected = splits.load_train_and_eval(data_args)
    splits.tell_of_references(train)

    output = Path(args.output_dir)
    outputs.make_folder(output)
    facts = {"train": data.stamp(train), "held_out": data.stamp(held_out)}
    settings = settings_of_study(model_args, prompt_args, args, facts)
    study = Study(output, DIRECTIONS[args.objective], settings, args.seed)
    data.write_rejected(rejected, output / "rejected.jsonl")
    encoded = {}
    for form in args.prompt_forms:
        fit = {"form": form, "tokenizer": tokenizer, "max_tokens": args.max_length, "bad_rows": data_args.bad_rows}
        (fitted, shortened), (fitted_held_out, more) = (dialogue.fit_records(rows, **fit) for rows in (train, held_out))
        dialogue.write_shortened(shortened + more, output / f"shortened-{form}.json")
        encoded[form] = encode(
            fitted, fitted_held_out, 1, form, tokenizer, args, prompt_args.max_new_tokens,
            score=lambda texts, references: rouge(texts, references, args.rouge_profile).mean,
            context=pretrained.context_tokens(model_args.model_name_or_path, model_args.model_revision),
        )  # fmt: skip
    run.say(f"{len(train)} dialogues to train on, {len(held_out)} held out, of {data_args.dataset_path}.")
    run.say(f"{len(study.finished())} of {args.trials} trials are done: {study.path}.")
    Search(study, space, encoded, tokenizer, model_args, args, start).run()


if __name__ == "__main__":
    launch(main)
