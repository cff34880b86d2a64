"""What PPO is paid for: the reward model, ROUGE, quality, or a function of one's own, each under its name.

A scorer is called by keyword, as the reward functions of TRL's GRPO are: with `prompts` and `completions` (texts), and
`id`, `dialogue`, `references` (a list of texts each) and `topic` of the dialogue that each completion is for. It
returns a number for each completion.
"""

import hashlib
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from alignment import pretrained
from alignment.errors import InputError
from alignment.ppo.rollout import Scorer
from alignment.records import Record
from reward.candidates import Candidate
from reward.labels import LabelArguments, label_candidates
from reward.model import RewardModel, network_of
from reward.rouge import rouge, usual_profiles


def sources_of(names: list[str]) -> dict[str, str]:
    """The SHA-256 of the module that each function of one's own is named in; what is built in has none.

    Raises:
        InputError: A name that is none of ours, nor a function that can be imported.
    """
    found = {}
    for name in names:
        if name in SCORERS:
            continue
        _imported(name)
        path = Path(getattr(sys.modules[name.partition(":")[0]], "__file__", None) or "")
        if path.suffix == ".py" and path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def load_scorers(
    names: list[str], label_args: LabelArguments, load_reward_model: Callable[[], RewardModel]
) -> dict[str, Scorer]:
    """The scorers of these names; the reward model is loaded if it is among them.

    Raises:
        InputError: A name that is none of ours, nor a function that can be imported.
    """
    return {
        name: SCORERS[name](label_args, load_reward_model) if name in SCORERS else _imported(name) for name in names
    }


def of_reward_model(model: RewardModel) -> Scorer:
    """The scores of a reward model: 0 is a mean reference summary, 1 a standard deviation better."""
    return lambda completions, dialogue, **_: model.score(dialogue, completions)


def of_rouge(args: LabelArguments) -> Scorer:
    """ROUGE against the references (mean of three, 0 to 1), in the label's profile or that of a dialogue's language."""

    def score(completions: list[str], dialogue: list[str], references: list[list[str]], **_: Any) -> list[float]:
        profiles = [args.label_profile or usual_profiles([one])[-1] for one in dialogue]
        triples = zip(completions, references, profiles, strict=True)
        return [rouge([completion], [own], profile).mean / 100 for completion, own, profile in triples]

    return score


def of_quality(args: LabelArguments) -> Scorer:
    """The label without ROUGE: who does what, endings, own words, less a penalty for each gate that is failed."""
    args = replace(args, rouge_weight=0.0)

    def score(
        completions: list[str], id: list[str], dialogue: list[str], references: list[list[str]], **_: Any
    ) -> list[float]:
        records = [
            Record(f"{i} {one}", text, tuple(own))
            for i, (one, text, own) in enumerate(zip(id, dialogue, references, strict=True))
        ]
        candidates = [Candidate(record.id, "sample", text) for record, text in zip(records, completions, strict=True)]
        return [label.label for label in label_candidates(candidates, records, args, {})]

    return score


SCORERS: dict[str, Callable[[LabelArguments, Callable[[], RewardModel]], Scorer]] = {
    "reward_model": lambda _, load_reward_model: of_reward_model(load_reward_model()),
    "rouge": lambda label_args, _: of_rouge(label_args),
    "quality": lambda label_args, _: of_quality(label_args),
}


def _imported(name: str) -> Scorer:
    module, _, function = name.partition(":")
    if not function:
        raise InputError(f"--scorers {name}: expected {', '.join(SCORERS)}, or module:function.")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # those of `./my.py:f` and `:f`
        raise InputError(f"--scorers {name}: {error}. Expected a module that Python finds from here.") from error
    except Exception as error:  # of the module itself, whatever it does
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, SyntaxError) else f" ({where.filename}:{where.lineno})"  # which tells its own
        raise InputError(f"--scorers {name}: {type(error).__name__}: {error}{place}. Correct it there.") from error
    if not callable(found):
        raise InputError(f"--scorers {name}: is {found!r:.80}. Expected a function.")
    return found


def check_reward_model(folder: Path, base: str, allow_unfit: bool, separate: bool) -> Path:
    """The model inside what recipes/reward.py left, if PPO may be paid by it.

    Raises:
        InputError: There is none, it is for another base, or its report calls it unfit, or is missing.
    """
    model = network_of(folder, cure="; or leave reward_model out of --scorers")
    made_for = pretrained.base_of(model)
    if made_for != pretrained.canonical(base) and not separate:
        raise InputError(
            f"--reward_model {folder}: it is for {made_for}, not for {base}. Train one on {base}, or load both bases: "
            "--separate_reward_model true."
        )
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = {}
    if not report.get("fit") and not allow_unfit:
        why = f"accuracy {report['accuracy']:.3f}, below {report['min_accuracy']}" if report else "no report.json"
        raise InputError(
            f"--reward_model {folder}: not fit for PPO ({why}), which would learn its faults. Train it on more, run "
            "recipes/reward.py to its report, or go on all the same with --allow_unfit true."
        )
    return model
