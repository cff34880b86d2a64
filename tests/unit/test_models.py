"""Loading in every type, LoRA on every architecture, and QLoRA that really trains, all on tiny random models."""

import copy
import json
import shutil
from pathlib import Path

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from alignment import embedded, models, pretrained
from alignment.arguments import ModelArguments
from alignment.errors import InputError
from alignment.weights import native_dtype
from recipes import sft

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA_TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
ARCHITECTURES = {
    "gpt_neox": (
        GPTNeoXConfig(**SIZES, intermediate_size=64),
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    ),
    "gptj": (
        GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=2, rotary_dim=8),
        {"q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"},
    ),
    "llama": (LlamaConfig(**SIZES, intermediate_size=64), LLAMA_TARGETS),
    "qwen3": (Qwen3Config(**SIZES, intermediate_size=64, num_key_value_heads=1, head_dim=16), LLAMA_TARGETS),
    "gemma3": (Gemma3TextConfig(**SIZES, intermediate_size=64, num_key_value_heads=1, head_dim=16), LLAMA_TARGETS),
}


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
def test_a_tokenizer_is_what_its_file_says_whatever_the_type_of_the_model(model_type, tmp_path):
    """KoGPT2's words, for one, begin with a sign: as GPT-2's tokenizer they would lose every Korean letter."""
    text = "안녕하세요 환불 주문"
    written = Tokenizer(BPE(unk_token="<unk>"))
    written.pre_tokenizer, written.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    written.train_from_iterator([text] * 3, trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], show_progress=False))
    written.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 200}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = pretrained.load_tokenizer(str(tmp_path))
    assert tokenizer(text).input_ids == written.encode(text).ids != []
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "</s>")


def arguments(path, **changes):
    return ModelArguments(model_name_or_path=str(path), **{"dtype": "float32"} | changes)


def save_llama(folder: Path, **changes) -> Path:
    LlamaForCausalLM(LlamaConfig(**SIZES | {"intermediate_size": 64} | changes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model) -> Path:
    """An untrained adapter for the tiny model."""
    folder = tmp_path_factory.mktemp("adapter")
    models.load_for_training(arguments(tiny_model)).save_pretrained(folder)
    return folder


# --- LoRA targets


@pytest.mark.parametrize(("config", "targets"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_lora_is_on_all_linear_layers_but_the_head(config, targets, tmp_path):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = models.load_for_training(arguments(tmp_path))
    adapted = [name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")]
    assert {name.rpartition(".")[2] for name in adapted} == targets
    assert len(adapted) == 2 * len(targets)  # in both layers
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("names", [["q_proj"], ["q_proj", "v_proj"]])
def test_named_targets_replace_those_of_the_architecture(tiny_model, names):
    model = models.load_for_training(arguments(tiny_model, lora_target_modules=names))
    adapted = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith(".lora_A")}
    assert adapted == set(names)


def test_named_targets_that_the_model_lacks_are_refused(tiny_model):
    with pytest.raises(InputError, match=r"--lora_target_modules .*query_key_value.* not found in the base model"):
        models.load_for_training(arguments(tiny_model, lora_target_modules=["query_key_value"]))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"lora_target_modules": ["q_proj", "vproj"]}, r"--lora_target_modules vproj: no layer has this name.*q_proj"),
        ({"lora_modules_to_save": ["embed"]}, "--lora_modules_to_save embed: no layer"),
        ({"lora_target_modules": ["q_proj", "lm_head"]}, "the LM head takes no adapter here"),
    ],
)
def test_names_of_no_layer_are_not_passed_over(tiny_model, named, says):
    with pytest.raises(InputError, match=says):
        models.load_for_training(arguments(tiny_model, **named))


# --- types and quantisation


def test_weights_that_do_not_fit_while_they_are_quantised_are_told_of(tiny_model, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", full)
    with pytest.raises(InputError, match="could not be quantised, most likely because its weights do not fit"):
        models.load_base(arguments(tiny_model, load_in_4bit=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks the CPU")
@pytest.mark.parametrize(
    ("knows", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, knows, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: knows)
    assert native_dtype() == dtype


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"load_in_8bit": True}, "stored as float32, and no 8-bit ones"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "uint8"}, "leave --bnb_4bit_quant_storage out"),
    ],
)
def test_weights_that_fsdp_cannot_shard_are_refused(tiny_model, monkeypatch, changes, says):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=says):
        models.check_trainable(arguments(tiny_model, **changes))


