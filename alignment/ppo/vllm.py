"""Rollouts written by a vLLM server, which gets the policy's adapter before each of them.

The server runs in an environment of its own: neither ties the other to its versions, and it may have another GPU.
"""

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from alignment.errors import InputError
from alignment.ppo.roles import POLICY, Roles

AT_ONCE = 256  # requests, which the server gathers into batches as they come


class VLLM:
    """A server at an address, which samples as `rollout.sample` does.

    Raises:
        InputError: Nothing answers there, it serves another base, or it takes no adapters.
    """

    def __init__(self, url: str, roles: Roles) -> None:
        self.url, base = url.rstrip("/"), roles.name_or_path
        rank = 1 << max(3, (roles.model.peft_config[POLICY].r - 1).bit_length())  # vLLM knows 8, 16, 32 and so on
        self._expected = (
            f"Expected a server on this machine, started by `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {base} "
            f"--host 127.0.0.1 --enable-lora --max-lora-rank {rank}`."
        )
        answer = self._call("/v1/models")
        served = [model.get("root") for model in answer["data"]] if "data" in answer else []
        if base not in served:
            raise InputError(f"--vllm_url {url} serves {', '.join(map(str, served)) or 'no model'}. {self._expected}")

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, content, {"Content-Type": "application/json"})
        try:
            with urlopen(request) as answer:
                text = answer.read().decode()
        except HTTPError as error:
            said = error.read().decode(errors="replace").strip()
            raise InputError(f"--vllm_url {self.url}{path}: {error.code} {said:.500}. {self._expected}") from None
        except (URLError, OSError, ValueError) as error:
            raise InputError(f"--vllm_url {self.url}: {error}. {self._expected}") from None
        return json.loads(text) if text.startswith(("{", "[")) else text

    def sample(
        self,
        roles: Roles,
        prompts: Sequence[Sequence[int]],
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
        state = PartialState()
        with TemporaryDirectory(prefix="policy-") as folder:
            roles.save_adapter(POLICY, Path(folder))
            broadcast_object_list(shared := [folder])  # the server keeps what an adapter has read by name: none twice
            name = Path(shared[0]).name
            if state.is_main_process:
                self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
            state.wait_for_everyone()

            def complete(prompt: Sequence[int], place: int) -> list[int]:
                answer = self._call(
                    "/v1/completions",
                    {
                        "model": name, "prompt": list(prompt), "max_tokens": max_new_tokens, "return_token_ids": True,
                        "seed": random.Random(f"{seed} {place}").getrandbits(62), "temperature": temperature,
                        # What is left unset comes from the model's own generation_config.json.
                        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
                        "ignore_eos": True, "stop_token_ids": [end_token_id],
                    },
                )  # fmt: skip
                return answer["choices"][0]["token_ids"]

            with ThreadPoolExecutor(AT_ONCE) as pool:
                completions = list(pool.map(complete, prompts, places))
            state.wait_for_everyone()
            if state.is_main_process:
                self._call("/v1/unload_lora_adapter", {"lora_name": name})
        return completions
