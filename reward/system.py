"""A system: models, how they decide together, decoding and post-processing; all that decides what a summary says.

| `--combine`     | what is done                                                      | cost                      |
|-----------------|-------------------------------------------------------------------|---------------------------|
| `mbr`           | of all candidates the one that is closest to the others, by ROUGE | one run each              |
| `best_of_n`     | of all candidates the one that the reward model likes best        | one run each, and scoring |
| `lora_average`  | one adapter: the weighted mean of several                         | as one model              |
| `distributions` | at each token the weighted mean of the models' distributions      | all models at once        |

Candidates are what each model writes by itself, and `--samples` samples of each.
"""

import gc
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from alignment import models, outputs, pretrained, run
from alignment.arguments import ModelArguments, PromptArguments
from alignment.errors import InputError
from alignment.generation import Decoding
from alignment.progress import reset_peak_memory
from alignment.summarizer import Summarizer
from alignment.weights import size_of, weights_of
from reward.consensus import best_of, consensus
from reward.model import RewardModel, network_of
from reward.postprocess import check_rules
from reward.rouge import check_profiles

COMBINE = ("mbr", "best_of_n", "lora_average", "distributions")
CHOOSING = ("mbr", "best_of_n")  # which write candidates
FILE = "system.json"


@dataclass
class SystemArguments:
    """How models and candidates become one summary."""

    combine: str | None = field(
        default=None, metadata={"help": f"The models named by --model as one system: {', '.join(COMBINE)}."}
    )
    weights: list[float] | None = field(
        default=None, metadata={"help": "Of lora_average and distributions: one number a model; by default equal."}
    )
    samples: int = field(
        default=0, metadata={"help": "Of mbr and best_of_n: samples of each model, beside what it writes by itself."}
    )
    sample_temperature: float = field(default=0.7, metadata={"help": "Temperature of those samples."})
    mbr_profile: str | None = field(
        default=None, metadata={"help": "Of mbr: the ROUGE profile that says how close; by default strict or english."}
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "Of best_of_n: the output folder of recipes/reward.py."}
    )
    postprocess: list[str] = field(
        default_factory=list,
        metadata={"help": "Rules that mend the form of summaries: all, none, or names; by default none."},
    )

    def __post_init__(self) -> None:
        if self.combine is not None and self.combine not in COMBINE:
            raise InputError(f"--combine {self.combine}: expected one of {', '.join(COMBINE)}.")
        if self.samples < 0 or not 0 < self.sample_temperature <= 5:
            raise InputError(
                f"--samples {self.samples}, --sample_temperature {self.sample_temperature}: expected 0 or more, and a "
                "number above 0, such as 0.7."
            )
        check_profiles("--mbr_profile", self.mbr_profile)
        if self.samples and self.combine not in CHOOSING:
            raise InputError("--samples: has no effect without --combine mbr or --combine best_of_n.")
        if self.sample_temperature != SystemArguments.sample_temperature and not self.samples:
            raise InputError("--sample_temperature: has no effect without --samples.")
        if self.mbr_profile and self.combine != "mbr":
            raise InputError("--mbr_profile: has no effect without --combine mbr.")
        if self.weights and self.combine not in ("lora_average", "distributions"):
            raise InputError("--weights: has no effect without --combine lora_average or --combine distributions.")
        if (self.combine == "best_of_n") != (self.reward_model is not None):
            raise InputError("--combine best_of_n and --reward_model FOLDER: give both or neither.")
        self.postprocess = check_rules(self.postprocess)


class OneAtATime:
    """Keeps what was loaded last: systems that differ in decoding share a model; it goes before the next one comes."""

    def __init__(self) -> None:
        self._key, self._value = "", None
        self.seconds = 0.0  # that loading has taken

    def free_unless(self, key: str) -> None:
        """Lets go of what was loaded last, unless it has this key."""
        if key != self._key:
            self._key, self._value = "", None
            gc.collect()  # 4-bit layers and their weights refer to each other

    def __call__(self, key: str, load: Callable[[], Any]) -> Any:
        """What `load` returns, or returned when it was last called with this key."""
        self.free_unless(key)  # before the next one's memory is taken
        if key != self._key:
            started = time.monotonic()
            self._value = load()
            self.seconds += time.monotonic() - started
            self._key = key
        return self._value


