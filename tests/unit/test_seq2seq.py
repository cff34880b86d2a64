"""Encoder-decoders: tokenizers as they are written, tags, language codes, the loss, and refusals."""

import re

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from alignment import pretrained
from alignment.arguments import ModelArguments
from alignment.errors import InputError
from alignment.generation import Decoding, generate
from alignment.records import Record
from alignment.seq2seq import (
    TAGS,
    BaselineArguments,
    encode_examples,
    loss_over_tokens,
    set_up_model,
    set_up_tokenizer,
    whole_weights,
)

KINDS = ("bart", "t5", "mt5", "mbart")
TAGGED = "#Person1#은 #Person2#에게 #PhoneNumber#로 전화한다고 했다. #Person1#: 네"
RECORD = Record("a", "#Person1#: 내일 볼까?\n#Person2#: 좋아.", ("둘은 내일 본다.",))

each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def tokenizer_of(tiny_seq2seq):
    """The tokenizer of a kind, set up."""

    def load(kind, language="ko", tags=False):
        return set_up_tokenizer(pretrained.load_tokenizer(str(tiny_seq2seq(kind))), kind, language, tags)

    return load


@pytest.fixture
def model_of(tiny_seq2seq, tmp_path):
    """The model of a kind, set up for a tokenizer."""

    def load(kind, tokenizer, **settings):
        model = AutoModelForSeq2SeqLM.from_pretrained(tiny_seq2seq(kind))
        set_up_model(model, tokenizer, BaselineArguments(output_dir=str(tmp_path), use_cpu=True, **settings))
        return model.eval()

    return load


# --- tokenizers as they are written


@each_kind
def test_korean_text_comes_back_as_it_was(kind, tokenizer_of):
    tokenizer = tokenizer_of(kind)
    text = "내일 3시에 역에서 만나기로 한다."
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.padding_side == "right"


def test_kobart_is_not_read_as_bytes_because_its_type_is_bart(tiny_seq2seq):
    text = "내일 역에서 보자"
    guessed = AutoTokenizer.from_pretrained(tiny_seq2seq("bart"))
    assert guessed.decode(guessed(text).input_ids, skip_special_tokens=True) != text  # what is mended here
    assert pretrained.load_tokenizer(str(tiny_seq2seq("bart"))).tokenize(text)[0].startswith("▁")


def test_missing_end_and_pad_tokens_come_from_the_config(tiny_seq2seq, tmp_path):
    for file in tiny_seq2seq("bart").iterdir():
        if file.name != "special_tokens_map.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = pretrained.load_tokenizer(str(tmp_path))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")


# --- tags


@each_kind
def test_tags_are_one_token_each_and_text_with_them_comes_back_as_it_was(kind, tokenizer_of):
    tokenizer = tokenizer_of(kind, tags=True)
    tokens = tokenizer.tokenize(TAGGED)
    assert [token for token in tokens if "#" in token] == ["#Person1#", "#Person2#", "#PhoneNumber#", "#Person1#"]
    assert tokenizer.decode(tokenizer(TAGGED).input_ids, skip_special_tokens=True) == TAGGED


