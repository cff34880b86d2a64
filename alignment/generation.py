"""Summaries from a model: length-sorted batches, greedy, sampling or beams, in the order asked for."""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignment.progress import Progress


@dataclass
class Decoding:
    """How tokens are chosen: greedy by default, sampling at a temperature, or beams."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    end_token_id: int,
    max_new_tokens: int,
    batch_size: int = 16,
    decoding: Decoding | None = None,
    description: str | None = None,
) -> list[str]:
    """Generates one text for each prompt, cut at the end token.

    Args:
        prompts: Token ids of each prompt (P tokens, unpadded); batches are padded on the left.
        max_new_tokens: Longest completion (C tokens).
        batch_size: Prompts in a batch (B); sorted by length, so that little is padding.
        description: Shown with a progress bar, or None for none.

    Returns:
        The texts in the order of the prompts, without special tokens and outer spaces.
    """
    decoding = decoding or Decoding()
    # top_k 0: neither filter nor sort the vocabulary, which on small models costs more than the layers do.
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.do_sample else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=decoding.do_sample,
        num_beams=decoding.num_beams,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        eos_token_id=end_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    training = model.training
    model.eval()
    with Progress(description, total=len(prompts)) as progress, torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [prompts[i] for i in rows]}, padding_side="left", return_tensors="pt")
            batch = batch.to(model.device)
            output = model.generate(**batch, generation_config=config)
            completions = output[:, batch.input_ids.shape[1] :]  # B x C
            for i, completion in zip(rows, completions, strict=True):
                ids = completion.tolist()
                ids = ids[: ids.index(end_token_id)] if end_token_id in ids else ids
                texts[i] = tokenizer.decode(ids, skip_special_tokens=True).strip()
            progress.advance(len(rows))
    model.train(training)
    return texts
