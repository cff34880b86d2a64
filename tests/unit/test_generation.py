"""alignment/generation.py against greedy decoding written out: one prompt, no padding, no cache."""

import math
import os
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
)

from alignment import decode, generation
from alignment.cache import ROOM
from alignment.errors import InputError
from alignment.generation import (
    BATCH_TOKENS,
    Decoding,
    EndAtLimit,
    batch_tokens,
    batches,
    decoding_grid,
    draw,
    generate,
)
from alignment.progress import Progress

TEXTS = (
    "둘은 내일 역에서 만나기로 했다.", "네", "#Person1#: 내일 3시에 볼까?\n#Person2#: 좋아, 역에서 봐.", "점심 먹었어?",
    "#Person1#: 안녕하세요.", "그는 회의에 늦었고 사과했다. 그래서 모두가 기다렸다.", "오늘", "응, 그래.",
)  # fmt: skip
ORDER = (3, 0, 2, 7, 1, 5, 4, 6)  # neither sorted by length nor reversed


@pytest.fixture(scope="module")
def model(tiny_model) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer) -> list[list[int]]:
    return [tiny_tokenizer(TEXTS[i]).input_ids for i in ORDER]


@pytest.fixture
def texts_of(model, tiny_tokenizer, prompts):
    """Texts for the prompts; keyword arguments are those of `generate` and of `Decoding`."""

    def run(end_token_id=tiny_tokenizer.eos_token_id, max_new_tokens=6, on_text=None, by=model, **decoding):
        return generate(
            by, tiny_tokenizer, prompts, end_token_id=end_token_id, max_new_tokens=max_new_tokens,
            decoding=Decoding(**decoding), on_text=on_text,
        )  # fmt: skip

    return run


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], end_token_id: int, new_tokens: int, anew=False) -> list[int]:
    """The likeliest tokens, `anew` of those not yet used, up to the end token, which may not be the first."""
    ids = list(prompt)
    for step in range(new_tokens):
        logits = model(torch.tensor([ids])).logits[0, -1]
        if step == 0:
            logits[end_token_id] = -torch.inf
        if anew:
            logits[ids] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == end_token_id:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


def decoded(tokenizer, completions):
    return [tokenizer.decode(ids).strip() for ids in completions]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_texts_come_in_the_order_of_the_prompts_whatever_the_batch(
    batch_size, texts_of, model, prompts, tiny_tokenizer
):
    end = tiny_tokenizer.eos_token_id
    expected = decoded(tiny_tokenizer, [greedy(model, prompt, end, 6) for prompt in prompts])
    assert len(set(expected)) > len(expected) / 2  # texts that were all alike would hide a wrong order
    assert texts_of(batch_size=batch_size) == expected


def test_a_text_is_cut_at_the_end_token_and_the_others_go_on(texts_of, model, prompts, tiny_tokenizer):
    plain = [greedy(model, prompt, tiny_tokenizer.eos_token_id, 6) for prompt in prompts]
    end = plain[0][3]
    expected = [greedy(model, prompt, end, 6) for prompt in prompts]
    assert {len(ids) < 6 for ids in expected} == {True, False}
    assert texts_of(end_token_id=end) == decoded(tiny_tokenizer, expected)


def test_the_end_token_cuts_not_its_text(texts_of, model, prompts, tiny_tokenizer):
    # A token that the model writes, and whose text stands inside another token that it writes.
    completions = [greedy(model, prompt, tiny_tokenizer.eos_token_id, 6) for prompt in prompts]
    written = tiny_tokenizer.convert_ids_to_tokens(sorted({i for ids in completions for i in ids}))
    whole = next(word for word in written if len(word) > 1)
    part = next(i for i in map(tiny_tokenizer.convert_tokens_to_ids, whole) if not any(i in ids for ids in completions))
    texts = texts_of(end_token_id=part)
    assert any(tiny_tokenizer.decode(tiny_tokenizer.convert_tokens_to_ids([whole])).strip() in text for text in texts)
    assert texts == decoded(tiny_tokenizer, completions)


