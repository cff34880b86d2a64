"""Rollouts by a server that speaks vLLM's protocol: it loads adapters from their folders and goes on from token ids.

vLLM itself needs another environment than these tests; what stands in for it here answers with the same model.
"""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignment.errors import InputError
from alignment.models import load_tokenizer
from alignment.ppo import PPOConfig, PPOTrainer, Roles
from alignment.ppo.roles import ADAPTER, POLICY
from alignment.ppo.rollout import sample
from alignment.ppo.vllm import VLLM

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
GREEDY = 0.01  # the lowest temperature that vLLM knows


class Server(ThreadingHTTPServer):
    """Greedy completions of one base with adapters; notes what it was asked for."""

    daemon_threads = True

    def __init__(self, base: Path, takes_adapters: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base, self.takes_adapters, self.lock = str(base), takes_adapters, Lock()
        self.adapters: dict[str, PeftModel] = {}
        self.loaded: dict[str, dict[str, Tensor]] = {}
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def complete(self, body: dict[str, Any]) -> list[int]:
        end, ids = body["stop_token_ids"][0], torch.tensor([body["prompt"]])
        with self.lock, torch.no_grad():
            self.asked.append(body)
            output = self.adapters[body["model"]].generate(
                input_ids=ids, do_sample=False, max_new_tokens=body["max_tokens"], eos_token_id=end, pad_token_id=0
            )
        return output[0, ids.shape[1] :].tolist()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "base", "root": self.server.base}]})

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/completions":
            self.answer(200, {"choices": [{"token_ids": server.complete(body)}]})
        elif not server.takes_adapters:
            self.answer(404, {"detail": "Not Found"})
        elif self.path == "/v1/load_lora_adapter":
            name, folder = body["lora_name"], body["lora_path"]
            base = AutoModelForCausalLM.from_pretrained(server.base)
            server.adapters[name] = PeftModel.from_pretrained(base, folder)
            server.loaded[name] = load_file(Path(folder) / ADAPTER)
            self.answer(200, "Success: added.")
        else:
            del server.adapters[body["lora_name"]]
            self.answer(200, "Success: removed.")


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


def test_the_server_writes_what_the_policy_writes(server: Server, roles: Roles):
    of_policy = roles.read_prompts(PROMPTS, POLICY)
    first = sample(roles, PROMPTS, range(3), 0, 1, GREEDY, 8, of_policy, 3)
    end = next(token for ids in first for token in ids[1:7] if token != ids[0])  # so that one ends before its limit
    expected = sample(roles, PROMPTS, range(3), 0, end, GREEDY, 8, of_policy, 3)
    assert VLLM(server.url + "/", roles).sample(roles, PROMPTS, range(3), 0, end, GREEDY, 8) == expected
    assert any(ids[-1] == end and 1 < len(ids) < 8 for ids in expected)
    assert server.adapters == {}  # given back


def test_each_completion_has_a_seed_of_its_own_and_no_setting_of_the_model(server: Server, roles: Roles):
    vllm = VLLM(server.url, roles)
    vllm.sample(roles, PROMPTS[:1] * 4, range(4), 0, 1, 0.7, 2)
    vllm.sample(roles, PROMPTS[:1], [3], 0, 1, 0.7, 2)
    seeds = [body["seed"] for body in server.asked]
    assert len(set(seeds)) == 4
    assert seeds[4] in seeds[:4]
    for body in server.asked:
        settings = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
        assert settings == {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


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
    first, second = server.loaded.values()
    for name, weight in start.items():
        torch.testing.assert_close(first[name.replace(f".{POLICY}", "")], weight, rtol=0, atol=0)
    assert any(not first[name].equal(second[name]) for name in first)
    assert [line["ended"] for line in trainer.state.log_history if "ended" in line]


def test_an_address_where_nothing_answers_is_refused(roles: Roles):
    with pytest.raises(InputError, match=r"--vllm_url http://127.0.0.1:9: .*vllm serve .* --enable-lora"):
        VLLM("http://127.0.0.1:9", roles)


def test_a_server_of_another_base_is_refused(server: Server, roles: Roles):
    server.base = "other/base"
    with pytest.raises(InputError, match=f"serves other/base. Expected .*vllm serve {roles.name_or_path}"):
        VLLM(server.url, roles)


def test_a_server_that_takes_no_adapters_is_refused(server: Server, roles: Roles):
    server.takes_adapters = False
    vllm = VLLM(server.url, roles)
    with pytest.raises(InputError, match=r"load_lora_adapter: 404 .*Not Found.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        vllm.sample(roles, PROMPTS, range(3), 0, 1, 1.0, 8)
