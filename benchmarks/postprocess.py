"""What the rules of reward/postprocess.py do to generated summaries, and to references, which they should leave alone.

    python benchmarks/postprocess.py --dataset_path dev.csv --predictions kobart.csv phase2.csv \
      --references train.csv english.jsonl
    python benchmarks/postprocess.py --dataset_path dev.csv --predictions kobart.csv --references train.csv --json

For each file of predictions (fname,summary), profile and rule it gives how many rows change, and the difference of mean
ROUGE with its 95% interval; for each file of references and rule, how many change. Beside them stand `cut_ending` on
the predictions cut at 16 words, and three rules that were left out, on what the others leave: particles made to fit
their tags, sentences with a tag that the dialogue lacks dropped, and a cut last sentence dropped always.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

PROFILES = ("aistages", "strict")
CUT_WORDS = 16  # about half of the longer summaries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_path", required=True, help="the dialogues of the predictions, with references")
    parser.add_argument("--predictions", required=True, nargs="+", help="files of summaries of those dialogues")
    parser.add_argument("--references", required=True, nargs="+", help="more dialogues with references")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()

    from alignment import data
    from alignment.speakers import MASK, swap_speakers
    from reward import postprocess
    from reward.quality import is_cut, unseen_tags
    from reward.sentences import sentences

    def fitting_particles(dialogue: str, summary: str) -> str:
        for tag in set(MASK.findall(summary)):
            summary = swap_speakers(summary, tag, tag)
        return summary

    def unseen_tag_sentences(dialogue: str, summary: str) -> str:
        kept = [sentence for sentence in sentences(summary) if not unseen_tags(dialogue, sentence)]
        return "".join(kept).rstrip() or summary

    def cut_ending_anywhere(dialogue: str, summary: str) -> str:
        return "".join(sentences(summary)[:-1]).rstrip() or summary if is_cut(summary) else summary

    shipped = list(postprocess.RULES)
    left_out = [fitting_particles, unseen_tag_sentences, cut_ending_anywhere]
    postprocess.RULES.update({rule.__name__: rule for rule in left_out})

    records, _ = data.load_records(options.dataset_path, split="eval", need_references=True)
    dialogues = [record.dialogue for record in records]
    references = [list(record.references) for record in records]
    found = []
    for path in options.predictions:
        texts = data.match_predictions(data.read_predictions(path), records, path)
        for profile in PROFILES:
            measured = postprocess.effects(dialogues, texts, references, shipped, profile)
            mended = [postprocess.postprocess(*pair, shipped) for pair in zip(dialogues, texts, strict=True)]
            for rule in left_out:
                measured += postprocess.effects(dialogues, mended, references, [rule.__name__], profile)[:1]
            short = [" ".join(text.split()[:CUT_WORDS]) for text in mended]
            of_short = postprocess.effects(dialogues, short, references, ["cut_ending"], profile)[0]
            for entry in [*measured, of_short | {"rule": "cut_ending_of_cut"}]:
                figures = {name: round(value, 4) for name, value in entry.items() if not isinstance(value, str)}
                found.append({"predictions": Path(path).stem, "profile": profile, "rule": entry["rule"], **figures})

    alarms = []
    for path in [options.dataset_path, *options.references]:
        pairs = [(record.dialogue, text) for record in data.load_records(path)[0] for text in record.references]
        changed = {name: sum(rule(*pair) != pair[1] for pair in pairs) for name, rule in postprocess.RULES.items()}
        changed["all"] = sum(postprocess.postprocess(*pair, shipped) != pair[1] for pair in pairs)
        alarms.append({"references": Path(path).stem, "rows": len(pairs), "changed": changed})

    if options.json:
        print(json.dumps({"left_out": [rule.__name__ for rule in left_out], "effects": found, "references": alarms}))
        return
    for entry in found:
        print(
            f"{entry['predictions']:16} {entry['profile']:9} {entry['rule']:21} {entry['changed']:5} rows "
            f"{entry['difference']:+.3f} ({entry['low']:+.3f} to {entry['high']:+.3f}), p {entry['p']:.4f}"
        )
    for alarm in alarms:
        listed = ", ".join(f"{name} {count}" for name, count in alarm["changed"].items())
        print(f"references of {alarm['references']} ({alarm['rows']}): {listed}")


if __name__ == "__main__":
    from alignment.launch import launch

    launch(main)
