"""Summaries from a model: length-sorted batches, greedy, sampling or beams, in the order asked for."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import InputError
from alignment.head import contiguous_head
from alignment.progress import Progress


@dataclass
class Decoding:
    """How tokens are chosen: greedy by default, sampling at a temperature, or beams."""

    do_sample: bool = field(default=False, metadata={"help": "Sample instead of taking the likeliest token."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of sampling."})
    top_p: float = field(default=1.0, metadata={"help": "Sample from the likeliest tokens that hold this probability."})
    num_beams: int = field(default=1, metadata={"help": "Beams; 1 for none."})
    length_penalty: float = field(default=1.0, metadata={"help": "Above 1 beams favour longer summaries."})
    no_repeat_ngram_size: int = field(
        default=0,
        metadata={"help": "Forbid n-grams of this size to come twice in dialogue and summary together; 0: no."},
    )
    batch_size: int = field(default=16, metadata={"help": "Dialogues summarised at a time."})
    seed: int = field(default=42, metadata={"help": "Seed of sampling."})

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_beams < 1:
            raise InputError(f"--batch_size {self.batch_size}, --num_beams {self.num_beams}: expected 1 or more.")


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    end_token_id: int,
    max_new_tokens: int,
    decoding: Decoding | None = None,
    description: str | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[str]:
    """Generates one text for each prompt, cut at the end token; several processes share the prompts.

    Args:
        prompts: Token ids of each prompt (P tokens, unpadded); batches are padded on the left.
        max_new_tokens: Longest completion (C tokens).
        description: Shown with a progress bar, or None for none.
        on_text: Called with the index of a prompt and its text as soon as it is there, in the process that made it.

    Returns:
        The texts in the order of the prompts, without special tokens and outer spaces.
    """
    decoding = decoding or Decoding()
    # top_k 0: neither filter nor sort the vocabulary, which on small models costs more than the layers do.
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.do_sample else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=1,  # an end token at once would be an empty summary
        do_sample=decoding.do_sample,
        num_beams=decoding.num_beams,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        repetition_penalty=1.0,  # what is left unset comes from the model's own generation_config.json
        eos_token_id=end_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    state = PartialState()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    order += order[-1:] * (-len(order) % state.num_processes)  # with sharded weights all processes generate together
    order = order[state.process_index :: state.num_processes]
    texts: list[tuple[int, str]] = []
    training = model.training
    model.eval()
    shown = description if state.is_main_process else None
    with contiguous_head(model), Progress(shown, total=len(order)) as progress, torch.inference_mode():
        for start in range(0, len(order), decoding.batch_size):
            rows = order[start : start + decoding.batch_size]
            if decoding.do_sample:  # its own noise for each batch: of each process, and after a resume
                torch.manual_seed(random.Random(f"{decoding} {len(prompts)} {rows}").getrandbits(63))
            batch = tokenizer.pad({"input_ids": [prompts[i] for i in rows]}, padding_side="left", return_tensors="pt")
            batch = batch.to(model.device)
            output = model.generate(**batch, generation_config=config)
            for i, completion in zip(rows, output[:, batch.input_ids.shape[1] :].tolist(), strict=True):  # B x C
                ids = completion[: completion.index(end_token_id)] if end_token_id in completion else completion
                texts.append((i, tokenizer.decode(ids, skip_special_tokens=True).strip()))
                if on_text:
                    on_text(*texts[-1])
            progress.advance(len(rows))
    model.train(training)
    if state.num_processes > 1:
        texts = gather_object(texts)
    return [text for _, text in sorted(dict(texts).items())]