def test_the_end_token_is_never_the_first(texts_of, model, prompts, tiny_tokenizer):
    with torch.inference_mode():
        best = model(torch.tensor([prompts[0]])).logits[0, -1].topk(2).indices.tolist()
    first = texts_of(end_token_id=best[0], max_new_tokens=1)[0]
    assert first == tiny_tokenizer.decode(best[1:]).strip() != ""


@pytest.mark.parametrize("most", [1, 4])
def test_no_text_is_longer_than_max_new_tokens(most, texts_of, model, prompts, tiny_tokenizer):
    longer = [greedy(model, prompt, tiny_tokenizer.eos_token_id, 6) for prompt in prompts]
    assert texts_of(max_new_tokens=most) == decoded(tiny_tokenizer, [ids[:most] for ids in longer])


def test_decoding_settings_of_the_models_own_files_are_not_taken(texts_of, model, monkeypatch):
    expected = texts_of()
    for name, value in {"do_sample": True, "temperature": 2.0, "top_k": 5, "repetition_penalty": 9.0}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert texts_of() == expected


@torch.inference_mode()
def test_beams_find_what_is_likeliest_as_a_whole(texts_of, model, prompts, tiny_tokenizer):
    end, expected = tiny_tokenizer.eos_token_id, []
    for prompt in prompts:
        first = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        first[end] = -torch.inf
        tokens = first.topk(50).indices.tolist()
        second = model(torch.tensor([[*prompt, token] for token in tokens])).logits[:, -1].log_softmax(-1)
        row, column = divmod(int((first[tokens, None] + second).argmax()), len(first))  # of 50 x V
        expected.append([tokens[row], column])
    assert expected != [greedy(model, prompt, end, 2) for prompt in prompts]  # or greedy search would pass as well
    texts = texts_of(max_new_tokens=2, num_beams=50, length_penalty=0.0)
    assert texts == decoded(tiny_tokenizer, expected)


def test_no_repeat_ngram_size_counts_the_dialogue_too(texts_of, model, prompts, tiny_tokenizer):
    expected = [greedy(model, prompt, tiny_tokenizer.eos_token_id, 12, anew=True) for prompt in prompts]
    texts = texts_of(max_new_tokens=12, no_repeat_ngram_size=1)
    assert texts == decoded(tiny_tokenizer, expected) != texts_of(max_new_tokens=12)


def test_sampling_repeats_with_the_seed_and_only_with_it(texts_of):
    def sampled(seed, **decoding):
        return texts_of(do_sample=True, seed=seed, **decoding)

    assert sampled(0) == sampled(0)
    assert sampled(0) != sampled(1)


def test_the_same_prompt_gets_another_sample_in_every_batch(model, prompts, tiny_tokenizer):
    decoding = Decoding(do_sample=True, batch_size=1)
    texts = generate(
        model, tiny_tokenizer, [prompts[0]] * 8, end_token_id=tiny_tokenizer.eos_token_id, max_new_tokens=6,
        decoding=decoding,
    )  # fmt: skip
    assert len(set(texts)) == 8


@pytest.fixture(params=[None, 8])
def precise(request, model, tiny_tokenizer) -> PreTrainedModel:
    """A model in which rounding decides no draw, with and without layers that see a window."""
    if request.param:
        torch.manual_seed(0)
        config = Gemma3TextConfig(
            vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
            num_attention_heads=4, num_key_value_heads=1, sliding_window=request.param,
            layer_types=["sliding_attention", "full_attention"],
        )  # fmt: skip
        model = Gemma3ForCausalLM(config).eval()
    return deepcopy(model).double()


@pytest.mark.parametrize("together", [1, 30, 1000])  # tokens read: each alone, a few, all
def test_prompts_of_a_batch_are_read_a_few_at_a_time(together, precise, prompts, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(decode, "READ_TOKENS", together)
    prompts = [*prompts, prompts[0][:1]]  # of one token: nothing of it is read before the first is written
    read: list[tuple[int, int]] = []
    with precise.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True
    ):
        texts = generate(
            precise, tiny_tokenizer, prompts, end_token_id=tiny_tokenizer.eos_token_id, max_new_tokens=20,
            decoding=Decoding(batch_size=len(prompts)),
        )  # fmt: skip
    written = read.index((len(prompts), 1))
    lengths = sorted(len(prompt) - 1 for prompt in prompts)
    assert min(lengths) < 8 < max(lengths)  # the window
    assert sum(rows for rows, _ in read[:written]) == len(prompts)
    for rows, tokens in read[:written]:
        own, lengths = lengths[:rows], lengths[rows:]
        assert tokens == max(1, own[-1])  # not padded to the longest of the batch
        assert rows * tokens <= together or rows == 1
        assert not lengths or (rows + 1) * lengths[0] > together
    ends = [greedy(precise, prompt, tiny_tokenizer.eos_token_id, 20) for prompt in prompts]
    assert texts == decoded(tiny_tokenizer, ends)