def test_fsdp_has_4_bit_weights_stored_as_the_others(tiny_model, monkeypatch):
    four_bit = arguments(tiny_model, load_in_4bit=True)
    assert models.quantization(four_bit, torch.bfloat16).bnb_4bit_quant_storage == torch.uint8
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert models.quantization(four_bit, torch.bfloat16).bnb_4bit_quant_storage == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_and_adapters_have_the_asked_type(tiny_model, dtype):
    model = models.load_for_training(arguments(tiny_model, dtype=dtype))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_4_bit_weights_are_nf4_with_double_quantisation(tiny_model):
    model = models.load_base(arguments(tiny_model, load_in_4bit=True))
    weight = model.model.layers[0].mlp.up_proj.weight
    assert isinstance(weight, bitsandbytes.nn.Params4bit)
    assert (weight.dtype, weight.quant_state.quant_type, weight.quant_state.nested) == (torch.uint8, "nf4", True)
    assert weight.numel() == 64 * 128 / 2  # two weights a byte


def test_writing_before_learning_takes_no_gradient_away_from_4_bit_weights(tiny_model, monkeypatch):
    def gradient(knows: bool) -> torch.Tensor:
        monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: knows)
        torch.manual_seed(0)
        model = models.load_for_training(arguments(tiny_model, load_in_4bit=True)).eval()
        ids = torch.arange(2, 34, device=model.device)[None]
        with torch.no_grad():
            model(ids)
        assert not any(getattr(p.quant_state, "packing_format_for_cpu", False) for p in quantised(model))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.01)
        model(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    assert torch.equal(gradient(knows=True), gradient(knows=False))


def quantised(model):
    found = [p for p in model.parameters() if isinstance(p, bitsandbytes.nn.Params4bit)]
    assert found
    return found


def test_8_bit_weights_are_int8(tiny_model):
    weight = models.load_base(arguments(tiny_model, load_in_8bit=True)).model.layers[0].mlp.up_proj.weight
    assert isinstance(weight, bitsandbytes.nn.Int8Params)
    assert weight.dtype == torch.int8


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_the_head_stays_unquantised(tiny_model, bits):
    head = models.load_base(arguments(tiny_model, **{bits: True})).get_output_embeddings()
    assert type(head) is torch.nn.Linear
    assert head.weight.dtype == torch.float32


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantised_logits_are_near_those_of_the_unquantised_model(tiny_model, bits):
    def logits(**quantisation: bool) -> torch.Tensor:
        model = models.load_base(arguments(tiny_model, **quantisation)).eval()
        return model(torch.arange(2, 34, device=model.device)[None]).logits.cpu()

    with torch.no_grad():
        exact, near = logits(), logits(**{bits: True})
    assert 0 < (near - exact).norm() / exact.norm() < 0.2


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_training_every_quantised_weight_is_refused(tiny_model, bits):
    with pytest.raises(InputError, match="--use_peft false: quantised weights cannot be trained; use LoRA"):
        models.load_for_training(arguments(tiny_model, use_peft=False, **{bits: True}))


# --- training


# No evaluation and no checkpoints: only training counts here.
QUIET = {"phases": "1", "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def base_bytes(model) -> dict[str, bytes]:
    return {
        name: p.detach().view(torch.uint8).numpy().tobytes()
        for name, p in model.named_parameters()
        if "lora_" not in name
    }


def test_qlora_trains_the_adapters_and_leaves_the_4_bit_base_alone(sft_flags, tmp_path, monkeypatch):
    taken = {}

    def load_for_training(*args, **kwargs):
        model = original(*args, **kwargs)
        taken.update(model=model, base=base_bytes(model))
        return model

    original = models.load_for_training
    monkeypatch.setattr(models, "load_for_training", load_for_training)
    sft.main(sft_flags(load_in_4bit=True, num_train_epochs=3, **QUIET))

    assert any(isinstance(p, bitsandbytes.nn.Params4bit) for p in taken["model"].parameters())
    assert base_bytes(taken["model"]) == taken["base"]
    folder = tmp_path / "out" / "phase1"
    weights = load_file(folder / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)  # they begin at zero
    losses = [line["loss"] for line in json.loads((folder / "manifest.json").read_text())["log"] if "loss" in line]
    assert losses[-1] < losses[0] - 0.1


def test_gradient_checkpointing_on_4_bit_weights_changes_neither_losses_nor_summaries(sft_flags_for, tmp_path):
    logs = {}
    for on in (False, True):
        flags = {"phases": 1, "load_in_4bit": True, "gradient_checkpointing": on, "num_train_epochs": 1}
        sft.main(sft_flags_for(tmp_path / str(on), **flags))
        log = json.loads((tmp_path / str(on) / "phase1" / "manifest.json").read_text("utf-8"))["log"]
        logs[on] = [line[name] for line in log for name in ("loss", "eval_loss", "eval_rouge") if name in line]
    assert len(logs[True]) >= 5
    assert logs[True] == pytest.approx(logs[False], rel=1e-5)


@pytest.fixture
def copy_of_tiny(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_pickled_weights_are_not_loaded(copy_of_tiny: Path):
    weights = load_file(copy_of_tiny / "model.safetensors")
    torch.save(weights, copy_of_tiny / "pytorch_model.bin")
    (copy_of_tiny / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model has no weights as safetensors. Pickled ones \(.bin\) are not loaded"):
        models.load_base(ModelArguments(model_name_or_path=str(copy_of_tiny)))


def test_a_pickled_adapter_is_not_loaded(copy_of_tiny: Path, sft_flags, tmp_path: Path):
    sft.main(sft_flags(phases="1", model_name_or_path=copy_of_tiny, max_steps=1))
    adapter = tmp_path / "out" / "phase1"
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"phase1: no adapter_model.safetensors in it, and pickled adapters are not"):
        models.load_for_use(str(adapter), ModelArguments())


@pytest.mark.parametrize(
    ("file", "says"),
    [("model.safetensors", "loaded: Error while deserializing"), ("adapter_config.json", r"broken or cut \(")],
)
def test_a_file_that_was_cut_is_told_without_a_traceback(file: str, says: str, copy_of_tiny: Path):
    if file == "adapter_config.json":
        (copy_of_tiny / file).write_text('{"base_model_na', "utf-8")
    else:
        (copy_of_tiny / file).write_bytes((copy_of_tiny / file).read_bytes()[:2000])
    with pytest.raises(InputError, match=says):
        models.load_for_use(str(copy_of_tiny), ModelArguments())


def without(folder: Path, word: str) -> None:
    """Takes the tensors with this word in their names out of a folder's weights."""
    [file] = folder.glob("*.safetensors")
    save_file({name: t for name, t in load_file(file).items() if word not in name}, file, {"format": "pt"})


def test_weights_that_are_missing_are_not_made_up(copy_of_tiny: Path):
    without(copy_of_tiny, "layers.1.mlp")
    with pytest.raises(InputError, match=r"no weights for 3 of its tensors, such as model\.layers\.1\.mlp\.down_proj"):
        models.load_base(arguments(copy_of_tiny))


def test_weights_of_other_sizes_are_told_without_a_traceback(copy_of_tiny: Path):
    config = json.loads((copy_of_tiny / "config.json").read_text("utf-8"))
    (copy_of_tiny / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}), "utf-8")
    with pytest.raises(InputError, match=r"has weights of other sizes than its config\.json says"):
        models.load_base(arguments(copy_of_tiny))


def test_an_adapter_that_lacks_tensors_is_refused(adapter: Path, tiny_model: Path, tmp_path: Path):
    half = Path(shutil.copytree(adapter, tmp_path / "half"))
    without(half, "layers.1.")
    with pytest.raises(InputError, match=r"does not fit .*it lacks 14 tensors"):
        models.add_adapter(models.load_base(arguments(tiny_model)), half)


def test_code_of_a_models_own_is_neither_run_nor_asked_for(copy_of_tiny: Path):
    config = json.loads((copy_of_tiny / "config.json").read_text("utf-8"))
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (copy_of_tiny / "config.json").write_text(json.dumps(config | own), "utf-8")
    (copy_of_tiny / "mine.py").write_text("raise SystemExit('run')", "utf-8")
    with pytest.raises(InputError, match="needs code of its own, and none out of a model folder is run"):
        models.load_base(arguments(copy_of_tiny))


def test_a_pad_token_beyond_the_vocabulary_is_replaced(copy_of_tiny: Path, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # and the model was not made larger
    tokenizer.save_pretrained(copy_of_tiny)
    assert pretrained.load_tokenizer(str(copy_of_tiny)).pad_token_id == tokenizer.eos_token_id


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A mixture of four experts."""
    folder = tmp_path_factory.mktemp("experts")
    sizes = SIZES | {"intermediate_size": 64, "vocab_size": len(tiny_tokenizer), "moe_intermediate_size": 32}
    config = Qwen3MoeConfig(
        **sizes, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2, head_dim=16, max_position_embeddings=2048
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_a_mixture_of_experts_trains_and_writes(experts: Path, sft_flags, tmp_path: Path):
    sft.main(sft_flags(model_name_or_path=experts, phases=1, max_steps=2, lora_dropout=0))
    told = json.loads((tmp_path / "out" / "phase1" / "manifest.json").read_text("utf-8"))
    assert {"loss", "eval_rouge"} <= {name for line in told["log"] for name in line}
    assert told["settings"]["router_aux_loss_coef"] is None  # as in the runs of before


def test_names_that_peft_knows_otherwise_are_names(experts: Path, tiny_model: Path):
    names = {"lora_target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"], "lora_dropout": 0}
    fused = models.load_for_training(arguments(experts, **names))
    assert any("experts.lora_" in name.replace("base_layer.", "") for name, _ in fused.named_parameters())
    whole = models.load_for_training(arguments(tiny_model, lora_modules_to_save=["layernorm"]))
    assert any("input_layernorm.modules_to_save" in name for name, p in whole.named_parameters() if p.requires_grad)


def test_what_lora_and_4_bit_leave_out_of_a_mixture_of_experts_is_told(experts: Path, capsys):
    with pytest.raises(InputError, match="PEFT has none for fused experts"):
        models.load_for_training(arguments(experts, lora_dropout=0.1))
    models.load_base(arguments(experts, load_in_4bit=True))
    assert "numbers stay in float32: they are in no linear layer" in capsys.readouterr().err


def test_a_type_that_no_reward_model_can_be_made_from_is_refused_before_work(tmp_path: Path):
    GraniteForCausalLM(GraniteConfig(**SIZES, intermediate_size=64)).save_pretrained(tmp_path)
    models.check_trainable(arguments(tmp_path))
    with pytest.raises(InputError, match=r"no classifier of its type \(granite\) to make a reward model from"):
        models.check_trainable(arguments(tmp_path), scalar_head=True)


def test_phase_2_of_full_fine_tuning_starts_from_the_weights_of_phase_1(sft_flags, tiny_model, tmp_path):
    sft.main(sft_flags(use_peft=False, num_train_epochs=1, learning_rate=1e-3, **QUIET))
    phase1 = tmp_path / "out" / "phase1"
    started = models.load_for_training(arguments(tiny_model, use_peft=False), start_from=phase1)
    trained, base = load_file(phase1 / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert all(p.requires_grad for p in started.parameters())
    assert torch.equal(started.get_input_embeddings().weight, trained["model.embed_tokens.weight"])
    assert not torch.equal(trained["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_phase_2_starts_from_the_adapter_of_phase_1(tiny_model, adapter):
    model = models.load_for_training(arguments(tiny_model), start_from=adapter)
    stored = load_file(adapter / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


# --- names and folders


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none: no such folder\. Expected a folder or a Hub name `owner/name`"):
        pretrained.resolve(str(tmp_path / "none"))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json or adapter_config\.json in it\. Expected a model folder"):
        pretrained.resolve(str(tmp_path))


def test_a_hub_name_is_left_as_it_is():
    assert pretrained.resolve("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_an_adapter_is_found_with_its_base_from_wherever_it_is_used(tmp_path, monkeypatch):
    save_llama(tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    made = models.load_for_training(arguments("models/base"))
    made.save_pretrained(tmp_path / "adapter")
    models.check_adapter("adapter", "models/base")
    monkeypatch.chdir(tmp_path / "adapter")
    models.check_adapter(".", "../models/base")
    assert models.load_base(arguments(pretrained.base_of("."))).num_parameters() > 1000


def test_a_damaged_model_folder_is_refused_with_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"The model {tmp_path} cannot be loaded"):
        models.load_base(arguments(tmp_path))


# --- adapters


def test_an_adapter_for_another_shape_is_refused_with_both_names(tmp_path, tiny_model, adapter):
    narrow = save_llama(tmp_path)
    with pytest.raises(InputError, match="does not fit") as error:
        models.add_adapter(models.load_base(arguments(narrow)), adapter)
    assert str(narrow) in str(error.value)
    assert str(tiny_model) in str(error.value)


def test_an_adapter_for_a_deeper_base_is_refused(tmp_path):
    deep, shallow = save_llama(tmp_path / "deep", num_hidden_layers=3), save_llama(tmp_path / "shallow")
    models.load_for_training(arguments(deep)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"the base has no place for 14 tensors such as \S+layers\.2\."):
        models.add_adapter(models.load_base(arguments(shallow)), tmp_path / "adapter")


def test_phase_2_on_another_base_of_the_same_shape_is_refused_with_both_names(tmp_path, tiny_model, adapter):
    twin = tmp_path / "twin"
    LlamaForCausalLM.from_pretrained(tiny_model).save_pretrained(twin)
    with pytest.raises(InputError) as error:
        models.load_for_training(arguments(twin), start_from=adapter)
    assert f"is for {tiny_model}, not for {twin}" in str(error.value)


def test_an_adapter_in_place_of_a_model_is_refused_with_its_base(tiny_model, adapter):
    with pytest.raises(InputError, match=f"an adapter for {tiny_model}, where a whole model is expected"):
        models.load_for_training(arguments(adapter))


def test_an_adapter_as_the_base_of_fine_tuning_is_told_before_anything_else(adapter, tiny_model, sft_flags, tmp_path):
    with pytest.raises(InputError, match=f"an adapter for {tiny_model}, where a whole model is expected"):
        sft.main(sft_flags(model_name_or_path=adapter))


def test_an_adapter_that_names_no_base_is_told(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(InputError, match=r"adapter_config.json: base_model_name_or_path is empty\. Write"):
        pretrained.base_of(tmp_path)


def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(adapter, tiny_model):
    assert not list(adapter.glob("tokenizer*"))
    texts = pretrained.load_tokenizer(str(adapter)), pretrained.load_tokenizer(str(tiny_model))
    assert texts[0].get_vocab() == texts[1].get_vocab()


def test_a_base_that_is_stored_quantised_keeps_its_adapter_apart(tiny_model, tmp_path):
    base = models.load_base(arguments(tiny_model, load_in_4bit=True))
    base.save_pretrained(tmp_path / "base")
    pretrained.load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "base")
    made = models.load_for_training(arguments(tmp_path / "base"))
    made.save_pretrained(tmp_path / "adapter")
    model, _ = models.load_for_use(str(tmp_path / "adapter"), arguments(tmp_path / "base"))
    ids = torch.arange(2, 34, device=model.device)[None]
    with torch.no_grad():  # in use, where bitsandbytes computes in bfloat16 on a CPU that can
        torch.testing.assert_close(model(ids).logits, base.eval()(ids).logits)  # the adapter is untrained
    assert any("lora_A" in name for name, _ in model.named_modules())


def test_a_whole_model_in_place_of_an_adapter_is_refused(tiny_model):
    with pytest.raises(InputError, match="a whole model, where a trained adapter is expected"):
        models.load_for_training(arguments(tiny_model), start_from=tiny_model)


def test_an_adapter_on_the_embedded_model_is_portable(tmp_path):
    elsewhere = f"/home/someone/cache/{embedded.FOLDER}"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": elsewhere}))
    assert pretrained.base_of(tmp_path) == embedded.NAME


# --- tokenizers


def save_gptj_like(folder: Path, **tokens: int) -> Path:
    """A GPT-J folder whose tokenizer.json names no special tokens, as kogpt's; `tokens` are ids for its config."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(["abc"], trainers.BpeTrainer(special_tokens=["[BOS]", "[EOS]"]))
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    none = {"bos_token_id": None, "eos_token_id": None}
    GPTJConfig(vocab_size=size, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, **none | tokens).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_a_tokenizer_without_an_end_token_takes_that_of_the_config(tmp_path, tokenizer_class):
    save_gptj_like(tmp_path, eos_token_id=1)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
    tokenizer = pretrained.load_tokenizer(str(tmp_path))
    assert (tokenizer.eos_token, tokenizer.pad_token_id, tokenizer.padding_side) == ("[EOS]", 1, "left")


def test_a_model_without_any_end_token_is_refused(tmp_path):
    save_gptj_like(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(InputError, match="has no end token"):
        pretrained.load_tokenizer(str(tmp_path))
