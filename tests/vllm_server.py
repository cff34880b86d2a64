"""What stands in for a vLLM server: it loads adapters from their folders, and goes on from token ids, greedily."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignment.ppo.roles import ADAPTER


class Server(ThreadingHTTPServer):
    """Greedy completions of one base with adapters; notes what it was asked for."""

    daemon_threads = True

    def __init__(self, base: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base, self.lock = str(base), Lock()
        self.models: Any = {"data": [{"root": self.base}]}
        self.takes_adapters, self.shift, self.fails_after = True, 0.0, 10**9
        self.changes: dict[str, Any] = {}  # to its answers
        self.written: list[list[int]] = []
        self.adapters: dict[str, PeftModel] = {}
        self.loaded: dict[str, dict[str, Tensor]] = {}
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model, ids = self.adapters[body["model"]], torch.tensor([body["prompt"]])
        with self.lock, torch.no_grad():
            if "prompt_logprobs" in body:
                log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
                of_rest = [
                    {str(token): {"logprob": log_probs[i, token].item() + self.shift}}
                    for i, token in enumerate(body["prompt"][1:])
                ]
                return {"prompt_logprobs": [None, *of_rest]}
            self.asked.append(body)
            if len(self.asked) > self.fails_after:
                raise MemoryError
            end = body["stop_token_ids"][0]
            output = model.generate(
                input_ids=ids, do_sample=False, max_new_tokens=body["max_tokens"], eos_token_id=end, pad_token_id=0
            )
        completion = output[0, ids.shape[1] :].tolist()
        self.written.append(completion)
        reason = "stop" if completion[-1] == end else "length"
        return {"token_ids": completion, "finish_reason": reason} | self.changes


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
        self.answer(200, self.server.models)

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/completions":
            try:
                self.answer(200, {"choices": [server.complete(body)]})
            except MemoryError:
                self.answer(500, "out of memory")
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