@pytest.mark.parametrize("together", [30, 1000])
def test_samples_of_a_prompt_read_it_once_and_are_the_same_as_alone(
    together, precise, prompts, tiny_tokenizer, monkeypatch
):
    monkeypatch.setattr(decode, "READ_TOKENS", together)
    read: list[tuple[int, int]] = []
    precise.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True)
    several = [prompt for prompt in prompts for _ in range(4)]
    assert max(map(len, prompts)) > 8  # than the window

    def sampled(batch_size: int) -> list[str]:
        read.clear()
        return generate(
            precise, tiny_tokenizer, several, end_token_id=tiny_tokenizer.eos_token_id, max_new_tokens=ROOM + 6,
            decoding=Decoding(do_sample=True, batch_size=batch_size),
        )  # fmt: skip

    alone = sampled(1)
    at_once = sampled(len(several))
    assert at_once == alone
    assert len(set(at_once)) > len(prompts)
    assert sum(rows for rows, _ in read[: read.index((len(several), 1))]) == len(prompts)


@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.5, "temperature": 2.0}, {"max_new_tokens_ratio": 0.01}, {"temperature": 3.0}]
)
def test_samples_are_those_that_transformers_would_draw(options, texts_of, model, monkeypatch):
    how = {"by": deepcopy(model).double(), "do_sample": True, "max_new_tokens": ROOM + 16, **options}
    sampled = texts_of(**how)
    monkeypatch.setattr(generation, "prefill", lambda *_: None)
    assert sampled == texts_of(**how)


def test_samples_that_have_ended_leave_the_batch(texts_of, model, tiny_tokenizer):
    rows: list[int] = []
    likelier_end = torch.zeros(len(tiny_tokenizer))
    likelier_end[tiny_tokenizer.eos_token_id] = 5.0
    count = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with count, model.get_output_embeddings().register_forward_hook(lambda _, args, out: out + likelier_end):
        texts = texts_of(do_sample=True, max_new_tokens=100, batch_size=8)
    assert len(rows) < 100  # all have ended
    assert all(texts)
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 8
    assert len(set(rows)) > 3


def test_greedy_summaries_that_have_ended_leave_the_batch(model, tiny_tokenizer):
    prompts = [tiny_tokenizer("안녕 " * n).input_ids for n in (60, 180, 120)]
    limits = sorted(math.ceil(len(prompt) / 10) for prompt in prompts)
    rows: list[int] = []
    count = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with count:
        generate(
            model, tiny_tokenizer, prompts, end_token_id=tiny_tokenizer.eos_token_id, max_new_tokens=100,
            decoding=Decoding(max_new_tokens_ratio=0.1),
        )  # fmt: skip
    assert 16 < limits[0] < limits[1] < limits[2]
    assert rows == [3] + [sum(done < limit for limit in limits) for done in range(limits[-1])]  # read, then write


@pytest.mark.parametrize("do_sample", [False, True])
def test_what_a_model_forbids_in_its_generation_config_is_not_written(texts_of, model, tiny_tokenizer, do_sample):
    (allowed,) = tiny_tokenizer(" 네").input_ids[-1:]
    model.generation_config.suppress_tokens = sorted(set(range(len(tiny_tokenizer))) - {allowed})
    try:
        texts = texts_of(do_sample=do_sample)
    finally:
        model.generation_config.suppress_tokens = None
    assert texts == [tiny_tokenizer.decode([allowed] * 6).strip()] * len(texts)


