"""alignment/dialogue.py: the exact prompts, what is learned of them, and dialogues cut to fit by whole turns."""

import copy

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from alignment.data import EMBEDDED
from alignment.dialogue import (
    INSTRUCTIONS,
    Shortened,
    encode_example,
    encode_prompt,
    end_token_id,
    fit_records,
    instructions_for,
    language,
    prompt_for,
    render,
    shorten,
    write_shortened,
)
from alignment.errors import InputError
from alignment.records import Record

KO = "#Person1#: 내일 3시에 볼까?\n#Person2#: 좋아, 역에서 봐."
EN = "Amanda: Shall we meet at 3?\nJerry: Fine, at the station."
# Begin token, and turns that end in <end>, not in the tokenizer's own end token: as Gemma's and Qwen's templates do.
TEMPLATE = (
    "<begin>{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def templated(tiny_tokenizer):
    """The tiny tokenizer as one that puts a begin token before every text, with a chat template that writes it too."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<begin>", "extra_special_tokens": ["<turn>", "<end>"]})
    tokenizer.add_bos_token = True
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def record(dialogue=KO, summary="둘은 내일 만난다.", name="a"):
    return Record(name, dialogue, (summary,))


def turns(count, words=1):
    return "\n".join(f"#Person{i % 2 + 1}#: {f'{i}번째 말 ' * words}".strip() for i in range(count))


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_the_seed_instructions_stand_word_for_word():
    assert INSTRUCTIONS[1]["ko"] == ("다음 대화를 간결하게 요약해주세요.",)
    assert INSTRUCTIONS[2]["ko"] == (
        "다음 대화를 요약해주세요.",
        "아래 대화의 핵심 내용을 정리해주세요.",
        "주어진 대화를 간단히 요약하세요.",
        "다음 대화에서 중요한 정보를 추출해 요약하세요.",
        "대화 내용을 한 문단으로 요약해주세요.",
    )


def test_english_has_as_many_instructions_and_no_hangul():
    for phase in (1, 2):
        assert len(set(INSTRUCTIONS[phase]["en"])) == len(INSTRUCTIONS[phase]["ko"])
        assert all(text.isascii() for text in INSTRUCTIONS[phase]["en"])


@pytest.mark.parametrize(
    ("dialogue", "instruction"),
    [(KO, "다음 대화를 간결하게 요약해주세요."), (EN, "Summarise the following dialogue concisely.")],
)
def test_instruction_form(dialogue, instruction, tiny_tokenizer):
    expected = f"### Instruction:\n{instruction}\n\n### Input:\n{dialogue}\n\n### Response:\n"
    assert prompt_for(record(dialogue), 1, "instruction", tiny_tokenizer) == expected


@pytest.mark.parametrize(
    ("dialogue", "system", "instruction"),
    [
        (KO, "당신은 대화를 요약하는 전문가입니다.", "다음 대화를 요약해주세요."),
        (EN, "You are an expert at summarising dialogues.", "Summarise the following dialogue."),
    ],
)
def test_chat_form(dialogue, system, instruction, tiny_tokenizer):
    expected = f"<|system|>\n{system}\n<|user|>\n{instruction}\n\n{dialogue}\n<|assistant|>\n"
    assert prompt_for(record(dialogue), 2, "chat", tiny_tokenizer) == expected


def test_template_form_is_the_models_own_template_ready_for_an_answer(templated):
    user = f"당신은 대화를 요약하는 전문가입니다. 다음 대화를 간결하게 요약해주세요.\n\n{KO}"
    expected = f"<begin><turn>user\n{user}<end>\n<turn>assistant\n"
    assert prompt_for(record(), 1, "template", templated) == expected


def test_template_form_has_one_begin_token(templated):
    begin = templated.bos_token_id
    ids = encode_prompt(prompt_for(record(), 1, "template", templated), "template", templated)
    assert (ids[0], ids.count(begin)) == (begin, 1)


def test_other_forms_have_the_begin_token_of_the_tokenizer(templated):
    ids = encode_prompt(prompt_for(record(), 1, "instruction", templated), "instruction", templated)
    assert (
        ids
        == templated("x").input_ids[:1]
        + templated(
            render(KO, "다음 대화를 간결하게 요약해주세요.", "instruction", templated), add_special_tokens=False
        ).input_ids
    )


def test_template_form_ends_with_the_templates_end_of_turn(templated):
    assert end_token_id("template", templated) == templated.convert_tokens_to_ids("<end>") != templated.eos_token_id


def test_an_end_of_turn_may_be_special_among_added_tokens_alone(templated):
    gemma = copy.deepcopy(templated)
    gemma.add_tokens([AddedToken("<stop>", special=True)])
    gemma.chat_template = TEMPLATE.replace("<end>", "<stop>")
    end = gemma.convert_tokens_to_ids("<stop>")
    assert end not in gemma.all_special_ids
    assert end_token_id("template", gemma) == end


def test_template_that_writes_no_end_token_falls_back_to_the_tokenizers(templated):
    plain = copy.deepcopy(templated)
    plain.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert end_token_id("template", plain) == plain.eos_token_id


def test_a_model_that_thinks_first_is_told_not_to(templated):
    qwen = copy.deepcopy(templated)
    qwen.chat_template = TEMPLATE + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    assert prompt_for(record(), 1, "template", qwen).endswith("<turn>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("prompt", ["<turn>assistant\n<think>\n", "<turn>assistant\n"])
def test_a_summary_comes_after_the_thoughts_of_a_model_that_always_has_some(prompt, templated):
    thinking = copy.deepcopy(templated)
    thinking.add_tokens(["<think>", "</think>"])
    thinking.chat_template = (
        "{% for m in messages %}<turn>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}" + prompt + "{% endif %}"
    )
    assert prompt_for(record(), 1, "template", thinking).endswith("<turn>assistant\n<think>\n\n</think>\n\n")


def test_unknown_form_names_those_there_are(tiny_tokenizer):
    with pytest.raises(InputError, match=r"prompt form chatml: expected one of instruction, chat, template"):
        render(KO, "요약", "chatml", tiny_tokenizer)


def test_template_form_without_a_chat_template_says_what_to_use(tiny_tokenizer):
    with pytest.raises(InputError, match=r"no chat template; use instruction or chat"):
        render(KO, "요약", "template", tiny_tokenizer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KO, "ko"),
        (EN, "en"),
        ("#Person1#: 네\n#Person2#: 네", "ko"),  # tags count for nothing, or every masked dialogue would be English
        ("#Person1#: OK, API deploy 하자", "ko"),
        ("#Person1#: 네 010-1234-5678, 14:30, 99,000 !!!", "ko"),  # of letters alone
        ("Jin: I ate 떡볶이 yesterday and it was wonderful", "en"),
        ("#Person1#: yes\n#Person2#: no", "en"),
    ],
)
def test_language(text, expected):
    assert language(text) == expected


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["instruction", "chat", "template"])
def test_loss_falls_on_the_summary_and_its_end_token_only(form, templated):
    instruction = INSTRUCTIONS[1]["ko"][0]
    example = encode_example(record(), instruction, form, templated)
    supervised = [label for label in example["labels"] if label != -100]
    assert templated.decode(supervised[:-1]) == "둘은 내일 만난다."
    assert supervised[-1] == end_token_id(form, templated)

    prompt = encode_prompt(render(KO, instruction, form, templated), form, templated)
    assert example["input_ids"] == prompt + supervised
    assert example["labels"] == [-100] * len(prompt) + supervised


# --- instructions -----------------------------------------------------------------------------------------------------


def test_all_gives_each_of_the_five_and_first_the_first():
    assert instructions_for(record(), 2, "all") == INSTRUCTIONS[2]["ko"]
    assert instructions_for(record(EN), 2, "all") == INSTRUCTIONS[2]["en"]
    assert instructions_for(record(), 2) == ("다음 대화를 요약해주세요.",)
    assert instructions_for(record(), 1) == ("다음 대화를 간결하게 요약해주세요.",)


def test_random_depends_on_id_and_seed_alone():
    def drawn(seed, dialogue=KO):
        return [instructions_for(record(dialogue, name=str(i)), 2, "random", seed) for i in range(20)]

    assert drawn(1) == drawn(1) == drawn(1, KO + "\n#Person1#: 그래.")
    assert drawn(1) != drawn(2)


def test_random_spreads_over_all_five():
    drawn = [instructions_for(record(name=f"train_{i}"), 2, "random", 42)[0] for i in range(1000)]
    counts = [drawn.count(instruction) for instruction in INSTRUCTIONS[2]["ko"]]
    assert sum(counts) == 1000
    assert min(counts) > 150  # of 200 expected, with a standard deviation of 13


# --- shortening -------------------------------------------------------------------------------------------------------


def by_hand(dialogue, fits):
    """The longest that fits of all ways to keep as many turns at the head as at the tail, or one more."""
    lines = dialogue.split("\n")
    ways = ["\n".join(lines[: (n + 1) // 2] + lines[len(lines) - n // 2 :]) for n in range(1, len(lines) + 1)]
    return next(filter(fits, reversed(ways)), None)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_shorten_removes_as_little_as_brute_force(count, tiny_tokenizer):
    dialogue = "\n".join(turns(count, words=1).split("\n")[i] + " 음" * (i * 7 % 5) for i in range(count))
    lengths = set()
    for most in range(len(tiny_tokenizer(dialogue).input_ids) + 2):

        def fits(text, most=most):
            return len(tiny_tokenizer(text).input_ids) <= most

        kept = shorten(dialogue, fits)
        assert kept == by_hand(dialogue, fits)
        lengths.add(kept and kept.count("\n") + 1)
    assert lengths == {None, *range(1, count + 1)}  # the budgets met every case


def test_shorten_keeps_whole_turns_first_and_last_among_them():
    dialogue = turns(9)
    kept = shorten(dialogue, lambda text: text.count("\n") < 4).split("\n")
    assert kept == [dialogue.split("\n")[i] for i in (0, 1, 7, 8)]


@pytest.mark.parametrize("place", [1, 5, 30])
def test_a_text_pasted_into_a_turn_goes_instead_of_most_turns(place):
    talk = [f"A: {i}" for i in range(31)]
    talk[place] = "B: " + "긴 글 " * 500
    kept = shorten("\n".join(talk), lambda text: len(text) < 1000).split("\n")
    assert kept == [turn for turn in talk if len(turn) < 100]


def test_short_answers_are_not_kept_instead_of_what_is_said():
    talk = [line for i in range(200) for line in (f"상담사: {i}번째 절차를 설명해 드리겠습니다.", "고객: 네.")]
    kept = shorten("\n".join(talk), lambda text: len(text) < 1500).split("\n")
    assert kept == [*talk[: (len(kept) + 1) // 2], *talk[len(talk) - len(kept) // 2 :]]


def test_shorten_gives_none_where_not_even_the_first_turn_fits():
    assert shorten(turns(5), lambda text: False) is None


def test_fit_records_lists_what_it_shortened_and_leaves_the_rest(tiny_tokenizer):
    short, long = record(name="short"), record(turns(40, words=3), "마흔 번 말했다.", "long")
    fitted, shortened = fit_records([short, long], "instruction", tiny_tokenizer, 400)
    assert fitted[0] == short
    assert [(item.id, item.turns) for item in shortened] == [("long", 40)]
    assert 2 < shortened[0].kept_turns == fitted[1].dialogue.count("\n") + 1 < 40
    assert set(fitted[1].dialogue.split("\n")) < set(long.dialogue.split("\n"))


def test_what_fits_to_the_token_keeps_all_its_turns(tiny_tokenizer):
    original = record(turns(6))
    instructions = [text for by_language in INSTRUCTIONS.values() for texts in by_language.values() for text in texts]
    most = max(len(encode_example(original, text, "chat", tiny_tokenizer)["input_ids"]) for text in instructions)
    assert fit_records([original], "chat", tiny_tokenizer, most) == ([original], [])
    assert fit_records([original], "chat", tiny_tokenizer, most - 1)[1] == [Shortened("a", turns=6, kept_turns=5)]


def test_where_nothing_was_shortened_there_is_no_list(tmp_path):
    path = tmp_path / "shortened.json"
    path.write_text("of an earlier run")
    for _ in range(2):
        write_shortened([], path)
        assert not path.exists()


@pytest.mark.parametrize("form", ["instruction", "chat", "template"])
def test_whatever_the_instruction_a_fitted_example_fits_with_its_whole_summary(form, templated):
    original = record(turns(40, words=2), "끝까지 남는 긴 요약. " * 5)
    assert all(length <= 330 for length in fitted_lengths(original, form, templated, 330))


def test_the_longest_instruction_is_found_in_tokens_not_in_letters():
    # An English tokenizer spends three tokens on a Hangul syllable, so that its longest instruction is a Korean one.
    lines = (EMBEDDED["embedded-en"] / "train.jsonl").read_text("utf-8").splitlines()
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(lines, vocab_size=1500, special_tokens=["<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")
    for max_tokens in range(700, 730, 3):
        lengths = fitted_lengths(record(turns(40), "짧다."), "instruction", tokenizer, max_tokens)
        assert all(length <= max_tokens for length in lengths)


def fitted_lengths(original, form, tokenizer, max_tokens):
    """Tokens of the fitted record's example with each instruction of either phase."""
    (fitted,), shortened = fit_records([original], form, tokenizer, max_tokens)
    assert shortened
    assert fitted.references == original.references
    instructions = [text for phase in (1, 2) for text in instructions_for(fitted, phase, "all")]
    return [len(encode_example(fitted, text, form, tokenizer)["input_ids"]) for text in instructions]


def test_fit_records_reserves_room_for_a_summary_yet_to_come(tiny_tokenizer):
    dialogue = Record("a", turns(40), ())
    (fitted,), _ = fit_records([dialogue], "instruction", tiny_tokenizer, 500, reserved_tokens=200)
    prompt = encode_prompt(prompt_for(fitted, 2, "instruction", tiny_tokenizer), "instruction", tiny_tokenizer)
    assert 200 < len(prompt) <= 300


@pytest.mark.parametrize(
    ("dialogue", "summary"), [("#Person1#: " + "길게 " * 500, "짧다."), (KO, "긴 요약 " * 500)], ids=["turn", "summary"]
)
def test_a_turn_or_summary_beyond_all_room_is_an_error_with_its_id(dialogue, summary, tiny_tokenizer):
    with pytest.raises(InputError, match=r"(?s)Dialogue a: .* tokens .*--max_length"):
        fit_records([record(dialogue.strip(), summary.strip())], "instruction", tiny_tokenizer, 300)


def test_what_does_not_fit_at_all_is_left_out_where_asked_and_listed(tiny_tokenizer):
    short, long = record("#Person1#: 네.", "인사", name="a"), record("#Person1#: " + "길게 " * 500, "인사", name="b")
    fitted, shortened = fit_records([short, long], "instruction", tiny_tokenizer, 400, bad_rows="skip")
    assert fitted == [short]
    assert shortened == [Shortened("b", turns=1, kept_turns=0)]
    with pytest.raises(InputError, match="Dialogue b: the first turn"):
        fit_records([short, long], "instruction", tiny_tokenizer, 400)