@each_kind
def test_tags_are_the_same_after_saving_whoever_loads_them(kind, tokenizer_of, model_of, tmp_path):
    tokenizer = tokenizer_of(kind, tags=True)
    model_of(kind, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(TAGGED).input_ids
    for loaded in (pretrained.load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded(TAGGED).input_ids == ids
        assert loaded.decode(ids, skip_special_tokens=True) == TAGGED


@each_kind
def test_text_without_tags_has_the_tokens_that_it_had(kind, tokenizer_of):
    text = "내일 3시에\n역에서 만나기로   한다."
    before, after = (tokenizer_of(kind, tags=tags)(text).input_ids for tags in (False, True))
    assert before == after


def test_a_tokenizer_that_cannot_keep_text_around_tags_is_refused(tokenizer_of):
    tokenizer = tokenizer_of("t5")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(InputError, match=r"--special_tokens true: .*tokenizer reads '#Person1#은 .* Leave the option"):
        set_up_tokenizer(tokenizer, "t5", "ko", tags=True)


@each_kind
def test_the_embedding_grows_for_tags_and_stays_grown(kind, tokenizer_of, model_of, tmp_path):
    tokenizer = tokenizer_of(kind, tags=True)
    model = model_of(kind, tokenizer)
    rows = model.get_input_embeddings().num_embeddings
    assert rows >= len(tokenizer) > max(tokenizer.convert_tokens_to_ids(list(TAGS)))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().weight.equal(model.get_input_embeddings().weight)
    assert loaded.get_output_embeddings().out_features == rows


def test_an_embedding_with_room_to_spare_is_not_cut(tokenizer_of, model_of):
    tokenizer = tokenizer_of("mt5", tags=True)  # 1,515 tokens
    assert model_of("mt5", tokenizer).get_input_embeddings().num_embeddings == 1600


# --- what is learnt


@each_kind
def test_labels_are_the_summary_and_one_end_token(kind, tokenizer_of):
    tokenizer = tokenizer_of(kind)
    (example,) = encode_examples([RECORD], tokenizer, 1026)
    assert example["labels"][-1] == tokenizer.eos_token_id
    assert example["labels"].count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(example["labels"], skip_special_tokens=True) == RECORD.references[0]
    assert example["input_ids"] == tokenizer(RECORD.dialogue).input_ids


def test_a_summary_longer_than_the_decoder_takes_is_refused(tokenizer_of):
    with pytest.raises(InputError, match=r"Dialogue a: its summary has \d+ tokens, and the decoder takes 3\. Shorten"):
        encode_examples([RECORD], tokenizer_of("bart"), 3)


@each_kind
def test_the_loss_is_the_models_own(kind, tokenizer_of, model_of):
    tokenizer = tokenizer_of(kind)
    model = model_of(kind, tokenizer)
    (example,) = encode_examples([RECORD], tokenizer, None)
    batch = {name: torch.tensor([ids]) for name, ids in example.items()}
    own = model(**batch)
    assert loss_over_tokens(own, batch["labels"]).item() == pytest.approx(own.loss.item(), rel=1e-5)
    assert loss_over_tokens(own, batch["labels"], 7).item() == pytest.approx(
        own.loss.item() * batch["labels"].numel() / 7, rel=1e-5
    )


def test_smoothed_labels_by_hand():
    logits, labels = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0, -100]])
    right, wrong = -torch.tensor([2.0, 0.0]).log_softmax(0)
    outputs = type("Outputs", (), {"logits": logits})
    assert loss_over_tokens(outputs, labels, label_smoothing=0.2).item() == pytest.approx(
        (0.9 * right + 0.1 * wrong).item()
    )


# --- mBART's language codes


@pytest.mark.parametrize(("language", "code"), [("ko", "ko_KR"), ("en", "en_XX")])
def test_mbart_reads_and_writes_with_the_code_of_the_language(language, code, tokenizer_of, model_of, tmp_path):
    tokenizer = tokenizer_of("mbart", language)
    code_id, end = tokenizer.convert_tokens_to_ids(code), tokenizer.eos_token_id
    assert code_id != tokenizer.unk_token_id
    (example,) = encode_examples([RECORD], tokenizer, None)
    for ids in example.values():
        assert (ids[0], ids[-1]) == (code_id, end)

    model = model_of("mbart", tokenizer)
    labels = torch.tensor([example["labels"]])
    assert model.prepare_decoder_input_ids_from_labels(labels=labels)[0, :2].tolist() == [end, code_id]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), pretrained.load_tokenizer(str(tmp_path))
    assert tokenizer(RECORD.dialogue).input_ids == example["input_ids"]
    written = model.generate(torch.tensor([example["input_ids"]]), max_new_tokens=6, num_beams=1)[0].tolist()
    assert written[:2] == [end, code_id]  # the decoder's start, and the first token


def test_a_language_code_alone_is_no_summary(tokenizer_of, model_of):
    tokenizer = tokenizer_of("mbart")
    model = model_of("mbart", tokenizer)
    with torch.no_grad():
        model.final_logits_bias[0, tokenizer.eos_token_id] = 100.0  # it would end at once
        model.final_logits_bias[0, tokenizer("네").input_ids[1]] = 50.0
    prompts = [tokenizer(RECORD.dialogue).input_ids]
    (text,) = generate(model, tokenizer, prompts, end_token_id=tokenizer.eos_token_id, max_new_tokens=6)
    assert text == "네"


# --- generation