@dataclass(frozen=True)
class System:
    """Summarises dialogues with one model or several.

    Example: `System.load("runs/mine/report/best").summarize(["#Person1#: 내일 3시에 볼까?\\n#Person2#: 좋아."])`
    """

    models: tuple[str, ...]
    how: SystemArguments = field(default_factory=SystemArguments)
    decoding: Decoding = field(default_factory=Decoding)
    model_args: ModelArguments = field(default_factory=ModelArguments)
    prompt_args: PromptArguments = field(default_factory=PromptArguments)

    def __post_init__(self) -> None:
        combine, several = self.how.combine, len(self.models) > 1
        if combine is None and several:
            raise InputError(f"{len(self.models)} models and no --combine: expected one of {', '.join(COMBINE)}.")
        if not self.models:
            raise InputError("a system without models: expected one or more.")
        candidates, needed = len(self.models) * (1 + self.how.samples), 3 if combine == "mbr" else 2
        if combine in CHOOSING and candidates < needed:
            why = ": two are as close to each other as the other way round" if combine == "mbr" else ""
            raise InputError(
                f"--combine {combine}: candidates: {candidates}, and {needed} are needed to choose from{why}. "
                "Name more models, or ask for samples: --samples 16."
            )
        if self.how.samples and self.decoding.do_sample:
            raise InputError("--samples and --do_sample: the samples come beside what is not sampled; leave one out.")
        idle = self.decoding.temperature != 1 or (self.decoding.top_p != 1 and not self.how.samples)
        if idle and not self.decoding.do_sample:
            raise InputError(
                "--temperature, --top_p: no effect without --do_sample true. The samples of mbr and best_of_n have "
                "--sample_temperature, and --top_p."
            )
        if combine in ("lora_average", "distributions") and not several:
            raise InputError(f"--combine {combine}: expected two models or more after --model.")
        if self.how.reward_model:
            network_of(self.how.reward_model)

    # --- in use -------------------------------------------------------------------------------------------------------

    def summarize(
        self,
        dialogues: list[str],
        description: str | None = None,
        journals: ExitStack | None = None,
        path: Path = Path(),
        loaded: OneAtATime | None = None,
    ) -> tuple[list[str], float]:
        """One summary for each dialogue, in order, and the seconds that a killed run had spent on them before.

        Args:
            description: Shown with a progress bar, or None for none.
            journals: Keeps texts beside `path` until it is closed; a killed run makes only what is missing.
            loaded: Shares models with systems that are used before and after.
        """
        loaded, seconds = loaded or OneAtATime(), 0.0
        candidates: list[list[str]] = []
        ways = self._candidates()
        loaded.free_unless(ways[0][0])
        reset_peak_memory()
        for number, (key, load, decoding, count) in enumerate(ways):
            summarizer, others = loaded(key, load)
            weights = self.how.weights if others else None
            repeated, journal = dialogues * count, None  # samples of a dialogue together read it once
            if journals is not None:
                own_path = path.with_name(f"{path.name}.part{number}") if self.how.combine in CHOOSING else path
                journal = journals.enter_context(summarizer.journal(own_path, repeated, decoding, others, weights))
                seconds += journal.seconds_before
            texts = summarizer.summarize(repeated, decoding, description, journal, others, weights)
            candidates += [texts[i * len(dialogues) : (i + 1) * len(dialogues)] for i in range(count)]
            del summarizer, others  # or they would be there still when the next ones are loaded
        return self._choose(dialogues, candidates, loaded, description), seconds

    def _candidates(self) -> list[tuple[str, Callable[[], Any], Decoding, int]]:
        """A key and a function that load (summarizer, others), a decoding, and how often it writes each dialogue."""
        names, args = self.models, (self.model_args, self.prompt_args)

        def average() -> tuple[Summarizer, list[Summarizer]]:
            return Summarizer.load_average([*names], self.how.weights, *args), []

        def together() -> tuple[Summarizer, list[Summarizer]]:
            first, *others = (Summarizer.load(name, *args) for name in names)
            return first, others

        def alone(name: str) -> tuple[Summarizer, list[Summarizer]]:
            return Summarizer.load(name, *args), []

        if self.how.combine == "lora_average":
            return [(f"average {names} {self.how.weights} {args}", average, self.decoding, 1)]
        if self.how.combine == "distributions":
            return [(f"together {names} {args}", together, self.decoding, 1)]
        plain = replace(self.decoding, num_beams=1, length_penalty=None)
        sample = replace(plain, do_sample=True, temperature=self.how.sample_temperature)
        ways = [(self.decoding, 1)] + [(sample, self.how.samples)] * bool(self.how.samples)
        return [(f"{name} {args}", partial(alone, name), *way) for name in names for way in ways]

    def _choose(
        self, dialogues: list[str], candidates: list[list[str]], loaded: OneAtATime, description: str | None
    ) -> list[str]:
        if self.how.combine not in CHOOSING:
            return candidates[0]
        by_dialogue = [list(texts) for texts in zip(*candidates, strict=True)]
        if self.how.combine == "mbr":
            return consensus(by_dialogue, self.how.mbr_profile, description and "Comparing candidates")
        folder = str(network_of(str(self.how.reward_model)))
        scorer = loaded(f"reward {folder}", lambda: RewardModel.load(folder))
        how = {"batch_size": min(self.decoding.batch_size or 8, 8), "description": description and "Scoring candidates"}
        return best_of(by_dialogue, dialogues, partial(scorer.score, **how))

    # --- what it is ---------------------------------------------------------------------------------------------------

    def size(self) -> dict[str, int]:
        """`parameters` (each base counted once), `trained_parameters`, and `disk_bytes` of the folders named."""
        trained, disk = 0, 0
        bases: dict[str, int] = {}
        judge = [str(network_of(self.how.reward_model))] if self.how.reward_model else []
        for name in (*self.models, *judge):
            folder = pretrained.resolve(name)
            own, base = size_of(folder, self.model_args.model_revision), pretrained.base_of(folder)
            # A baseline has a manifest, a merged model too.
            manifest = run.read_manifest(folder) or {"merged_from": "", "settings": {}}
            if base is not None:
                trained_on = manifest["settings"].get("model_revision", "main")
                bases[base] = size_of(pretrained.resolve(base), trained_on)["numbers"]
            bases[pretrained.canonical(name) if base is None else f"adapter {name}"] = own["numbers"]
            trained += own["numbers"] if base is not None or "merged_from" not in manifest else 0
            disk += own["bytes"]
        return {"parameters": sum(bases.values()), "trained_parameters": trained, "disk_bytes": disk}

    def describe(self) -> dict[str, Any]:
        """Everything that decides what it writes, as plain values."""
        given = {name: getattr(self.model_args, name) for name in MODEL_SETTINGS}
        folders, judge = [*map(_absolute, self.models)], self.how.reward_model and _absolute(self.how.reward_model)
        weighed = [*map(Path, folders), *([network_of(judge)] if judge else [])]
        return {
            **asdict(self.how),
            "models": folders,
            "reward_model": judge,
            "weights_of": {str(folder): weights_of(folder) for folder in weighed},
            "decoding": asdict(self.decoding),
            **asdict(self.prompt_args),
            "loaded_as": {name: value for name, value in given.items() if value is not None},
        }

    @classmethod
    def described(cls, description: dict[str, Any]) -> "System":
        """The system that `describe` described.

        Raises:
            InputError: Something is missing in the description.
        """

        def part(kind: Any, values: dict[str, Any]) -> Any:
            return kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})

        try:
            return cls(
                tuple(description["models"]),
                part(SystemArguments, description),
                Decoding(**description["decoding"]),
                ModelArguments(**description["loaded_as"]),
                part(PromptArguments, description),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"a description of a system that is not whole ({error!r}).") from error

    def save(self, folder: Path) -> None:
        """Writes the system into a folder, with copies of its own weights: it works wherever the folder goes.

        Bases of adapters, Hub models and the embedded model are not copied, but named. An earlier system in the folder
        is replaced at the end, for it may be what is copied.
        """
        description = self.describe()
        partial_folder, replaced = (folder.with_name(f"{folder.name}.{state}") for state in ("partial", "replaced"))
        if folder.exists() and not (folder / FILE).is_file():
            raise InputError(
                f"{folder}: no saved system, so it is not replaced. Move it, or choose another --output_dir."
            )
        if replaced.exists() and not folder.exists():  # killed between two renames
            replaced.rename(folder)
        for left in (partial_folder, replaced):
            shutil.rmtree(left, ignore_errors=True)
        outputs.make_folder(partial_folder)
        description["models"] = [
            _copied(name, partial_folder, f"{i}-{Path(name).name}") for i, name in enumerate(description["models"], 1)
        ]
        if self.how.reward_model:
            description["reward_model"] = _copied(description["reward_model"], partial_folder, "reward")
        del description["weights_of"]
        run.write_json(description, partial_folder / FILE)
        if folder.exists():
            folder.rename(replaced)
        partial_folder.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)

    @classmethod
    def load(
        cls,
        name_or_path: str,
        how: SystemArguments | None = None,
        decoding: Decoding | None = None,
        model_args: ModelArguments | None = None,
        prompt_args: PromptArguments | None = None,
    ) -> "System":
        """The system that `save` wrote into a folder; or else one model, with what the arguments say.

        Raises:
            InputError: Its file is damaged, or the arguments ask for what a saved system has decided.
        """
        how, decoding = how or SystemArguments(), decoding or Decoding()
        file = Path(name_or_path) / FILE
        if not file.is_file():
            own = (model_args or ModelArguments(), prompt_args or PromptArguments())
            return cls((name_or_path,), how, decoding, *own)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            here = lambda name: str(file.parent / name) if (file.parent / name).exists() else name  # noqa: E731
            content["models"] = [here(name) for name in content["models"]]
            if content["reward_model"]:
                content["reward_model"] = here(content["reward_model"])
            system = cls.described(content)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not a whole system ({error!r}). Choose it anew with --select.") from error
        free = replace(decoding, batch_size=Decoding.batch_size)
        given = any(getattr(model_args or NO_MODEL, name) != getattr(NO_MODEL, name) for name in MODEL_SETTINGS)
        prompts = (prompt_args or PromptArguments()) != PromptArguments()
        if how != SystemArguments() or free != Decoding() or given or prompts:
            raise InputError(
                f"--model {name_or_path}: a chosen system, with decoding, prompt and post-processing of its own. Leave "
                f"those options out, or change {file}."
            )
        if decoding.batch_size != Decoding.batch_size:
            system = replace(system, decoding=replace(system.decoding, batch_size=decoding.batch_size))
        return system


MODEL_SETTINGS = (*models.QUANTISATION, "dtype", "attn_implementation", "model_revision")
NO_MODEL = ModelArguments()


def _absolute(name: str) -> str:
    """A folder by its whole path, which holds wherever a program is started; a Hub name as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _copied(name: str, folder: Path, new_name: str) -> str:
    """A local folder's name within `folder`, after copying its weights there; a Hub name as it is."""
    if not Path(name).is_dir():
        return name
    left_out = shutil.ignore_patterns("checkpoint-*", "data", "*.pt", "*.pth", "*.partial")
    shutil.copytree(name, folder / new_name, ignore=left_out)
    if (manifest := run.read_manifest(name)) is not None:  # which for a checkpoint lies beside it
        run.write_json(manifest, folder / new_name / run.MANIFEST)
    return new_name
