"""A trained model in use: dialogues in, summaries out, with the prompt that it was trained with."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment import dialogue
from alignment.arguments import ModelArguments, PromptArguments
from alignment.ensemble import Member, check_alike, load_average, shares
from alignment.errors import InputError
from alignment.generation import Decoding, generate
from alignment.journal import Journal
from alignment.models import as_trained, load_for_use
from alignment.pretrained import base_of
from alignment.records import Record
from alignment.run import read_manifest, say
from alignment.weights import weights_of


class Summarizer:
    """Summarises dialogues with a base model, a whole model or an adapter folder.

    Example: `Summarizer.load("runs/sft/phase2").summarize(["#Person1#: 내일 3시에 볼까?\\n#Person2#: 좋아."])`
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        form: str = "instruction",
        phase: int = 1,
        max_new_tokens: int = 128,
        origin: dict[str, Any] | None = None,
        source_prefix: str = "",
        max_length: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.form, self.phase = model, tokenizer, form, phase
        self.max_new_tokens, self.origin = max_new_tokens, origin or {}
        self.source_prefix, self.max_length = source_prefix, max_length

    @classmethod
    def load(
        cls,
        name_or_path: str,
        model_args: ModelArguments | None = None,
        prompt_args: PromptArguments | None = None,
    ) -> "Summarizer":
        """Loads a model as it was trained, which its manifest says, in whatever the arguments leave open.

        That is quantisation, type, revision, prompt form, length of a summary, and what an encoder reads. The result's
        `origin` says what was loaded, and how.
        """
        return cls._as_trained(name_or_path, model_args, prompt_args, lambda config: load_for_use(name_or_path, config))

    @classmethod
    def load_average(
        cls,
        folders: list[str],
        weights: list[float] | None = None,
        model_args: ModelArguments | None = None,
        prompt_args: PromptArguments | None = None,
    ) -> "Summarizer":
        """Loads the mean of several adapters (`ensemble.load_average`), in use as the first of them."""
        parts = shares(weights, len(folders))
        summarizer = cls._as_trained(
            folders[0], model_args, prompt_args, lambda config: load_average(folders, parts, config)
        )
        summarizer.origin["average"] = [
            [folder, part, weights_of(folder)] for folder, part in zip(folders, parts, strict=True)
        ]
        return summarizer

    @classmethod
    def _as_trained(
        cls,
        name_or_path: str,
        model_args: ModelArguments | None,
        prompt_args: PromptArguments | None,
        load: Callable[[ModelArguments], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    ) -> "Summarizer":
        prompt_args = prompt_args or PromptArguments()
        path = Path(name_or_path)
        manifest = read_manifest(path) or {}
        trained = manifest.get("settings", {})
        model_args = as_trained(model_args or ModelArguments(), trained)
        model, tokenizer = load(model_args)
        encoder_decoder = model.config.is_encoder_decoder
        usual = dialogue.BARE if encoder_decoder else "instruction"
        form = prompt_args.prompt_form or manifest.get("prompt_form", usual)
        if not manifest and not prompt_args.prompt_form and base_of(path):
            say(f"{path}: no manifest.json beside this adapter. It gets the prompts of phase 1 in the form `{form}`.")
        most = prompt_args.max_new_tokens or trained.get("max_new_tokens") or 128
        origin = {"model": name_or_path, "weights": weights_of(path), "use": asdict(model_args)}
        read = (trained.get("source_prefix", ""), trained.get("max_length")) if encoder_decoder else ("", None)
        return cls(model, tokenizer, form, manifest.get("phase", 1), most, origin, *read)

    def journal(
        self,
        path: Path,
        dialogues: list[str],
        decoding: Decoding | None = None,
        others: Sequence["Summarizer"] = (),
        weights: list[float] | None = None,
    ) -> Journal:
        """A journal beside `path` for these dialogues, these models and this decoding (in batches of whatever size)."""
        facts = self.origin | {
            "dialogues": hashlib.sha256("\0".join(dialogues).encode()).hexdigest(),
            "prompt": [self.form, self.phase, self.max_new_tokens],
            "decoding": asdict(replace((decoding or Decoding()).for_model(self.model), batch_size=1)),
        }
        if others:
            facts |= {"others": [[one.origin, one.form, one.phase] for one in others], "shares": weights}
        return Journal(path, facts)

    def prompts(self, dialogues: list[str]) -> list[list[int]]:
        """The token ids of each dialogue's prompt; dialogues beyond the model's context lose whole turns."""
        config = self.model.config.get_text_config()
        context = self.max_length or getattr(config, "max_position_embeddings", None)
        reserved = 0 if config.is_encoder_decoder else self.max_new_tokens
        places: dict[str, int] = {}  # of the first of equal ones, which are encoded once
        for i, text in enumerate(dialogues, 1):
            places.setdefault(text, i)
        records = [Record(f"no. {i}", self.source_prefix + text, ()) for text, i in places.items()]
        if context:
            records, shortened = dialogue.fit_records(records, self.form, self.tokenizer, context, reserved)
            if shortened:
                most = dialogue.most_lost(shortened)
                say(f"{len(shortened)} dialogues were shortened by whole turns to fit {context} tokens, {most}.")
        texts = [dialogue.prompt_for(record, self.phase, self.form, self.tokenizer) for record in records]
        encoded = (dialogue.encode_prompt(text, self.form, self.tokenizer) for text in texts)
        by_dialogue = dict(zip(places, encoded, strict=True))
        return [by_dialogue[text] for text in dialogues]

    def summarize(
        self,
        dialogues: list[str],
        decoding: Decoding | None = None,
        description: str | None = None,
        journal: Journal | None = None,
        others: Sequence["Summarizer"] = (),
        weights: list[float] | None = None,
    ) -> list[str]:
        """One summary for each dialogue, in order.

        Args:
            decoding: By default greedy, or as an encoder-decoder was trained.
            description: Shown with a progress bar, or None for none.
            journal: Texts in it are not made again, and new ones are written to it as they come.
            others: Models of the same tokens, whose next-token distributions are averaged with this one's.
            weights: One for this model and one for each of the others; equal by default.

        Raises:
            InputError: A turn alone is beyond the context, or the others have another tokenizer.
        """
        if others:
            check_alike({str(one.origin.get("model")): (one.model, one.tokenizer) for one in (self, *others)})
            if len({dialogue.end_token_id(one.form, one.tokenizer) for one in (self, *others)}) > 1:
                raise InputError(
                    "--combine distributions: in their prompt forms the models end a summary with different tokens "
                    f"({', '.join(one.form for one in (self, *others))}). Use --combine mbr, which compares texts."
                )
        done = journal.done if journal else {}
        missing = [i for i in range(len(dialogues)) if i not in done]
        prompts, *further = ([own[i] for i in missing] for own in (one.prompts(dialogues) for one in (self, *others)))
        texts = generate(
            self.model,
            self.tokenizer,
            prompts,
            end_token_id=dialogue.end_token_id(self.form, self.tokenizer),
            max_new_tokens=self.max_new_tokens,
            decoding=decoding,
            description=description,
            on_text=(lambda i, text: journal.add(missing[i], text)) if journal else None,
            others=[Member(other.model, own) for other, own in zip(others, further, strict=True)],
            weights=shares(weights, 1 + len(others)),
            places=missing,
        )
        texts_by_index = done | dict(zip(missing, texts, strict=True))
        return [texts_by_index[i] for i in range(len(dialogues))]
