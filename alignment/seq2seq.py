"""Fine-tuning an encoder-decoder (KoBART, T5, mBART) on dialogues: the baseline that decoders are compared with.

The encoder reads the dialogue and nothing else, the decoder writes the summary. Every weight is trained. The loss, in
training and held out, is the mean over the summaries' tokens, however they are split into micro-batches. Held-out
summaries are written by `generate`, as in every other recipe. That leaves nothing that transformers' `Seq2SeqTrainer`
is for, and on several processes its held-out loss would count some rows twice.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AddedToken,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from alignment.arguments import ModelArguments, TrainerArguments
from alignment.errors import InputError
from alignment.held_out import HeldOut, HeldOutRouge
from alignment.progress import TrainingProgress
from alignment.records import Record
from alignment.training import ResumableTrainer, add_callbacks

# What names are masked with in the Korean DialogSum.
TAGS = (
    *(f"#Person{number}#" for number in range(1, 8)),
    "#PhoneNumber#", "#Address#", "#PassportNumber#", "#DateOfBirth#", "#SSN#", "#CardNumber#", "#CarNumber#",
    "#Email#",
)  # fmt: skip
LANGUAGE_CODES = {"ko": "ko_KR", "en": "en_XX"}  # mBART's


@dataclass
class BaselineArguments(TrainerArguments, TrainingArguments):
    """transformers' `TrainingArguments` with the settings usual for KoBART on dialogues."""

    MEASURES = ("loss", "rouge")

    output_dir: str | None = field(default="runs/baseline", metadata={"help": "Where the model is written."})
    source_prefix: str = field(default="", metadata={"help": 'Put before each dialogue, for T5: "summarize: ".'})
    special_tokens: bool = field(
        default=False,
        metadata={"help": "One token each for #Person1# to #Person7#, #PhoneNumber# and the other masks."},
    )
    max_length: int = field(default=512, metadata={"help": "Tokens of a dialogue that the encoder takes, at most."})
    max_new_tokens: int = field(default=100, metadata={"help": "Longest summary to generate, in tokens."})
    num_beams: int = field(default=4, metadata={"help": "Beams; 1 for none."})
    length_penalty: float = field(default=1.0, metadata={"help": "Above 1 beams favour longer summaries."})
    no_repeat_ngram_size: int = field(
        default=2, metadata={"help": "Forbid n-grams of this size to come twice in a summary; 0: no."}
    )
    rouge_profile: str = field(default="strict", metadata={"help": "Profile of the held-out ROUGE while training."})
    rouge_eval_rows: int = field(default=64, metadata={"help": "Rows to summarise at each evaluation; 0 for none."})

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=20.0, metadata={"help": "Epochs, unless early stopping ends it before."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save."})
    metric_for_best_model: str | None = field(default="eval_loss", metadata={"help": "eval_loss or eval_rouge."})

    def __post_init__(self) -> None:
        for name in ("max_length", "max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: expected 1 or more.")
        super().__post_init__()


def whole_weights(args: ModelArguments) -> ModelArguments:
    """The arguments of a model of which every weight is trained, in float32.

    Raises:
        InputError: Adapters, quantisation or another type are asked for.
    """
    defaults = ModelArguments()
    for name, value in vars(args).items():
        if name.startswith(("lora_", "use_", "bnb_", "load_in_")) and value not in (getattr(defaults, name), False):
            raise InputError(
                f"--{name} {value}: has no effect here, where every weight of an encoder-decoder is trained. "
                "Leave it out."
            )
    if args.dtype not in (None, "float32"):
        raise InputError(
            f"--dtype {args.dtype}: the steps of a small learning rate vanish in it. Use float32, with --bf16 true to "
            "compute in bfloat16."
        )
    args.use_peft, args.load_in_4bit, args.load_in_8bit, args.dtype = False, False, False, "float32"
    return args


def set_up_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model_type: str, language: str, tags: bool
) -> PreTrainedTokenizerBase:
    """Teaches the tokenizer one token for each of `TAGS`, if asked for, and mBART's language codes.

    Args:
        model_type: As the model's config says.
        language: `ko` or `en`, of dialogues and summaries alike.
    """
    if tags:
        # Not special ones, which are left out when a summary is decoded.
        tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
        _keep_blanks_around_tags(tokenizer)
    if model_type == "mbart":
        # Source: mBART-50 (arXiv 2008.00401) section 2: the code comes first, on both sides.
        code, end = LANGUAGE_CODES[language], tokenizer.eos_token
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (code, end)]
        template = processors.TemplateProcessing(single=f"{code} $A {end}", special_tokens=ids)
        tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def _keep_blanks_around_tags(tokenizer: PreTrainedTokenizerBase) -> None:
    """Mends tokenizers that begin a word after each added token: `#Person1#은` would come back as `#Person1# 은`.

    Those are the ones that mark the beginning of a word (SentencePiece's way). Here only the beginning of the text is
    one of itself, and every other follows a blank.
    """
    text = f"{TAGS[0]}은 {TAGS[1]}에게 {TAGS[1]}: 간다"
    backend = tokenizer.backend_tokenizer
    if tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text:
        return
    if "WhitespaceSplit" in str(backend.pre_tokenizer):  # T5's, to which line ends and several blanks are one blank
        one_blank = normalizers.Replace(Regex(r"\s+"), " ")
        backend.normalizer = normalizers.Sequence([*filter(None, [backend.normalizer]), one_blank])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    if (found := tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)) != text:
        raise InputError(
            f"--special_tokens true: with them this tokenizer reads {text!r} as {found!r}. Leave the option out."
        )