def test_adapters_write_past_the_trainers_autocast(model, tiny_tokenizer, prompts, texts_of):
    adapted = get_peft_model(deepcopy(model), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.forward = torch.autocast("cpu", torch.bfloat16)(adapted.forward)  # as accelerate wraps it
    types = set()
    watch = (
        adapted.get_base_model().model.layers[0].mlp.register_forward_hook(lambda _, args, out: types.add(out.dtype))
    )
    with watch:
        assert texts_of(by=adapted) == texts_of()  # a new adapter changes nothing
    assert types == {torch.float32}


def test_a_model_that_cannot_be_read_once_is_not_read_so_again(prompts, tiny_tokenizer):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(tiny_tokenizer), hidden_size=16, state_size=4, num_hidden_layers=2)
    model, widths = MambaForCausalLM(config).eval(), []
    watch = model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with watch:
        generate(
            model, tiny_tokenizer, prompts, end_token_id=tiny_tokenizer.eos_token_id, max_new_tokens=1,
            decoding=Decoding(batch_size=4),
        )  # fmt: skip
    first, second = (max(len(prompt) for prompt in sorted(prompts, key=len)[start : start + 4]) for start in (0, 4))
    assert widths == [first - 1, first, second]


def test_a_model_without_keys_and_values_samples_too(prompts, tiny_tokenizer):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(tiny_tokenizer), hidden_size=16, state_size=4, num_hidden_layers=2)
    texts = generate(
        MambaForCausalLM(config).eval(), tiny_tokenizer, prompts, end_token_id=tiny_tokenizer.eos_token_id,
        max_new_tokens=4, decoding=Decoding(do_sample=True),
    )  # fmt: skip
    assert all(texts)


def test_a_temperature_near_zero_is_greedy_and_a_high_one_is_not(texts_of):
    torch.manual_seed(0)
    assert texts_of(do_sample=True, temperature=1e-4) == texts_of()
    assert texts_of(do_sample=True, temperature=10.0) != texts_of()


def test_top_p_cuts_the_distribution_at_the_temperature():
    torch.manual_seed(0)
    logits, numbers = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.rand(20000, dtype=torch.float64)
    tokens = draw(logits.repeat(20000, 1), numbers, Decoding(do_sample=True, temperature=2.0, top_p=0.7)).flatten()
    likely = (logits[0] / 2).exp()  # of 1, 0.61, 0.37, 0.22 the first two have 0.73 of the sum
    expected = torch.cat([likely[:2] / likely[:2].sum(), torch.zeros(2)])
    torch.testing.assert_close(tokens.bincount(minlength=4) / 20000, expected, atol=0.015, rtol=0)


def test_top_p_near_zero_leaves_the_likeliest_token(texts_of):
    assert texts_of(do_sample=True, top_p=1e-6) == texts_of()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_in_the_mode_it_was_in(training, texts_of, model):
    try:
        model.train(training)
        texts_of(max_new_tokens=1)
        assert model.training is training
    finally:
        model.eval()


def test_on_text_is_called_once_for_each_prompt_with_its_text(texts_of):
    calls = []
    texts = texts_of(batch_size=3, on_text=lambda *call: calls.append(call))
    assert sorted(calls) == list(enumerate(texts))


