"""One record -> prompt and completion: the only home of prompts, instructions and templates."""

import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from alignment.arguments import FORMS
from alignment.errors import InputError
from alignment.records import Record
from alignment.run import is_main_process, say, write_json

BARE = "dialogue"  # the form of encoder-decoders: what they read is the dialogue, what they write its summary

SYSTEM = {"ko": "당신은 대화를 요약하는 전문가입니다.", "en": "You are an expert at summarising dialogues."}
# By phase; a model is used with the first instruction of the last phase that it was trained in.
INSTRUCTIONS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {
        "ko": ("다음 대화를 간결하게 요약해주세요.",),
        "en": ("Summarise the following dialogue concisely.",),
    },
    2: {
        "ko": (
            "다음 대화를 요약해주세요.",
            "아래 대화의 핵심 내용을 정리해주세요.",
            "주어진 대화를 간단히 요약하세요.",
            "다음 대화에서 중요한 정보를 추출해 요약하세요.",
            "대화 내용을 한 문단으로 요약해주세요.",
        ),
        "en": (
            "Summarise the following dialogue.",
            "Set out the key points of the dialogue below.",
            "Briefly summarise the given dialogue.",
            "Extract the important information from the following dialogue and summarise it.",
            "Summarise the dialogue in one paragraph.",
        ),
    },
}

_TAG = re.compile(r"#\w+#")


def language(text: str) -> str:
    """`ko` where at least a tenth of the letters outside tags such as #Person1# are Hangul, else `en`."""
    letters = [c for c in _TAG.sub("", text) if c.isalpha()]
    hangul = sum("가" <= c <= "힣" or "ㄱ" <= c <= "ㆎ" for c in letters)  # ㅋㅋ, ㅇㅇ
    return "ko" if hangul * 10 >= len(letters) else "en"


