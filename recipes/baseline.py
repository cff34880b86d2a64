"""The baseline: an encoder-decoder (KoBART, T5, mT5, pko-t5, mBART-50) on the same dialogues and the same metric.

    accelerate launch recipes/baseline.py
    accelerate launch recipes/baseline.py --config recipes/configs/pko-t5.yaml --dataset_path my_dialogues.csv
    accelerate launch recipes/evaluate.py --model runs/kobart runs/pko-t5 runs/sft/phase2 --dataset_path dev.csv

Trains every weight. Without arguments it takes KoBART and the embedded dialogues. OUTPUT_DIR is the model's folder, and
it summarises with the decoding that it was trained for: four beams, no two words twice.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from alignment import data, dialogue, models, outputs, pretrained, run, splits
from alignment.arguments import DataArguments, ModelArguments, PromptArguments
from alignment.errors import InputError
from alignment.held_out import HeldOut, tell_of_longer
from alignment.launch import launch
from alignment.parser import CONFIGS, parse
from alignment.seq2seq import (
    BaselineArguments,
    encode_examples,
    make_trainer,
    set_up_model,
    set_up_tokenizer,
    whole_weights,
)
from reward.rouge import check_profiles, rouge


def main(argv: list[str] | None = None) -> None:
    classes = (ModelArguments, DataArguments, BaselineArguments)
    own = {"passed_over": (PromptArguments,), "section": "baseline"}  # what is read is the dialogue, without a prompt
    model_args, data_args, args = parse(classes, argv, CONFIGS / "kobart.yaml", **own)
    check_profiles("--rouge_profile", args.rouge_profile)
    name = (model_args.model_name_or_path, model_args.model_revision)
    pretrained.check_architecture(*name, encoder_decoder=True)
    model_args = whole_weights(model_args)
    pretrained.check_length(args.max_length, *name)
    context, model_type = pretrained.context_tokens(*name), pretrained.config_of(*name).model_type
    if context and args.max_new_tokens > context:
        raise InputError(f"--max_new_tokens {args.max_new_tokens}: expected at most {context}, the decoder's context.")
    outputs.make_folder(Path(args.output_dir))

    (train, held_out), rejected = splits.load_train_and_eval(data_args)
    splits.tell_of_references(train)
    language = dialogue.language(train[0].dialogue)
    tokenizer = pretrained.load_tokenizer(*name)
    tokenizer = set_up_tokenizer(tokenizer, model_type, language, args.special_tokens)
    fit = {"form": dialogue.BARE, "tokenizer": tokenizer, "max_tokens": args.max_length, "reserved_tokens": 0}
    prefixed = [[replace(r, dialogue=args.source_prefix + r.dialogue) for r in split] for split in (train, held_out)]
    train, shortened = dialogue.fit_records(prefixed[0], bad_rows=data_args.bad_rows, **fit)
    held_out, more = dialogue.fit_records(prefixed[1], bad_rows=data_args.bad_rows, **fit)
    examples, held_out_examples = (encode_examples(split, tokenizer, context) for split in (train, held_out))
    run.say(f"{len(train)} dialogues to train on, {len(held_out)} held out, of {data_args.dataset_path}.")
    tell_of_longer(examples, args.max_new_tokens)

    settings = run.settings_of(model_args, args)
    facts = {
        "prompt_form": dialogue.BARE,
        "language": language,
        "data": {"train": data.stamp(train), "held_out": data.stamp(held_out)},
    }
    output, resume = Path(args.output_dir), (args.overwrite_output_dir, args.resume_from_checkpoint)
    outputs.claim_folder(output)
    current = run.Run.start("Baseline", output, settings, facts, *resume)
    if current.finished:
        return
    data.write_rejected(rejected, output / "rejected.jsonl")
    dialogue.write_shortened(shortened + more, output / "shortened.json")

    model = models.load_for_training(model_args)
    set_up_model(model, tokenizer, args)
    sample = held_out[: args.rouge_eval_rows]
    summaries = HeldOut(
        prompts=[example["input_ids"] for example in held_out_examples[: args.rouge_eval_rows]],
        references=[list(record.references) for record in sample],
        score=lambda texts, references: rouge(texts, references, args.rouge_profile).mean,
        end_token_id=tokenizer.eos_token_id,
        max_new_tokens=args.max_new_tokens,
    )
    trainer = make_trainer(model, tokenizer, args, examples, held_out_examples, summaries)
    current.train(trainer)
    current.finish()


if __name__ == "__main__":
    launch(main)
