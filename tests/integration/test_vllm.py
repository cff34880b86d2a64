"""Rollouts by a server that speaks vLLM's protocol: it loads adapters from their folders and goes on from token ids.

vLLM itself needs another environment than these tests; what stands in for it here answers with the same model. The last
test asks a real one, of any base, if its address is given:

    YOYAK_VLLM_URL=http://127.0.0.1:8000 pytest tests/integration/test_vllm.py
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from vllm_server import Server

from alignment.data import load_records
from alignment.errors import InputError
from alignment.ppo import PPOConfig, PPOTrainer, Roles
from alignment.ppo.roles import POLICY
from alignment.ppo.rollout import sample
from alignment.ppo.vllm import VLLM
from alignment.pretrained import load_tokenizer

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
GREEDY = 0.01  # the lowest temperature that vLLM knows


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a head that tells tokens apart, or rounding would choose between them."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.lm_head.weight.data.mul_(100)
    model.save_pretrained(tmp_path / "base")
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def server(base: Path) -> Iterator[Server]:
    with Server(base) as one:
        Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture
def roles(base: Path) -> Roles:
    """Whose policy says something else than the base."""
    torch.manual_seed(0)
    one = Roles(AutoModelForCausalLM.from_pretrained(base))
    for parameter in one.trained():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return one


def vllm_of(server: Server, roles: Roles) -> VLLM:
    return VLLM(server.url, roles, PROMPTS[2])


def test_the_server_writes_what_the_policy_writes(server: Server, roles: Roles):
    of_policy = roles.prefill(PROMPTS, POLICY)
    first = sample(roles, PROMPTS, range(3), 0, 1, GREEDY, 8, of_policy, 3)
    end = next(token for ids in first for token in ids[1:7] if token != ids[0])  # so that one ends before its limit
    expected = sample(roles, PROMPTS, range(3), 0, end, GREEDY, 8, of_policy, 3)
    assert VLLM(server.url + "/", roles, PROMPTS[2]).sample(PROMPTS, range(3), 0, end, GREEDY, 8) == expected
    assert any(ids[-1] == end and 1 < len(ids) < 8 for ids in expected)
    assert server.adapters == {}  # given back


def test_it_is_asked_for_token_ids_from_the_whole_distribution_with_a_seed_for_each_place(server: Server, roles: Roles):
    vllm = vllm_of(server, roles)
    vllm.sample(PROMPTS[:1] * 4, range(4), 0, 1, 0.7, 2)
    vllm.sample(PROMPTS[:1], [3], 0, 1, 0.7, 2)
    seeds = [body.pop("seed") for body in server.asked]
    assert len(set(seeds)) == 4
    assert seeds[4] in seeds[:4]
    names = {body.pop("model") for body in server.asked}
    assert len(names) == 2  # a rollout each
    expected = {
        "prompt": PROMPTS[0], "max_tokens": 2, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True,
        "stop_token_ids": [1], "return_token_ids": True,
    }  # fmt: skip
    assert server.asked == [expected] * 5


def test_training_sends_the_policy_as_it_is_by_then(server: Server, roles: Roles, tmp_path: Path):
    args = PPOConfig(
        output_dir=str(tmp_path / "run"), num_updates=2, rollout_batch_size=4, per_device_train_batch_size=4,
        gradient_accumulation_steps=1, num_ppo_epochs=1, max_new_tokens=8, learning_rate=1e-3, value_warmup_updates=0,
        eval_strategy="no", save_strategy="no", use_cpu=True, max_kl=1e9, vllm_url=server.url,
    )  # fmt: skip
    start = {name: weight.clone() for name, weight in roles.model.state_dict().items() if f".{POLICY}." in name}
    trainer = PPOTrainer(
        model=roles,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["안녕하세요?", "오늘은 어때요?"]}),
        scorer=lambda completions, **_: [float(len(text)) for text in completions],
        processing_class=load_tokenizer(roles.name_or_path),
    )
    trainer.train()
    _, first, second = server.loaded.values()  # the first of all was to compare
    for name, weight in start.items():
        torch.testing.assert_close(first[name.replace(f".{POLICY}", "")], weight, rtol=0, atol=0)
    assert any(not first[name].equal(second[name]) for name in first)
    lengths = [line["length_tokens"] for line in trainer.state.log_history if "score" in line]
    assert lengths == [sum(map(len, part)) / 4 for part in (server.written[:4], server.written[4:])]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.0.0.1:port", "localhost:9"])
def test_an_address_where_nothing_answers_is_refused(roles: Roles, url: str):
    with pytest.raises(InputError, match=f"--vllm_url {url}: .*vllm serve .* --enable-lora"):
        VLLM(url, roles, PROMPTS[2])


def test_what_is_said_to_this_machine_goes_through_no_proxy(
    server: Server, roles: Roles, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert vllm_of(server, roles).sample(PROMPTS[:1], [0], 0, 1, GREEDY, 2) == server.written


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"models": {"data": [{"root": "other/base"}]}}, "serves other/base. Expected .*vllm serve /"),
        ({"models": {"data": "nothing"}}, "serves no model. Expected .*vllm serve /"),
        ({"models": "<html>data</html>"}, "JSONDecodeError.* Expected .*vllm serve /"),
        ({"takes_adapters": False}, "load_lora_adapter: 404 .*Not Found.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ({"shift": -0.5}, r"0\.50 nats a token from the policy's, expected at most 0\.1.*--dtype"),
    ],
)  # fmt: skip
def test_a_server_that_is_not_the_one_expected_is_refused(
    server: Server, roles: Roles, faults: dict[str, Any], message: str
):
    vars(server).update(faults)
    with pytest.raises(InputError, match=message):
        vllm_of(server, roles)
    assert server.adapters == {}


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"changes": {"finish_reason": "abort"}}, "ended by 'abort' after 8 tokens"),
        ({"changes": {"token_ids": [5], "finish_reason": "length"}}, r"after 1 tokens\. Expected .* --max-model-len"),
        ({"changes": {"token_ids": None}}, "an answer without token_ids and finish_reason. Expected a newer vLLM"),
        ({"fails_after": 1}, "/v1/completions: 500 out of memory. See what the server printed"),
    ],
)  # fmt: skip
def test_a_server_that_fails_in_a_rollout_is_told(server: Server, roles: Roles, faults: dict[str, Any], message: str):
    vllm = vllm_of(server, roles)
    vars(server).update(faults)
    with pytest.raises(InputError, match=message):
        vllm.sample(PROMPTS, range(3), 0, 1, 1.0, 8)
    assert server.adapters == {}


def test_a_server_that_does_not_answer_in_time_is_told(server: Server, roles: Roles, monkeypatch: pytest.MonkeyPatch):
    vllm = vllm_of(server, roles)
    monkeypatch.setattr(VLLM._call, "__defaults__", (None, 0.1))
    server.lock.acquire()
    with pytest.raises(InputError, match=r"TimeoutError: timed out\. Expected a vLLM server"):
        vllm.sample(PROMPTS, range(3), 0, 1, 1.0, 8)
    server.lock.release()


def test_a_prompt_of_one_token_is_enough(server: Server, roles: Roles):
    assert VLLM(server.url, roles, [8]).sample([[8]], [0], 0, 1, GREEDY, 4) == server.written


@pytest.mark.skipif("YOYAK_VLLM_URL" not in os.environ, reason="needs a vLLM server")
def test_vllm_itself_writes_what_the_policy_writes():
    url = os.environ["YOYAK_VLLM_URL"]
    with urlopen(f"{url}/v1/models") as answer:
        base = json.load(answer)["data"][0]["root"]
    tokenizer = load_tokenizer(base)
    torch.manual_seed(0)
    roles = Roles(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    for parameter in roles._of(POLICY):
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    prompts = [tokenizer(record.dialogue).input_ids for record in load_records("embedded-ko")[0][:8]]
    vllm, end = VLLM(url, roles, prompts[0]), tokenizer.eos_token_id
    ours = sample(roles, prompts, range(8), 0, end, GREEDY, 32, roles.prefill(prompts, POLICY), 8)
    theirs = vllm.sample(prompts, range(8), 0, end, GREEDY, 32)
    assert sum(map(list.__eq__, ours, theirs)) >= 6  # near ties fall either way
    noisy = vllm.sample(prompts, range(8), 0, end, 1.0, 32)
    assert noisy == vllm.sample(prompts, range(8), 0, end, 1.0, 32) != vllm.sample(prompts, range(8), 1, end, 1.0, 32)
