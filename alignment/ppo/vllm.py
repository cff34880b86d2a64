"""Rollouts written by a vLLM server, which gets the policy's adapter before each of them.

The server runs in an environment of its own: neither ties the other to its versions, and it may have another GPU.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from alignment.errors import InputError
from alignment.ppo.prompt_cache import pad
from alignment.ppo.roles import POLICY, Roles

AT_ONCE = 256  # requests, which the server gathers into batches as they come
TIMEOUT_SECONDS = 600  # without an answer
MAX_DIFFERENCE = 0.1  # nats a token, server against policy; bfloat16 is 0.05 from float32, 8-bit 0.2, 4-bit 0.8
Ids = Sequence[int]


class VLLM:
    """A server that samples as `rollout.sample` does; the main process talks to it for all.

    Args:
        url: Of the server, such as http://127.0.0.1:8000.
        prompt: Token ids by which server and policy are compared.

    Raises:
        InputError: Nothing answers there, it serves another base, it takes no adapters, or it finds other tokens likely
            than the policy does.
    """

    def __init__(self, url: str, roles: Roles, prompt: Ids) -> None:
        self.url, self.roles = url.rstrip("/").removesuffix("/v1"), roles
        rank = 1 << max(3, (roles.model.peft_config[POLICY].r - 1).bit_length())  # vLLM knows 8, 16, 32 and so on
        self._expected = (
            "Expected a vLLM server on this machine, started by `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve "
            f"{roles.name_or_path} --host 127.0.0.1 --enable-lora --max-lora-rank {rank}`. If it stopped within a run, "
            "start it again, and the run with --resume_from_checkpoint true."
        )
        self._open = build_opener(ProxyHandler({})).open  # what is said to this machine goes through no proxy
        self._for_all(lambda: self._check(prompt[:256]))

    def sample(
        self,
        prompts: Sequence[Ids],
        places: Sequence[int],
        seed: int,
        end_token_id: int,
        temperature: float,
        max_new_tokens: int,
    ) -> list[list[int]]:
        """Samples the policy's completion of each prompt, with its end token if it came to one.

        Args:
            prompts: Token ids of each prompt, unpadded (N).
            places: In the run (N): with the seed they decide the noise of each completion.
        """
        settings = {
            "max_tokens": max_new_tokens, "temperature": temperature, "ignore_eos": True,
            "stop_token_ids": [end_token_id], "return_token_ids": True,
            # What is left unset comes from the model's own generation_config.json.
            "top_p": 1.0, "top_k": 0, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        }  # fmt: skip
        everyones = gather_object(list(zip(places, prompts, strict=True)))

        def completed(model: str, place: int, prompt: Ids) -> list[int]:
            noise = {"seed": random.Random(f"{seed} {place}").getrandbits(62)}
            request = {"model": model, "prompt": list(prompt)} | settings | noise
            ids, reason = self._complete(request, "token_ids", "finish_reason")
            if reason != "stop" and (reason != "length" or len(ids) < max_new_tokens):
                raise InputError(
                    f"--vllm_url {self.url}: a completion ended by {reason!r} after {len(ids)} tokens. Expected the "
                    f"end token, or {max_new_tokens} tokens; is --max-model-len of `vllm serve` at least "
                    f"{len(prompt) + max_new_tokens}?"
                )
            return ids

        def sampled() -> dict[int, list[int]]:
            with self._policy() as model:
                pool = ThreadPoolExecutor(AT_ONCE)
                try:
                    found = pool.map(lambda one: completed(model, *one), everyones)
                    return {place: ids for (place, _), ids in zip(everyones, found, strict=True)}
                finally:
                    pool.shutdown(wait=False, cancel_futures=True)

        by_place = self._for_all(sampled)
        return [by_place[place] for place in places]

    def _for_all(self, talk: Callable[[], Any]) -> Any:
        """What the main process hears of the server; where it fails, all processes fail."""
        shared: list[Any] = [None, None]
        if PartialState().is_main_process:
            try:
                shared[0] = talk()
            except InputError as fault:
                shared[1] = str(fault)
        broadcast_object_list(shared)
        if shared[1]:
            raise InputError(shared[1])
        return shared[0]

    def _check(self, prompt: Ids) -> None:
        models = self._call("/v1/models").get("data")
        served = [str(model.get("root")) for model in models] if isinstance(models, list) else []
        if self.roles.name_or_path not in served:
            raise InputError(f"--vllm_url {self.url}: serves {', '.join(served) or 'no model'}. {self._expected}")
        with self._policy() as model:
            request = {"model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": 1.0}
            (of_prompt,) = self._complete(request | {"prompt_logprobs": 0}, "prompt_logprobs")
        if len(prompt) == 1:
            return
        theirs = torch.tensor([
            said[str(token)]["logprob"] for token, said in zip(prompt[1:], of_prompt[1:], strict=True)
        ])  # fmt: skip
        blocks = [*pad([prompt[:1]], 0, "left"), *pad([prompt[1:]], 0, "right")]
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        batch = {name: block.to(self.roles.device) for name, block in zip(names, blocks, strict=True)}
        with torch.no_grad():
            ours, _ = self.roles.log_probs(batch)
        difference = float((ours[0].cpu() - theirs).abs().mean())
        if not difference <= MAX_DIFFERENCE:
            raise InputError(
                f"--vllm_url {self.url}: its log-probabilities are {difference:.2f} nats a token from the policy's, "
                f"expected at most {MAX_DIFFERENCE}. Give `vllm serve` the same weights: --revision, --dtype, and "
                "--quantization bitsandbytes where the base is in 4-bit."
            )

    @contextmanager
    def _policy(self) -> Iterator[str]:
        """The name under which the server has the policy as it is now."""
        with TemporaryDirectory(prefix="policy-") as folder:
            self.roles.save_adapter(POLICY, Path(folder))
            name = Path(folder).name  # another one each time: the server caches by it what an adapter has read
            self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
            try:
                yield name
            finally:
                with suppress(InputError):  # the server's own loss; and there may be another error to tell
                    self._call("/v1/unload_lora_adapter", {"lora_name": name}, timeout_seconds=10)

    def _complete(self, request: dict[str, Any], *names: str) -> list[Any]:
        """What the answer to a request says under these names."""
        try:
            choice = self._call("/v1/completions", request)["choices"][0]
            if None not in (found := [choice[name] for name in names]):
                return found
        except (KeyError, IndexError, TypeError):
            pass
        raise InputError(
            f"--vllm_url {self.url}: an answer without {' and '.join(names)}. Expected a newer vLLM; 0.32 has them."
        )

    def _call(
        self, path: str, body: dict[str, Any] | None = None, timeout_seconds: int = TIMEOUT_SECONDS
    ) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        try:
            request = Request(self.url + path, content, {"Content-Type": "application/json"})
            with self._open(request, timeout=timeout_seconds) as answer:
                text = answer.read().decode()
            return {} if text.startswith("Success") else dict(json.loads(text))
        except HTTPError as error:
            said = error.read().decode(errors="replace").strip()
            cure = "See what the server printed." if path == "/v1/completions" else self._expected
            raise InputError(f"--vllm_url {self.url}{path}: {error.code} {said:.500}. {cure}") from None
        except (OSError, HTTPException, ValueError, TypeError) as error:
            raise InputError(f"--vllm_url {self.url}: {type(error).__name__}: {error}. {self._expected}") from None
