"""Phase 3: PPO from the model that phase 2 left, paid by the reward model, on one base.

    accelerate launch recipes/ppo.py
    accelerate launch recipes/ppo.py --sft_model runs/my/phase2 --reward_model runs/my/reward --dataset_path train.csv
    accelerate launch recipes/ppo.py --scorers reward_model rouge my_module:my_function --scorer_weights 1 0.5 0.1

Results: OUTPUT_DIR/phase3 (an adapter as every other), and of the held-out dialogues results.json and report.html:
phase 2 against phase 3 with intervals, the curves, and summaries before and after.
"""

import sys
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from datasets import Dataset

from alignment import data, dialogue, models, outputs, pretrained, run, splits
from alignment.arguments import DataArguments, ModelArguments, PromptArguments
from alignment.errors import InputError
from alignment.launch import launch
from alignment.parser import CONFIGS, parse
from alignment.ppo import PPOTrainer, Roles
from alignment.ppo.config import PPOArguments
from alignment.progress import reset_peak_memory
from alignment.weights import weights_of
from reward.comparison import compare, held_out_figures, write_comparison
from reward.labels import LabelArguments
from reward.model import RewardModel, start_of
from reward.rouge import check_profiles, usual_profiles
from reward.scorers import check_reward_model, load_scorers, sources_of


def main(argv: list[str] | None = None) -> None:
    classes = (ModelArguments, DataArguments, LabelArguments, PPOArguments)
    own = {"passed_over": (PromptArguments,), "section": "ppo"}  # the prompts are those of the model it starts from
    model_args, data_args, label_args, args = parse(classes, argv, CONFIGS / "embedded.yaml", **own)
    models.check_adapter(args.sft_model, model_args.model_name_or_path, "--sft_model")
    own_scorers = sources_of(args.scorers)
    rewarding = None
    if "reward_model" in args.scorers:
        folder = Path(args.reward_model)
        base = model_args.model_name_or_path
        rewarding = check_reward_model(folder, base, args.allow_unfit, args.separate_reward_model)
    elif args.allow_unfit or args.separate_reward_model:
        raise InputError("--allow_unfit, --separate_reward_model: have no effect without reward_model among --scorers.")
    form, phase, trained = run.trained_with(args.sft_model)
    model_args = models.as_trained(model_args, trained)
    args.max_new_tokens = args.max_new_tokens or trained.get("max_new_tokens") or 128
    models.check_trainable(model_args)
    pretrained.check_length(args.max_length, model_args.model_name_or_path, model_args.model_revision)
    output = Path(args.output_dir)
    outputs.claim_folder(output)

    tokenizer = pretrained.load_tokenizer(args.sft_model)
    (train, held_out), rejected = splits.load_train_and_eval(data_args)
    args.metric_profile = args.metric_profile or usual_profiles([record.dialogue for record in held_out])[0]
    check_profiles("--metric_profile", args.metric_profile)
    fit = partial(
        dialogue.fit_records, form=form, tokenizer=tokenizer, max_tokens=args.max_length,
        reserved_tokens=args.max_new_tokens, bad_rows=data_args.bad_rows,
    )  # fmt: skip
    (train, shortened), (held_out, more) = fit(train), fit(held_out)
    run.say(f"{len(train)} dialogues to train on, {len(held_out)} held out, of {data_args.dataset_path}.")

    settings = run.settings_of(model_args, label_args, args)
    facts = {
        "phase": phase,  # its prompts are those of the model that it comes from
        "prompt_form": form,
        "data": {"train": data.stamp(train), "held_out": data.stamp(held_out)},
        "starts_from": [weights_of(one) for one in (args.sft_model, rewarding) if one],
        "scorers": own_scorers,
    }
    if not any(output.glob("phase3*")):  # else they are of that run
        outputs.refuse_existing([output / "results.json", output / "report.html"], args.overwrite_output_dir)
    resume = (args.overwrite_output_dir, args.resume_from_checkpoint)
    current = run.Run.start("Phase 3", output / "phase3", settings, facts, *resume)
    if current.finished:
        return
    data.write_rejected(rejected, output / "rejected.jsonl")
    dialogue.write_shortened(shortened + more, output / "shortened.json")

    reset_peak_memory()
    on_base = rewarding if rewarding and not args.separate_reward_model else None
    base = models.add_adapter(models.load_base(model_args), args.sft_model, trainable=True)
    roles = Roles(base, start_of(on_base) if on_base else None)
    in_role = partial(RewardModel.in_role, roles) if on_base else RewardModel.load
    prompts = [
        Dataset.from_list([
            {
                "id": record.id, "dialogue": record.dialogue, "references": list(record.references),
                "topic": record.topic, "prompt": dialogue.prompt_for(record, phase, form, tokenizer),
            }
            for record in records
        ])
        for records in (train, held_out)
    ]  # fmt: skip
    args.output_dir = str(current.folder)
    trainer = PPOTrainer(
        model=roles,
        args=args,
        train_dataset=prompts[0],
        eval_dataset=prompts[1],
        scorer=load_scorers(args.scorers, label_args, lambda: in_role(rewarding)),
        scorer_weights=dict(zip(args.scorers, args.scorer_weights or [1.0] * len(args.scorers), strict=True)),
        metric=partial(held_out_figures, args.metric_profile),
        processing_class=tokenizer,
        end_token_id=dialogue.end_token_id(form, tokenizer),
        add_special_tokens=form != "template",
    )
    current.train(trainer)
    before = "earlier phase 3" if "num_ppo_epochs" in trained else f"phase {phase}"
    answers = {before: trainer.first_answers(), "phase 3": trainer.answer()}
    log, chose = trainer.state.log_history, args.load_best_model_at_end
    figures = compare(held_out, answers, log, trainer.steps_per_update, args.metric_profile, chose=chose)
    write_comparison(figures, held_out, output)
    current.finish()


if __name__ == "__main__":
    launch(main, shards=False)
