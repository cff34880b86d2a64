"""The command line and a YAML into the dataclasses of arguments.py: default < YAML < command line, and strict."""

import argparse
import difflib
import json
import re
import sys
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from trl import TrlParser

from alignment.arguments import OF_ADAPTER, WITHOUT_EFFECT, SFTArguments
from alignment.errors import InputError
from alignment.search_space import RANGES

CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"
OF_SFT = {"dataset_kwargs", "lora_task_type"}  # what recipes/sft.py does not read
OF_SHARDING = {"deepspeed", "fsdp", "fsdp_config"}
# The part of a YAML that is one recipe's own, and what that recipe knows by its classes but does not read.
SECTIONS: dict[str, set[str]] = {
    "reward": OF_ADAPTER | OF_SHARDING | {"label_smoothing_factor"},
    "ppo": OF_ADAPTER | OF_SHARDING | {
        "activation_checkpointing", "auto_find_batch_size", "bf16_full_eval", "data_seed", "dataloader_drop_last",
        "dataloader_num_workers", "eval_on_start", "include_num_input_tokens_seen",
        "label_smoothing_factor", "length_column_name", "max_length_ratio", "min_margin", "neftune_noise_alpha",
        "per_device_eval_batch_size", "prediction_loss_only", "ratings_weight", "train_sampling_strategy",
    },
    "search": OF_SFT | RANGES.keys() | {"metric_for_best_model", "phases"},
    "baseline": set(),
}  # fmt: skip
OF_USE = OF_ADAPTER | {"max_train_rows"}  # nor do those that use a model read these
# What other trainers and recipes call some settings.
ALIASES = {
    "lora_rank": "lora_r",
    "torch_dtype": "dtype",
    "template": "prompt_form",
    "model": "model_name_or_path",
    "generation_max_length": "max_new_tokens",
    "generation_num_beams": "num_beams",
}


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(problem=f"{name} comes twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Parser(TrlParser):
    """Knows what each name may be, and which names have no effect in this recipe (`unread`)."""

    def __init__(self, classes: tuple[Any, ...], unread: set[str]) -> None:
        super().__init__(classes, allow_abbrev=False)
        self.unread = unread
        self.hints = {name: hint for cls in classes for name, hint in get_type_hints(cls).items()}
        self.known = sorted({action.dest for action in self._actions if action.dest != "help"})
        self.lists = {action.dest for action in self._actions if action.nargs == "+"}
        for action in self._actions:
            if self.hints.get(action.dest) == bool | None and action.nargs is None:
                action.nargs, action.const = "?", True  # --flag alone means true, as for every other boolean
            if action.dest in unread | WITHOUT_EFFECT:
                action.help = argparse.SUPPRESS

    def error(self, message: str) -> NoReturn:
        # "argument --lora_r/--lora-r: invalid int value: '5.5'" -> "--lora_r '5.5': expected int."
        message = re.sub(r"^argument (--\w+)\S*:", r"\1:", message)
        message = re.sub(r": invalid (\w+) value: (.*)", r" \2: expected \1.", message)
        if found := re.fullmatch(r"(.*): invalid choice: (.*) \(choose from (.*)\)", message):
            choices = found[3].replace("'", "")  # which only some Pythons quote
            message = f"{found[1]} {found[2]}: expected one of {choices}."
        raise InputError(message)

    def check(self, key: str, value: Any, place: str) -> None:
        """Holds that a YAML's key is known, and its value not of a kind that the command line could not tell."""
        if key not in self.known:
            raise InputError(f"{place}: unknown key `{key}`.{self.nearest(str(key))}")
        kinds = get_args(self.hints[key]) or (self.hints[key],)
        if isinstance(value, bool) and str in kinds and bool not in kinds and key != "resume_from_checkpoint":
            raise InputError(f"{place}: {key}: YAML takes an unquoted yes or no for true or false. Write it in quotes.")
        if value is None and NoneType not in kinds:
            raise InputError(f"{place}: {key} has no value. Give one, or leave the line out for the default.")
        if isinstance(value, list) and key not in self.lists:
            raise InputError(f"{place}: {key} {value}: expected one value, found a list.")

    def nearest(self, key: str) -> str:
        """The nearest of the names that have an effect, as the end of a message."""
        helpful = [name for name in self.known if name not in self.unread | WITHOUT_EFFECT]
        if key in ALIASES:
            best = [name for name in helpful if name == ALIASES[key]]
        else:
            best = [name for name in helpful if name.startswith(key)]
            best = best or difflib.get_close_matches(key, helpful, n=1, cutoff=0.4)
        return f" Did you mean `{best[0]}`?" if best else " --help lists all."


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        shipped = ", ".join(sorted(p.name for p in CONFIGS.glob("*.yaml")))
        raise InputError(f"--config {path}: no such file. Shipped in {CONFIGS}: {shipped}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: no UTF-8, or a date that there is not
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{path}: expected lines of `key: value`, found {found}.")
    return content


def _fields(cls: Any) -> set[str]:
    return set(cls.__dataclass_fields__)


def _as_argv(key: str, value: Any) -> list[str]:
    """A YAML value as it would stand on the command line, so that both are checked by the same rules."""
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _without_config(argv: list[str], default: Path | None) -> tuple[list[str], Path | None]:
    """The command line without `--config FILE`, and that file, or the default where a model is not named either."""
    for word in argv:
        if word.startswith("--config="):
            raise InputError(f"{word}: write `--config {word.removeprefix('--config=')}`, with a space.")
    if "--config" not in argv:
        names_model = any(re.match("--model[_-]name[_-]or[_-]path(=|$)", word) for word in argv)
        return argv, None if names_model else default
    index = argv.index("--config")
    rest = argv[:index] + argv[index + 2 :]
    if index + 1 == len(argv) or argv[index + 1].startswith("--"):
        raise InputError("--config: expected the path of a YAML file after it.")
    if "--config" in rest:
        raise InputError("--config: given twice; expected one YAML file. Put what differs on the command line.")
    return rest, Path(argv[index + 1])


def parse(
    classes: tuple[Any, ...],
    argv: list[str] | None = None,
    default_config: Path | None = None,
    passed_over: tuple[Any, ...] = (),
    section: str | None = None,
) -> tuple:
    """Parses `--config FILE` and flags into the dataclasses, with default < YAML < command line.

    Args:
        classes: One dataclass for each value returned.
        passed_over: Their fields in the YAML are not read here, `output_dir` included, except those of a class that is
            asked for itself: one file serves the recipes that train and those that use a model.
        section: The recipe's own part of the YAML, of `SECTIONS`, where its settings stand; those above it are for
            fine-tuning, and `SFTArguments` are passed over, or all but `output_dir` read where a class is made of them.
        argv: The command line without the program, by default `sys.argv[1:]`.
        default_config: Read when neither `--config` nor `--model_name_or_path` is given.

    Raises:
        InputError: An unknown or abbreviated name, one without effect, a wrong type or value, `--config=FILE`, a file
            that is no YAML.
    """
    argv, config = _without_config(list(sys.argv[1:] if argv is None else argv), default_config)
    passed_over = (*passed_over, SFTArguments) if section else passed_over
    unread = SECTIONS[section] if section else OF_USE if passed_over else OF_SFT
    parser = _Parser(classes, unread)
    asked_for = [cls for cls in classes if any(issubclass(o, cls) or issubclass(cls, o) for o in passed_over)]
    read = {name for cls in asked_for for name in _fields(cls)} - ({"output_dir"} if section else set())
    others = {name for cls in passed_over for name in _fields(cls)} - read
    from_yaml = _words_of_yaml(config, parser, others, section, bool(section or passed_over)) if config else []
    _check_command_line(argv, parser)
    try:
        words = [_at_home(word) for word in from_yaml + argv]
        return parser.parse_args_into_dataclasses(args=words, look_for_args_file=False)
    except (ValueError, TypeError, ImportError, OSError) as error:  # a config's own: a value, a package, a file of it
        raise InputError(str(error)) from error


def _words_of_yaml(
    config: Path, parser: _Parser, others: set[str], section: str | None, serves_others: bool
) -> list[str]:
    """The settings of a YAML as words of a command line, those that are null or empty as defaults of the parser.

    Args:
        others: Names that are another recipe's where they stand above all sections.
        serves_others: Whether what this recipe does not read may stand there too.
    """
    content = _read_yaml(config)
    sections = {name: content.pop(name) for name in SECTIONS if name in content}
    for name, part in sections.items():
        if part is not None and not isinstance(part, dict):
            raise InputError(f"{config}: {name}: expected indented lines of `key: value` under it, found {part!r:.50}.")
    own = sections.get(section or "") or {}
    dropped = [key for key in content if key in others and key in parser.known]
    if dropped and section not in (None, "search") and section not in sections:
        raise InputError(
            f"{config}: {', '.join(dropped)}: what stands above all parts is for fine-tuning, and not read here. Put "
            f"this recipe's settings in a part of its own, `{section}:`, which may be empty."
        )
    words: list[str] = []
    for key, value in ({key: value for key, value in content.items() if key not in others} | own).items():
        place = f"{config}: {section}" if key in own else str(config)
        if key in parser.unread and (key in own or not serves_others):
            raise InputError(f"{place}: {key} has no effect in this recipe. Leave it out.")
        parser.check(key, value, place)
        if value is None or value == []:
            parser.set_defaults(**{key: value})
            continue
        word = _as_argv(key, value)
        try:
            parser.parse_known_args(word)
        except InputError as error:
            raise InputError(f"{place}: {str(error).removeprefix('--')}") from error
        words += word
    return words


def _check_command_line(argv: list[str], parser: _Parser) -> None:
    for word in argv:
        name = word.split("=")[0].removeprefix("--").replace("-", "_")
        if (
            word.startswith("--")
            and name not in (*parser.known, "help")
            and name.removeprefix("no_") not in parser.known
        ):
            raise InputError(f"unknown argument `--{name}`.{parser.nearest(name)}")
        if word.startswith("--") and RANGES.get(name) in parser.known:
            raise InputError(f"--{name}: is searched for. Say among which values with --{RANGES[name]}; one fixes it.")
        if word.startswith("--") and name.removeprefix("no_") in parser.unread:
            raise InputError(f"--{name}: has no effect in this recipe. Leave it out.")
    _, more = parser.parse_known_args(argv)
    if more:
        raise InputError(f"unexpected on the command line: {' '.join(more)}. Settings are given as `--name value`.")


def _at_home(word: str) -> str:
    """A word with the user's home for `~`, which no shell puts there behind `--flag=`, nor in a YAML."""
    return re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda match: (match[1] or "") + str(Path.home()), word)