@each_kind
def test_padding_does_not_change_a_summary(kind, tokenizer_of, model_of):
    tokenizer = tokenizer_of(kind)
    model = model_of(kind, tokenizer)
    prompts = [tokenizer(text).input_ids for text in (RECORD.dialogue * 9, RECORD.dialogue, "네")]
    how = {"end_token_id": tokenizer.eos_token_id, "max_new_tokens": 12}
    together = generate(model, tokenizer, prompts, **how)
    assert together == [generate(model, tokenizer, [prompt], **how)[0] for prompt in prompts]
    assert all(together)


def test_its_own_decoding_is_taken_where_the_user_names_none(tokenizer_of, model_of):
    model = model_of("bart", tokenizer_of("bart"), num_beams=3, no_repeat_ngram_size=2, length_penalty=0.5)
    own = Decoding().for_model(model)
    assert (own.num_beams, own.no_repeat_ngram_size, own.length_penalty) == (3, 2, 0.5)
    named = Decoding(num_beams=1, no_repeat_ngram_size=0).for_model(model)
    assert (named.num_beams, named.no_repeat_ngram_size, named.length_penalty) == (1, 0, 0.5)
    assert Decoding(do_sample=True).for_model(model).num_beams == 1


def test_no_ngram_of_the_summary_comes_twice_and_those_of_the_dialogue_may_come(tokenizer_of, model_of):
    tokenizer = tokenizer_of("bart")
    model = model_of("bart", tokenizer)
    first, second = (tokenizer(word).input_ids for word in ("내일", "그럼"))
    assert (len(first), len(second)) == (1, 1)
    with torch.no_grad():
        model.final_logits_bias[0, first], model.final_logits_bias[0, second] = 100.0, 50.0
    prompt = tokenizer("내일 내일").input_ids
    how = {"end_token_id": tokenizer.eos_token_id, "max_new_tokens": 4}
    (free,) = generate(model, tokenizer, [prompt], decoding=Decoding(num_beams=1, no_repeat_ngram_size=0), **how)
    (own,) = generate(model, tokenizer, [prompt], decoding=Decoding(num_beams=1), **how)
    assert (free, own) == ("내일 내일 내일 내일", "내일 내일 그럼 내일")


# --- refusals


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        ({"lora_r": 8}, "--lora_r 8: has no effect here, where every weight"),
        ({"load_in_4bit": True}, "--load_in_4bit True: has no effect here"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16: the steps of a small learning rate vanish in it. Use float32"),
    ],
)
def test_settings_for_adapters_and_small_types_are_refused(settings, telling):
    with pytest.raises(InputError, match=re.escape(telling)):
        whole_weights(ModelArguments(**settings))


def test_every_weight_is_trained_in_float32():
    args = whole_weights(ModelArguments(use_peft=False))
    assert (args.use_peft, args.dtype, args.load_in_4bit) == (False, "float32", False)


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        ({"max_length": 0}, "--max_length 0: expected 1 or more"),
        ({"num_beams": 0}, "--num_beams 0: expected 1 or more"),
        ({"max_new_tokens": 0}, "--max_new_tokens 0: expected 1 or more"),
        ({"metric_for_best_model": "eval_rouge", "rouge_eval_rows": 0}, "needs --rouge_eval_rows of 1 or more"),
        ({"do_predict": True}, "--do_predict: has no effect here"),
    ],
)
def test_settings_without_sense_are_refused(settings, telling):
    with pytest.raises(InputError, match=telling):
        BaselineArguments(use_cpu=True, **settings)


def test_each_recipe_names_the_other_for_the_other_kind_of_model(tiny_seq2seq, tiny_model):
    pretrained.check_architecture(str(tiny_model))
    pretrained.check_architecture(str(tiny_seq2seq("t5")), encoder_decoder=True)
    with pytest.raises(InputError, match=r"an encoder-decoder, where a decoder alone is expected.*baseline\.py"):
        pretrained.check_architecture(str(tiny_seq2seq("t5")))
    with pytest.raises(InputError, match=r"a decoder alone, where an encoder-decoder is expected.*sft\.py"):
        pretrained.check_architecture(str(tiny_model), encoder_decoder=True)


def test_weights_that_cannot_be_fetched_are_told_with_how_to_bring_them(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    telling = r"gogamza/kobart-base-v2 cannot be loaded.*hf download gogamza/kobart-base-v2 --local-dir FOLDER.*folder"
    with pytest.raises(InputError, match=telling):
        pretrained.config_of("gogamza/kobart-base-v2")