@pytest.mark.parametrize("beams", [1, 4])
def test_a_batch_has_as_many_dialogues_as_its_tokens_allow(beams):
    lengths = sorted([130, 200, 300, 350, 1152, BATCH_TOKENS // beams, 2 * BATCH_TOKENS] * 40)
    parts = [lengths[part] for part in batches(lengths, Decoding(num_beams=beams), BATCH_TOKENS)]
    assert [length for part in parts for length in part] == lengths
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        assert len(part) * part[-1] * beams <= BATCH_TOKENS or len(part) == 1
        assert following is None or (len(part) + 1) * following[0] * beams > BATCH_TOKENS
    assert len(parts) < len(lengths) / 2


def test_a_batch_has_as_many_dialogues_as_one_says():
    lengths = [5, 6, 7, 8, 9, 10, BATCH_TOKENS]
    parts = batches(lengths, Decoding(batch_size=3), BATCH_TOKENS)
    assert [lengths[part] for part in parts] == [[5, 6, 7], [8, 9, 10], lengths[6:]]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize(
    ("config", "weights_gib", "memory_gib", "kilobytes_a_token"),
    [
        (LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32), 3.9, 12, 512),
        (GPTJConfig(n_embd=4096, n_layer=28, n_head=16), 4.2, 12, 448),
        (Qwen3Config(hidden_size=4096, num_hidden_layers=36, num_key_value_heads=8, head_dim=128), 4.0, 10, 144),
        (Gemma4TextConfig(num_hidden_layers=30), 4.0, 10, 140),
    ],
)
def test_the_keys_and_values_of_a_batch_leave_room(
    config, weights_gib, memory_gib, kilobytes_a_token, device, monkeypatch
):
    gib = 2**30
    if device == "cuda":
        gpu = SimpleNamespace(total_memory=memory_gib * gib)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu, raising=False)
    else:  # two processes share the machine
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        pages = {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2 * memory_gib * gib // 2**12}
        monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    weight = torch.empty(int(weights_gib * gib), dtype=torch.uint8, device="meta")
    model = SimpleNamespace(
        device=torch.device(device), dtype=torch.bfloat16, config=config, parameters=lambda: iter([weight])
    )
    for models in ([model], [model, model]):
        taken = batch_tokens(models) * len(models) * kilobytes_a_token * 1024
        left = (memory_gib - weights_gib * len(models)) * gib
        assert 0.39 * left < taken <= 0.4 * left


def test_one_dialogue_at_a_time_where_a_gpu_has_no_room(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=0), raising=False)
    parts = {"dtype": model.dtype, "config": model.config, "parameters": model.parameters}
    tokens = batch_tokens([SimpleNamespace(device=torch.device("cuda"), **parts)])
    assert [*batches([5, 6, 7], Decoding(), tokens)] == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_a_small_model_on_a_large_gpu_has_the_batches_of_a_cpu(model, monkeypatch):
    assert batch_tokens([model]) == BATCH_TOKENS
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2**33), raising=False
    )
    parts = {"dtype": model.dtype, "config": model.config, "parameters": model.parameters}
    assert batch_tokens([SimpleNamespace(device=torch.device("cuda"), **parts)]) == BATCH_TOKENS


def test_after_a_kill_the_rest_is_written_in_the_batches_of_the_run(
    model, prompts, texts_of, tiny_tokenizer, monkeypatch
):
    monkeypatch.setattr(generation, "BATCH_TOKENS", 60)
    read: list[list[list[int]]] = []
    several = [prompt for prompt in prompts for _ in range(2)]
    done: dict[int, str] = {}

    def watched(_, args, kwargs):
        if "past_key_values" not in kwargs:
            read.append(kwargs["input_ids"].tolist())
            if len(read) == killed_at:
                raise KeyboardInterrupt

    def run(missing: list[int]) -> None:
        generate(
            model, tiny_tokenizer, [several[i] for i in missing], end_token_id=tiny_tokenizer.eos_token_id,
            max_new_tokens=6, on_text=lambda i, text: done.update({missing[i]: text}),
        )  # fmt: skip

    with model.register_forward_pre_hook(watched, with_kwargs=True):
        killed_at = 0
        run(list(range(len(several))))
        whole, of_whole, killed_at = list(read), dict(done), 3
        read.clear(), done.clear()
        with pytest.raises(KeyboardInterrupt):
            run(list(range(len(several))))
        assert 0 < len(done) < len(several)
        killed_at = 0
        run([i for i in range(len(several)) if i not in done])
    assert len(whole) > 3
    assert read == [*whole[:3], *whole[2:]]
    assert done == of_whole


def test_progress_moves_with_each_sample_that_ends(model, tiny_tokenizer, texts_of, monkeypatch):
    bars: list[generation.Progress] = []
    monkeypatch.setattr(generation, "Progress", lambda *a, **k: bars.append(Progress(*a, **k)) or bars[-1])
    likelier_end = torch.zeros(len(tiny_tokenizer))
    likelier_end[tiny_tokenizer.eos_token_id] = 5.0
    done: list[tuple[int, int]] = []
    watch = model.register_forward_pre_hook(
        lambda _, args, kwargs: done.append((bars[0].done, len(kwargs["input_ids"]))), with_kwargs=True
    )
    with watch, model.get_output_embeddings().register_forward_hook(lambda _, args, out: out + likelier_end):
        texts_of(do_sample=True, max_new_tokens=100)
    assert all(ended + going_on == 8 for ended, going_on in done)
    assert len({ended for ended, _ in done}) > 2


