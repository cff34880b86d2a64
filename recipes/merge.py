"""Merges an adapter into its base, in 16 bit, as a whole model that needs no PEFT; and says what that changes.

    python recipes/merge.py --model runs/ppo/phase3 --output_dir runs/merged

A base in 4 bit is not merged into: rounding would take the adapter off again. Its 16-bit weights are, and so the merged
model differs a little from what was trained; the figures printed say how much.
"""

import gc
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import PartialState
from peft import PeftModel

from alignment import dialogue, models, outputs, pretrained, run, splits
from alignment.arguments import DataArguments, ModelArguments, PromptArguments, SFTArguments
from alignment.errors import InputError
from alignment.head import supervised_log_probs
from alignment.launch import launch
from alignment.parser import parse

DIALOGUES = 8


@dataclass
class MergeArguments:
    """What to merge, and where it goes."""

    model: str = field(default="runs/ppo/phase3", metadata={"help": "The folder of a trained adapter."})
    output_dir: str = field(default="runs/merged", metadata={"help": "Where the whole model is written."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete what is there."})


def main(argv: list[str] | None = None) -> None:
    classes = (MergeArguments, ModelArguments, DataArguments)
    args, model_args, data_args = parse(classes, argv, passed_over=(SFTArguments, PromptArguments))
    output = Path(args.output_dir)
    base = pretrained.base_of(args.model)
    models.check_adapter(args.model, base or model_args.model_name_or_path, "--model")
    if any(Path(name).resolve().is_relative_to(output.resolve()) for name in (args.model, str(base))):
        raise InputError(f"--output_dir {output}: has the adapter or its base in it. Choose another folder.")
    earlier = args.overwrite_output_dir and "merged_from" in (run.read_manifest(output) or {})
    if output.exists() and any(output.iterdir()) and not earlier:
        raise InputError(
            f"--output_dir {output}: exists. Choose another, or replace a merge: --overwrite_output_dir true."
        )
    outputs.claim_folder(output)
    (_, records), _ = splits.load_train_and_eval(data_args)
    manifest = run.read_manifest(args.model) or {"finished": True, "settings": {}}
    form, phase = manifest.get("prompt_form", "instruction"), manifest.get("phase", 1)
    tokenizer = pretrained.load_tokenizer(args.model)
    examples = [
        dialogue.encode_example(record, dialogue.instructions_for(record, phase)[0], form, tokenizer)
        for record in records[:DIALOGUES]
    ]

    model_args = models.as_trained(replace(model_args, model_name_or_path=str(base)), manifest["settings"])
    before = log_probs(models.add_adapter(models.load_base(model_args), args.model), examples)
    model_args.load_in_4bit = model_args.load_in_8bit = False
    whole = models.load_base(model_args)
    if models.is_quantised(whole):
        raise InputError(
            f"{base}: its weights are stored quantised, and an adapter merged into them would be rounded off."
        )
    merged = models.add_adapter(whole, args.model).merge_and_unload()
    difference = (log_probs(merged, examples) - before).abs()
    dtype = str(merged.dtype).removeprefix("torch.")
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    merged.save_pretrained(str(partial))
    tokenizer.save_pretrained(str(partial))
    quantisation = dict.fromkeys(("load_in_4bit", "load_in_8bit"), False)
    settings = manifest["settings"] | quantisation | {"dtype": dtype}
    run.write_json(manifest | {"merged_from": args.model, "settings": settings}, partial / run.MANIFEST)
    earlier_merge = output.with_name(f"{output.name}.replaced")
    shutil.rmtree(earlier_merge, ignore_errors=True)
    output.rename(earlier_merge)
    partial.rename(output)
    shutil.rmtree(earlier_merge)
    run.say(
        f"{output}: {args.model} in {dtype}. Log-probability of a reference's token, over {len(difference)} "
        f"tokens: largest difference {difference.max():.4f}, mean {difference.mean():.4f} nats."
    )


def log_probs(model: PeftModel, examples: list[dict[str, list[int]]]) -> torch.Tensor:
    """The log-probability of each token of the references, end tokens included."""
    model.eval()
    if PartialState().device.type == "cuda" and not models.is_quantised(model):
        gc.collect()
        torch.cuda.empty_cache()  # of the model before, so that both are on the same device
        free, _ = torch.cuda.mem_get_info()
        model.to("cuda" if model.get_memory_footprint() < 0.9 * free else "cpu")
    return torch.cat([supervised_log_probs(model, example) for example in examples])


if __name__ == "__main__":
    launch(main)