def render(dialogue: str, instruction: str, form: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as text, up to where the summary begins.

    Raises:
        InputError: An unknown form, or `template` with a tokenizer that has no chat template.
    """
    if form == BARE:
        return dialogue
    if form == "instruction":
        return f"### Instruction:\n{instruction}\n\n### Input:\n{dialogue}\n\n### Response:\n"
    system = SYSTEM[language(dialogue)]
    if form == "chat":
        return f"<|system|>\n{system}\n<|user|>\n{instruction}\n\n{dialogue}\n<|assistant|>\n"
    if form == "template":
        return _template_prompt(f"{system} {instruction}\n\n{dialogue}", tokenizer)
    raise InputError(f"prompt form {form}: expected one of {', '.join(FORMS)}.")


def _template_prompt(content: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """All that a chat template puts before an answer: of a model that thinks first also its empty thoughts."""
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "끝"}]
    prompt = _apply_template(tokenizer, turns[:1])
    before = _apply_template(tokenizer, turns).rpartition("끝")[0]
    more = before.removeprefix(prompt).strip() if before.startswith(prompt) else ""
    if not more:  # a blank alone is the template's slip
        return prompt
    return before if any(token.content in more for token in tokenizer.added_tokens_decoder.values()) else prompt


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    if tokenizer.chat_template is None:
        raise InputError("--prompt_form template: this model has no chat template; use instruction or chat.")
    # `enable_thinking` is read by the templates of models that think first (Qwen3) and ignored by the others.
    is_prompt = messages[-1]["role"] == "user"
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=is_prompt, enable_thinking=False
    )


def end_token_id(form: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a summary: the template's end of turn, or else the tokenizer's end token."""
    if form != "template":
        return tokenizer.eos_token_id
    text = _apply_template(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": "끝"}])
    tail = tokenizer(text.rpartition("끝")[2], add_special_tokens=False).input_ids
    added = tokenizer.added_tokens_decoder  # Gemma's <end_of_turn> is special there, and not among all_special_ids
    return tail[0] if tail and tail[0] in added and added[tail[0]].special else tokenizer.eos_token_id


def encode_prompt(prompt: str, form: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a rendered prompt; a chat template brings its own begin token."""
    return tokenizer(prompt, add_special_tokens=form != "template").input_ids


@dataclass(frozen=True)
class Shortened:
    """A dialogue that lost turns to fit: its id, and how many turns it had and kept, or 0 where it was left out."""

    id: str
    turns: int
    kept_turns: int


def shorten(dialogue: str, fits: Callable[[str], bool]) -> str | None:
    """The dialogue less as few whole turns as it takes to fit, or None where not even the first turn fits.

    Turns go from the middle outwards: openings say who speaks and why, endings what was agreed. But where a tenth of
    them, the longest after the first, is as much as is too much, and that leaves more than twice as many, they go: as
    with a text pasted into one.
    """
    turns = dialogue.split("\n")
    number = len(turns)
    inwards = [i for pair in zip(range(number), range(number - 1, -1, -1), strict=True) for i in pair]
    best = _most_that_fit(turns, list(dict.fromkeys(inwards)), fits)
    if 0 < len(best) < number / 2:
        by_length = _most_that_fit(turns, [0, *sorted(range(1, number), key=lambda i: len(turns[i]))], fits)
        few = number - len(by_length) <= max(1, number // 10)
        best = by_length if few and len(by_length) > 2 * len(best) else best
    return "\n".join(best) if best else None


def _most_that_fit(turns: list[str], order: list[int], fits: Callable[[str], bool]) -> list[str]:
    """As many turns as fit of those first in an order, by bisection; in their own order."""
    kept: list[str] = []
    low, high = 1, len(order)
    while low <= high:
        middle = (low + high) // 2
        candidate = [turns[i] for i in sorted(order[:middle])]
        if fits("\n".join(candidate)):
            kept, low = candidate, middle + 1
        else:
            high = middle - 1
    return kept


def fit_records(
    records: list[Record],
    form: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    reserved_tokens: int | None = None,
    bad_rows: str | None = None,
) -> tuple[list[Record], list[Shortened]]:
    """The records with too long dialogues shortened by whole turns, and the list of those.

    Args:
        max_tokens: Tokens that prompt and summary may take together.
        reserved_tokens: Tokens kept for a summary that is yet to be generated (0 where a decoder of its own writes
            it); by default the reference's length.
        bad_rows: `skip` leaves out what does not fit at all; else it is an error, which names that way out where the
            user has it (`error`).

    Raises:
        InputError: The first turn with the summary, or the summary alone, is too long, and not to be left out.
    """
    instructions = [text for by_language in INSTRUCTIONS.values() for texts in by_language.values() for text in texts]
    longest = max(instructions, key=lambda text: len(tokenizer(text).input_ids))
    fitted, shortened, too_long = [], [], []
    for record in records:
        reserve = reserved_tokens
        if reserve is None:
            reserve = len(tokenizer(record.references[0], add_special_tokens=False).input_ids) + 1
        room = max_tokens - reserve

        def fits(dialogue: str, room: int = room) -> bool:
            return len(encode_prompt(render(dialogue, longest, form, tokenizer), form, tokenizer)) <= room

        dialogue = record.dialogue if fits(record.dialogue) else shorten(record.dialogue, fits)
        if dialogue is None:
            too_long.append(record.id)
            shortened.append(Shortened(record.id, record.dialogue.count("\n") + 1, 0))
            continue
        if dialogue != record.dialogue:
            counts = record.dialogue.count("\n") + 1, dialogue.count("\n") + 1
            shortened.append(Shortened(record.id, *counts))
        fitted.append(replace(record, dialogue=dialogue))
    if too_long and (bad_rows != "skip" or not fitted):
        cure = "train with a higher --max_length (up to the model's context)"
        cure = "or lower --max_new_tokens" if reserved_tokens else cure
        cure += ", or go on without it: --bad_rows skip" if bad_rows == "error" else ""
        besides = "" if form == BARE else ", with room for the summary,"
        more = f" and {len(too_long) - 10} more" if len(too_long) > 10 else ""
        raise InputError(
            f"Dialogue {', '.join(too_long[:10])}{more}: the first turn{besides} is longer than the "
            f"{max_tokens} tokens that fit. Split the turn, {cure}."
        )
    return fitted, shortened


def write_shortened(shortened: list[Shortened], path: Path) -> None:
    """Writes the list of what dialogues lost, if any did, and says so; else there is no such file."""
    if not is_main_process():
        return
    if not shortened:
        path.unlink(missing_ok=True)  # of an earlier run
    else:
        write_json([asdict(item) for item in shortened], path)
        say(f"{len(shortened)} dialogues were too long: {path} lists what each lost, {most_lost(shortened)}.")


def most_lost(shortened: list[Shortened]) -> str:
    """The one that lost the most turns, in words."""
    most = max(shortened, key=lambda item: item.turns - item.kept_turns)
    return f"the most: {most.turns} turns to {most.kept_turns}"


def instructions_for(record: Record, phase: int, which: str = "first", seed: int = 0) -> tuple[str, ...]:
    """The instructions that a record is trained with in a phase: the first, `all`, or one at `random` by its id."""
    choices = INSTRUCTIONS[phase][language(record.dialogue)]
    if which == "all":
        return choices
    if which == "random":
        return (random.Random(f"{seed} {record.id}").choice(choices),)
    return choices[:1]


def prompt_for(record: Record, phase: int, form: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt that a model trained up to `phase` is used with."""
    return render(record.dialogue, instructions_for(record, phase)[0], form, tokenizer)


def encode_example(
    record: Record, instruction: str, form: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    """A training example: `input_ids` and `labels` (T tokens each), with loss on the summary and its end token only."""
    prompt = encode_prompt(render(record.dialogue, instruction, form, tokenizer), form, tokenizer)
    summary = tokenizer(record.references[0], add_special_tokens=False).input_ids
    completion = [*summary, end_token_id(form, tokenizer)]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
