"""Base model (4-bit, 8-bit, bf16, fp32) and LoRA adapters, for training and for use."""

import textwrap
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from alignment.arguments import ModelArguments
from alignment.attention import avoid_faulty_attention
from alignment.errors import InputError
from alignment.formats import listed
from alignment.pretrained import base_of, canonical, config_of, load_tokenizer, not_loaded, resolve
from alignment.run import say
from alignment.training import let_gradients_through, uses
from alignment.weights import HEAD, native_dtype

# What a model is loaded with as it was trained, unless the user says otherwise.
QUANTISATION = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


def quantization(config: ModelArguments, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The bitsandbytes settings of `load_in_4bit` (NF4, double quantisation) or `load_in_8bit`, if either is on.

    FSDP shards 4-bit weights that are stored in the type of the others; stored as bytes, none could be read back.
    """
    if config.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.bnb_4bit_quant_type,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=config.use_bnb_nested_quant,
            bnb_4bit_quant_storage=config.bnb_4bit_quant_storage or (dtype if uses("FSDP") else None),
        )
    return BitsAndBytesConfig(load_in_8bit=True) if config.load_in_8bit else None


def load_base(config: ModelArguments, scalar_head: bool = False) -> PreTrainedModel:
    """The base model, decoder or encoder-decoder, in its type and quantisation, on this process's device.

    Args:
        scalar_head: With a head `score` that gives one number for a text, instead of the LM head.

    Raises:
        InputError: No such model, an adapter instead of one, or weights that are not all there.
    """
    avoid_faulty_attention()
    dtype = getattr(torch, config.dtype) if config.dtype else native_dtype()
    name = resolve(config.model_name_or_path)
    decoder_class = AutoModelForSequenceClassification if scalar_head else AutoModelForCausalLM
    stored = config_of(name, config.model_revision)
    auto_class = AutoModelForSeq2SeqLM if stored.is_encoder_decoder else decoder_class
    quantised = quantization(config, dtype)
    # A quantised model is placed while it loads; every other one is placed by the trainer or by `to`.
    placed = quantised is not None or getattr(stored, "quantization_config", None) is not None
    try:
        model, loaded = auto_class.from_pretrained(
            name,
            revision=config.model_revision,
            dtype=dtype,
            attn_implementation=config.attn_implementation,
            device_map={"": PartialState().device} if placed else None,
            use_safetensors=True,  # others are pickled, and may do anything
            trust_remote_code=False,  # or transformers would ask, and wait for the answer
            output_loading_info=True,
            **({"quantization_config": quantised} if quantised else {}),  # None would hide that of the stored weights
            **({"num_labels": 1} if scalar_head else {}),
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise not_loaded(config.model_name_or_path, error) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" in str(error):
            raise InputError(f"The model {name} has weights of other sizes than its config.json says.") from error
        if quantised and "automatic conversion" in str(error):  # transformers says no more
            raise InputError(
                f"The model {name} could not be quantised, most likely because its weights do not fit into the GPU's "
                "memory. Free what else is in it (nvidia-smi), or take a smaller model."
            ) from error
        raise
    # transformers makes up what is missing, at random.
    if missing := sorted(loaded["missing_keys"] - ({"score.weight"} if scalar_head else set())):
        raise InputError(
            f"The model {name} has no weights for {len(missing)} of its tensors, such as {missing[0]}. They may be "
            "cut, or named otherwise than this version of transformers expects. Copy or convert them again."
        )
    if quantised:
        _tell_of_unquantised(model)
    return model


def _tell_of_unquantised(model: PreTrainedModel) -> None:
    """A mixture of experts keeps most of its weights as they are: bitsandbytes quantises linear layers alone."""
    ends = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
    blocks = [weight for weight in model.parameters() if weight.ndim > 1 and id(weight) not in ends]
    left = sum(weight.numel() for weight in blocks if type(weight) is nn.Parameter)
    if left > 0.05 * model.num_parameters():
        dtype = str(model.dtype).removeprefix("torch.")
        say(f"{left:,} of {model.num_parameters():,} numbers stay in {dtype}: they are in no linear layer.")


def lora_config(config: ModelArguments) -> LoraConfig:
    """LoRA on the linear layers of whatever architecture, except the LM head, unless `lora_target_modules` says.

    Source: QLoRA (arXiv 2305.14314) section 4: adapters on all linear layers match full fine-tuning; the names differ
    by architecture (q_proj in Llama, query_key_value in GPT-NeoX), so PEFT reads them from the model.
    """
    targets = config.lora_target_modules or "all-linear"
    if isinstance(targets, str) and targets != "all-linear":
        # TRL unwraps a list of one name, and PEFT takes a lone string for a pattern of the whole path.
        targets = rf"(.*\.)?({targets})"
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        target_parameters=config.lora_target_parameters,
        modules_to_save=config.lora_modules_to_save,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        task_type="CAUSAL_LM",
    )


def add_adapter(base: PreTrainedModel, folder: str | Path, trainable: bool = False) -> PeftModel:
    """The base with the adapter of `folder` on it.

    Raises:
        InputError: It holds no adapter, or one that was made for a base of another shape.
    """
    if not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise InputError(f"{folder}: no {SAFETENSORS_WEIGHTS_NAME} in it, and pickled adapters are not loaded.")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if not base.can_generate():
            config.task_type = None  # or PEFT would look for `generate`, or hide the head among the adapters
        model = PeftModel.from_pretrained(
            base, str(folder), config=config, is_trainable=trainable, autocast_adapter_dtype=False, torch_device="cpu"
        )  # or every process would put it on the first GPU
        # PEFT passes over tensors that have no place in the base.
        weights = load_peft_weights(str(folder), device="cpu")
        places = get_peft_model_state_dict(model).keys()
        if superfluous := weights.keys() - places:
            raise ValueError(f"the base has no place for {len(superfluous)} tensors such as {min(superfluous)}")
        if missing := {name for name in places - weights.keys() if "lora_" in name}:
            raise ValueError(f"it lacks {len(missing)} tensors, such as {min(missing)}")
        if any(weight.dtype == torch.float32 for weight in weights.values()):  # PPO's: keep its small steps
            for layer in filter(lambda module: isinstance(module, BaseTunerLayer), model.modules()):
                for name in layer.adapter_layer_names:
                    getattr(layer, name).float()
            set_peft_model_state_dict(model, weights)
        return model
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        reason = textwrap.shorten(str(error).strip().splitlines()[-1], 300, placeholder=" ...")
        raise InputError(
            f"{folder}: this adapter does not fit the base model {base.name_or_path} "
            f"(it was made for {base_of(folder)}): {reason}"
        ) from error


def load_for_training(config: ModelArguments, start_from: Path | None = None) -> PreTrainedModel | PeftModel:
    """The model to train: a base with new LoRA adapters on it, or what an earlier phase left in `start_from`.

    Adapters have the type of the base. Source: QLoRA (arXiv 2305.14314) section 3; on a bfloat16 base float32
    adapters cost a cast in every layer and gain nothing
    (held-out loss 1.524 against 1.520 after 400 dialogues on Gemma 3 270M).

    Raises:
        InputError: `start_from` holds an adapter for another base, or no layer has the name that LoRA was asked for.
    """
    check_trainable(config)
    if not config.use_peft:
        return load_base(replace(config, model_name_or_path=str(start_from)) if start_from else config)
    if start_from is not None:
        check_adapter(start_from, config.model_name_or_path, "--use_peft true:")
    base = let_gradients_through(load_base(config))
    if start_from is not None:
        return add_adapter(base, start_from, trainable=True)
    try:
        model = get_peft_model(base, lora_config(config), autocast_adapter_dtype=False)
    except ValueError as error:
        if "lora_dropout" in str(error):
            raise InputError("--lora_dropout: PEFT has none for fused experts. Give --lora_dropout 0.") from error
        named = config.lora_target_modules
        cure = "Leave it out for all linear layers" if named else "Name those that it is to be on"
        raise InputError(f"--lora_target_modules {named or 'all-linear'}: {error} {cure}.") from error
    _check_targets(model, config)
    if not config.lora_target_modules and (left := _without_adapter(model)):
        say(f"{len(left)} linear layers have no adapter, such as {left[0]}. --lora_target_modules names others.")
    return model


def _check_targets(model: PeftModel, config: ModelArguments) -> None:
    """Holds that each of several names is one of a layer; PEFT passes over those that are none."""
    adapted = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    targets = model.peft_config["default"].target_modules  # as PEFT reads them, which renames those of fused experts
    for name in sorted(targets) if isinstance(targets, set) else []:
        if not any(f".{layer}".endswith(f".{name}") for layer in adapted):
            ends = listed(sorted({layer.rpartition(".")[2] for layer in adapted}))
            raise InputError(f"--lora_target_modules {name}: no layer has this name. LoRA would be on {ends} alone.")
    for name in config.lora_modules_to_save or []:
        if not any(layer.endswith(name) for layer, _ in model.named_modules()):
            raise InputError(f"--lora_modules_to_save {name}: no layer has this name.")
    head = model.get_base_model().get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        raise InputError("--lora_target_modules: the LM head takes no adapter here. Leave it out.")


def _without_adapter(model: PeftModel) -> list[str]:
    """The linear layers that LoRA is not on, but for the head."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    adapted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    head = model.get_base_model().get_output_embeddings()
    return [name for name, layer in layers if layer is not head and not name.startswith(adapted)]


def check_trainable(config: ModelArguments, scalar_head: bool = False) -> None:
    """Holds that weights of this type can be trained, as a reward model too where it is to be one."""
    name, revision = config.model_name_or_path, config.model_revision
    if scalar_head:
        whole = AutoConfig.from_pretrained(resolve(name), revision=revision, trust_remote_code=False)  # vision included
        if type(whole) not in AutoModelForSequenceClassification._model_mapping:
            raise InputError(
                f"{name}: transformers has no classifier of its type ({whole.model_type}) to make a reward model from. "
                "Without one there are `evaluate.py --combine mbr`, beams, and `ppo.py --scorers rouge`."
            )
    is_stored_quantised = getattr(config_of(name, revision), "quantization_config", None) is not None
    if (config.load_in_4bit or config.load_in_8bit or is_stored_quantised) and not config.use_peft:
        raise InputError("--use_peft false: quantised weights cannot be trained; use LoRA, or no quantisation.")
    stored, dtype = config.bnb_4bit_quant_storage, config.dtype or str(native_dtype()).removeprefix("torch.")
    if uses("FSDP") and (config.load_in_8bit or (config.load_in_4bit and stored not in (None, dtype))):
        raise InputError(
            f"FSDP shards 4-bit weights stored as {dtype}, and no 8-bit ones. Use --load_in_4bit true, and leave "
            "--bnb_4bit_quant_storage out; or accelerate_configs/multi_gpu.yaml."
        )
    if is_deepspeed_zero3_enabled() and (config.load_in_4bit or config.load_in_8bit):
        raise InputError("ZeRO-3 shards no quantised weights. Leave them 16-bit, or take fsdp2_qlora.yaml instead.")
    if config.dtype == "float16":
        raise InputError("--dtype float16: Adam's steps vanish in it. Use bfloat16, or float32 with --fp16 true.")


def check_adapter(folder: str | Path, base: str, flag: str = "--model_name_or_path") -> None:
    """Holds that a folder has an adapter for a base.

    Args:
        flag: With which the user named the folder.

    Raises:
        InputError: There is no such folder, no adapter in it, or one for another base.
    """
    _refuse_scorer(folder)
    made_for = base_of(folder)
    if made_for is None:
        found = "a whole model" if (Path(folder) / "config.json").is_file() else "no adapter"
        raise InputError(
            f"{flag} {folder}: {found}, where a trained adapter is expected. Give a finished folder of recipes/sft.py, "
            "such as runs/sft/phase2."
        )
    if made_for != canonical(base):
        raise InputError(
            f"{folder}: its adapter is for {made_for}, not for {base}. Go on with --model_name_or_path {made_for}."
        )


def _refuse_scorer(folder: str | Path) -> None:
    if (Path(folder) / HEAD).is_file():
        raise InputError(
            f"{folder}: it scores summaries and writes none. Give one of recipes/sft.py or recipes/ppo.py."
        )


def as_trained(config: ModelArguments, settings: dict[str, Any]) -> ModelArguments:
    """The arguments, with what they leave open as a model was trained, which the settings in its manifest say."""
    config = copy(config)
    if config.load_in_4bit is None and config.load_in_8bit is None:
        for name in QUANTISATION:
            setattr(config, name, settings.get(name, getattr(config, name)))
    config.dtype = config.dtype or settings.get("dtype")
    config.attn_implementation = config.attn_implementation or settings.get("attn_implementation")
    if config.model_revision == "main":
        config.model_revision = settings.get("model_revision", "main")
    return config


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether a base's weights are quantised, by us or as they are stored: an adapter is not merged into those."""
    return getattr(model.config, "quantization_config", None) is not None


def load_for_use(name_or_path: str, config: ModelArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model to generate with, from a base, a whole model or an adapter folder, and its tokenizer.

    Args:
        config: Type and quantisation; its `model_name_or_path` is not read.
    """
    _refuse_scorer(name_or_path)
    tokenizer = load_tokenizer(name_or_path, config.model_revision)
    base = base_of(resolve(name_or_path))
    model = load_base(replace(config, model_name_or_path=base or name_or_path))
    quantised = is_quantised(model)
    if not quantised:
        model = model.to(PartialState().device)
    if base is not None:
        model = add_adapter(model, name_or_path)  # type: ignore[assignment]  # it stands in for the base
        if not quantised:
            # 1.7 times as fast; merging into 4-bit weights would round the adapter off.
            model = model.merge_and_unload()
    return model.eval(), tokenizer
