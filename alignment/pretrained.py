"""A model by its name, without its weights: its folder, base, config, context and tokenizer."""

import json
import os
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from alignment import embedded
from alignment.errors import InputError


def resolve(name_or_path: str) -> str:
    """The path or Hub name behind `--model_name_or_path`, where `embedded` stands for the embedded model.

    Raises:
        InputError: It looks like a folder and is none.
    """
    if name_or_path == embedded.NAME:
        return str(embedded.embedded_model_path())
    path = Path(name_or_path)
    looks_like_path = path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") != 1
    looks_like_path = looks_like_path or path.parent.is_dir()  # runs/mine, mistyped
    if path.exists() or not looks_like_path:
        if path.exists() and not any((path / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise InputError(
                f"{name_or_path}: no config.json or adapter_config.json in it. "
                "Expected a model folder, such as runs/sft/phase2."
            )
        return os.path.abspath(path) if path.exists() else name_or_path  # adapters keep it, and are used elsewhere
    moved = " If an adapter's base has moved, its adapter_config.json is to name the new place." * path.is_absolute()
    raise InputError(f"{name_or_path}: no such folder. Expected a folder or a Hub name `owner/name`.{moved}")


def base_of(folder: str | Path) -> str | None:
    """The base model that an adapter folder names, or None where the folder holds a whole model.

    Raises:
        InputError: It names none, or is no JSON.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        name = json.loads(path.read_text()).get("base_model_name_or_path")
    except ValueError as error:
        raise InputError(f"{path}: broken or cut ({error}). Copy or download it again.") from error
    if name:
        return canonical(name)
    raise InputError(f"{path}: base_model_name_or_path is empty. Write the base model's folder or Hub name there.")


def canonical(name: str) -> str:
    """A base's name as adapters keep it."""
    # The cache of the embedded model lies elsewhere on another machine.
    if Path(name).name == embedded.FOLDER:
        return embedded.NAME
    return os.path.abspath(name) if Path(name).is_dir() and name != embedded.NAME else str(Path(name))


def config_of(name_or_path: str, revision: str = "main") -> PreTrainedConfig:
    """The config of a model's text part, from its folder or the Hub; an `InputError` where an adapter is there."""
    name = resolve(name_or_path)
    if (base := base_of(name)) is not None:
        raise InputError(f"{name}: an adapter for {base}, where a whole model is expected. Name {base} instead.")
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        raise not_loaded(name_or_path, error) from error


def check_architecture(name_or_path: str, revision: str = "main", encoder_decoder: bool = False) -> None:
    """Holds that a model is a decoder, or that it is an encoder-decoder."""
    if config_of(name_or_path, revision).is_encoder_decoder == encoder_decoder:
        return
    kinds = ["an encoder-decoder", "a decoder alone"]
    expected, found = kinds if encoder_decoder else kinds[::-1]
    recipe = "sft.py" if encoder_decoder else "baseline.py"
    raise InputError(
        f"--model_name_or_path {name_or_path}: {found}, where {expected} is expected. Train it with recipes/{recipe}."
    )


def context_tokens(name_or_path: str, revision: str = "main") -> int | None:
    """The most tokens that the model takes, prompt and summary together, or None where its config does not say.

    Of an encoder-decoder: that its encoder takes, and its decoder.
    """
    return getattr(config_of(name_or_path, revision), "max_position_embeddings", None)


def check_length(max_length: int | None, name_or_path: str, revision: str = "main") -> None:
    """Holds that a model takes `max_length` tokens.

    Raises:
        InputError: It does not, or no length is given.
    """
    context = context_tokens(name_or_path, revision)
    if not max_length or max_length < 1 or (context and max_length > context):
        expected = f"at most {context}, the model's context in tokens" if context else "1 or more"
        raise InputError(f"--max_length {max_length}: expected {expected}.")


def load_tokenizer(name_or_path: str, revision: str = "main") -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left (an encoder's on the right), with an end token that the model knows and a pad.

    A tokenizer that names no end token of its own (kogpt's) gets none, or one beyond the model's vocabulary: then the
    one in the model's config is taken.
    """
    name = resolve(name_or_path)
    base = base_of(name)
    if base is not None and not (Path(name) / "tokenizer_config.json").is_file():  # PEFT by itself saves none
        return load_tokenizer(base, revision)
    config = config_of(name, revision) if base is None else None
    try:
        tokenizer = _tokenizer_as_written(name, revision, config is not None and config.is_encoder_decoder)
        if config is not None:
            if config.is_encoder_decoder and tokenizer.pad_token_id is None and isinstance(config.pad_token_id, int):
                tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
            known = tokenizer.eos_token_id is not None and tokenizer.eos_token_id < config.vocab_size
            if not known and isinstance(config.eos_token_id, int):
                tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    except (OSError, ValueError, ImportError) as error:
        raise not_loaded(name_or_path, error) from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"{name_or_path}: its tokenizer has no end token (eos_token), which ends each summary.")
    beyond = config is not None and (tokenizer.pad_token_id or 0) >= config.vocab_size
    if tokenizer.pad_token_id is None or beyond:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_as_written(name: str, revision: str, encoder_decoder: bool) -> PreTrainedTokenizerFast:
    """The tokenizer that tokenizer.json describes, where there is one, and nothing else.

    transformers 5.23 rebuilds the tokenizers of some types of model (BART, GPT-2, Llama) and reads from that file the
    vocabulary alone: for KoBART and KoGPT2 that is a byte-level tokenizer that loses every Korean letter.
    """
    options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    side = "right" if encoder_decoder else "left"
    if cached_file(name, "tokenizer.json", revision=revision, **options):
        return PreTrainedTokenizerFast.from_pretrained(name, revision=revision, padding_side=side)
    made = AutoTokenizer.from_pretrained(  # of a SentencePiece file
        name, revision=revision, padding_side=side, trust_remote_code=False
    )
    whole = {"tokenizer_object": made.backend_tokenizer, "padding_side": side, **made.special_tokens_map}
    return PreTrainedTokenizerFast(**whole) if encoder_decoder else made


def not_loaded(name: str, error: Exception) -> InputError:
    """What to tell where a model cannot be loaded: why, and what to do."""
    first_line = str(error).strip().splitlines()[0]
    told = f"The model {name} cannot be loaded: {first_line}"
    if "no file named model.safetensors found" in first_line or "cannot be loaded with `safetensors`" in first_line:
        return InputError(
            f"The model {name} has no weights as safetensors. Pickled ones (.bin) are not loaded: they may run code. "
            "If you trust them, have transformers write them anew once (from_pretrained(...).save_pretrained(FOLDER), "
            "the tokenizer too), and give FOLDER."
        )
    if "custom code" in first_line:  # transformers would ask whether to run it
        return InputError(f"The model {name} needs code of its own, and none out of a model folder is run here.")
    if "Unrecognized configuration class" in first_line:
        return InputError(f"The model {name}: transformers has no text decoder of its type. Give a text-only model.")
    if isinstance(error, ImportError) and "quant" in first_line.lower() and "bitsandbytes" not in first_line:
        return InputError(f"{told} Or give the model's 16-bit weights, with --load_in_4bit true.")
    if name == embedded.NAME or Path(name).is_dir():
        return InputError(told)
    return InputError(
        f"{told} Check the name, log in with `hf auth login` if it is gated, or download it where there is a "
        f"connection (`hf download {name} --local-dir FOLDER`) and give the folder."
    )
