"""What a reward model prefers on dialogues with references: the reference, or a summary whose fault is known.

    python benchmarks/reward.py --reward_model runs/mine/reward/model --dataset_path dev.csv
    python benchmarks/reward.py --reward_model runs/mine/reward/model --dataset_path dev.csv --json

For each kind of fault it prints the share of dialogues whose reference scores higher, of those where the fault can be
made, and then the correlation of score and length over references. `base` is what the reward model's base writes
untuned; `--base_predictions` takes it from a file (fname,summary) that recipes/evaluate.py has written. `full_stop` and
`copied_turns` are what a policy may come to that pleases the score: nothing, and all turns of each speaker behind its
tag. Reward models are not trained on these two.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

GOALS = {
    "speaker_swap": 0.80, "number_change": 0.80, "cut": 0.85, "repetition": 0.95, "copy": 0.95, "other_dialogue": 0.97,
    "base": 0.90, "full_stop": 0.95, "copied_turns": 0.95,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward_model", required=True, help="the model folder that recipes/reward.py has written")
    parser.add_argument("--dataset_path", required=True, help="dialogues with references, not trained on")
    parser.add_argument("--base_predictions", help="what the untuned base writes for them; by default it is asked")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()

    from alignment import data, models, pretrained, run
    from alignment.arguments import ModelArguments, PromptArguments
    from alignment.speakers import turns_of
    from alignment.summarizer import Summarizer
    from reward.candidates import Candidate, corruptions
    from reward.model import RewardModel
    from reward.report import correlation

    model = RewardModel.load(options.reward_model)
    records, _ = data.load_records(options.dataset_path, split="eval", need_references=True)
    dialogues = {record.id: record.dialogue for record in records}
    if options.base_predictions:
        written = data.read_predictions(options.base_predictions)
        texts = data.match_predictions(written, records, options.base_predictions)
    else:
        folder = Path(options.reward_model)  # the base is asked as it was trained on: in that type and prompt
        model_args = models.as_trained(ModelArguments(), (run.read_manifest(folder) or {}).get("settings", {}))
        base = str(pretrained.base_of(folder))
        summarizer = Summarizer.load(base, model_args, PromptArguments(prompt_form=model.form))
        texts = summarizer.summarize(list(dialogues.values()), description="Summarising with the base")
        del summarizer
    faulty = corruptions(records)
    faulty += [Candidate(record.id, "base", text) for record, text in zip(records, texts, strict=True)]
    faulty += [Candidate(record.id, "full_stop", ".") for record in records]
    for record in records:
        turns = [f"{tag}: {' '.join(own)}" for tag, own in turns_of(record.dialogue).items()]
        faulty += [Candidate(record.id, "copied_turns", " ".join(turns))] if turns else []

    references = [(record.id, record.references[0]) for record in records]
    everything = references + [(candidate.id, candidate.text) for candidate in faulty]
    values = model.score(
        [dialogues[name] for name, _ in everything], [text for _, text in everything], description="Scoring"
    )
    of_reference = dict(zip((name for name, _ in references), values, strict=False))
    figures: dict[str, float | int | None] = {}
    for kind in GOALS:
        won = [
            of_reference[candidate.id] > value
            for candidate, value in zip(faulty, values[len(references) :], strict=True)
            if candidate.kind == kind
        ]
        figures |= {kind: round(sum(won) / len(won), 4) if won else None, f"{kind}_dialogues": len(won)}
    lengths = [(of_reference[name], len(text)) for name, text in references]
    figures["length_correlation"] = correlation(lengths)

    if options.json:
        print(json.dumps(figures))
        return
    for kind, goal in GOALS.items():
        share = figures[kind]
        shown = "none" if share is None else f"{share:.3f} (goal {goal:.2f}, {figures[f'{kind}_dialogues']} dialogues)"
        print(f"reference above {kind:16} {shown}")
    print(f"correlation with length          {figures['length_correlation']} (goal: below 0.2 in size)")


if __name__ == "__main__":
    from alignment.launch import launch

    launch(main)