def encode_examples(
    records: list[Record], tokenizer: PreTrainedTokenizerBase, context_tokens: int | None
) -> list[dict[str, list[int]]]:
    """Training examples: `input_ids` of the dialogue (P tokens) and `labels` of the summary (C tokens, end token last).

    Args:
        context_tokens: The most that the decoder takes; None for no limit.

    Raises:
        InputError: A summary is longer than that.
    """
    examples = []
    for record in records:
        labels = tokenizer(record.references[0]).input_ids
        labels += [] if labels[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id]  # KoBART's adds none
        if context_tokens and len(labels) > context_tokens:
            raise InputError(
                f"Dialogue {record.id}: its summary has {len(labels)} tokens, and the decoder takes {context_tokens}. "
                "Shorten the summary, or leave the row out."
            )
        examples.append({"input_ids": tokenizer(record.dialogue).input_ids, "labels": labels})
    return examples


def set_up_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: BaselineArguments) -> None:
    """Gives the model room for the tokenizer's tokens, and the decoding of `args`, which is saved with it."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if model.config.model_type == "mbart":
        model.config.decoder_start_token_id = tokenizer.eos_token_id
    around = tokenizer("").input_ids  # what stands before and behind each summary: mBART's language code, BART's <s>
    model.generation_config = GenerationConfig(
        decoder_start_token_id=model.config.decoder_start_token_id,
        forced_bos_token_id=around[0] if len(around) > 1 else None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_beams=args.num_beams,
        length_penalty=args.length_penalty,
        no_repeat_ngram_size=args.no_repeat_ngram_size,
        max_new_tokens=args.max_new_tokens,
    )


def loss_over_tokens(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of B x C x V logits and B x C labels: their sum over the update's number of label tokens."""
    loss = F.cross_entropy(
        outputs.logits.flatten(0, 1).float(), labels.flatten(), reduction="sum", label_smoothing=label_smoothing
    )
    return loss / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


class BaselineTrainer(ResumableTrainer, HeldOutRouge):
    """transformers' `Trainer` on examples of `input_ids` and `labels`, with held-out ROUGE."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compute_loss_func = partial(loss_over_tokens, label_smoothing=self.args.label_smoothing_factor)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Summed loss and number of label tokens of each row (B), as `mean_over_tokens` takes them."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits.float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
        return None, losses, (labels != -100).sum(1)


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: BaselineArguments,
    train_examples: list[dict[str, list[int]]],
    eval_examples: list[dict[str, list[int]]],
    held_out: HeldOut,
) -> BaselineTrainer:
    """A trainer on encoded examples, with progress, early stopping and held-out ROUGE."""
    trainer = BaselineTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(train_examples),
        eval_dataset=Dataset.from_list(eval_examples),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),  # makes the decoder's input from the labels
        held_out=held_out if held_out.prompts else None,
    )
    add_callbacks(trainer, TrainingProgress("Baseline"), args.early_stopping_patience)
    return trainer