def test_no_prompts_no_texts(model, tiny_tokenizer):
    assert generate(model, tiny_tokenizer, [], end_token_id=1, max_new_tokens=4, description="Nothing") == []


def test_the_head_of_a_frozen_model_never_sees_a_strided_slice(model, prompts, tiny_tokenizer):
    seen = []
    watch = model.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(args[0]))
    generate(model, tiny_tokenizer, prompts, end_token_id=tiny_tokenizer.eos_token_id, max_new_tokens=2)
    watch.remove()
    assert seen
    assert all(hidden.is_contiguous() for hidden in seen)
    assert not model.get_output_embeddings()._forward_pre_hooks


# --- lengths and grids ------------------------------------------------------------------------------------------------


def test_a_summary_ends_where_its_dialogue_lets_it(model, tiny_tokenizer):
    prompts = [tiny_tokenizer("안녕 " * n).input_ids for n in (4, 60, 120)]
    limits = [max(16, -(-len(prompt) // 10)) for prompt in prompts]
    assert limits[0] == 16 < limits[1] < limits[2] < 64

    def texts(rows: list[list[int]], most: int, ratio: float) -> list[str]:
        decoding = Decoding(max_new_tokens_ratio=ratio)
        end = tiny_tokenizer.eos_token_id
        return generate(model, tiny_tokenizer, rows, end_token_id=end, max_new_tokens=most, decoding=decoding)

    alone = [texts([prompt], limit, 0.0)[0] for prompt, limit in zip(prompts, limits, strict=True)]
    assert texts(prompts, 64, 0.1) == alone
    assert texts(prompts, 64, 0.0) != alone


def test_at_the_limit_the_end_keeps_its_score_and_nothing_else_is_left():
    scores = torch.tensor([[-1.0, -2.0, -3.0]] * 4)  # two dialogues with two beams each
    out = EndAtLimit([2, 3], end_token_id=1, prompt_tokens=4)(torch.zeros(4, 6, dtype=torch.long), scores)
    assert out.tolist() == [[-torch.inf, -2.0, -torch.inf]] * 2 + [[-1.0, -2.0, -3.0]] * 2


def test_a_grid_has_every_combination_that_differs():
    grid = decoding_grid(["num_beams=1,4", "length_penalty=0.6,1.4"], Decoding(batch_size=3))
    assert {name: (one.num_beams, one.length_penalty) for name, one in grid.items()} == {
        "num_beams=1": (1, None),  # without beams the penalty has no effect
        "num_beams=4-length_penalty=0.6": (4, 0.6),
        "num_beams=4-length_penalty=1.4": (4, 1.4),
    }
    assert {one.batch_size for one in grid.values()} == {3}


def test_what_stands_beside_a_grid_is_left_out_where_it_has_no_effect():
    beams = decoding_grid(["num_beams=1,4"], Decoding(length_penalty=0.6))
    assert [one.length_penalty for one in beams.values()] == [None, 0.6]
    sampled = decoding_grid(["do_sample=true,false"], Decoding(temperature=0.5))
    assert [one.temperature for one in sampled.values()] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("beams=1,4", r"--grid beams=1,4: expected such as num_beams=1,4, of .*length_penalty"),
        ("num_beams=one", r"--grid num_beams=one: expected ints with commas between"),
        ("num_beams", r"--grid num_beams: expected ints with commas between"),
        ("batch_size=1,2", r"--grid batch_size=1,2: expected such as num_beams=1,4, of .*max_new_tokens_ratio\.$"),
        ("num_beams=0,1", r"--num_beams 0: expected 1 or more"),
    ],
)
def test_a_grid_that_is_none_is_refused(option, message):
    with pytest.raises(InputError, match=message):
        decoding_grid([option], Decoding())
