"""alignment/attention.py: models on a GPU are kept from what is wrong there."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from transformers.integrations import sdpa_attention

from alignment import models
from alignment.arguments import ModelArguments
from alignment.attention import avoid_faulty_attention
from alignment.ppo.roles import Roles

WAYS = {
    "by its name": lambda folder: models.load_base(ModelArguments(model_name_or_path=str(folder))),
    "given to PPO": lambda folder: Roles(AutoModelForCausalLM.from_pretrained(folder)),
}


@pytest.mark.parametrize("way", WAYS)
def test_keys_of_one_head_are_no_view_on_a_gpu(way, tiny_model):
    sdpa_attention.repeat_kv = getattr(sdpa_attention.repeat_kv, "__wrapped__", sdpa_attention.repeat_kv)
    WAYS[way](tiny_model)
    on_device, on_cpu = (sdpa_attention.repeat_kv(torch.empty(2, 1, 33, 8, device=one), 4) for one in ("meta", "cpu"))
    assert on_device.shape == on_cpu.shape == (2, 4, 33, 8)
    assert on_device.stride(1) == 33 * 8
    assert on_cpu.stride(1) == 0  # a CPU reads it right, and needs no copy


@pytest.mark.parametrize(
    ("dtype", "capability", "shared"),
    [(torch.bfloat16, (8, 0), True), (torch.bfloat16, (7, 5), False), (torch.float32, (9, 0), False)],
)
def test_keys_are_shared_by_heads_of_queries_only_where_flash_attention_is(dtype, capability, shared, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    avoid_faulty_attention()
    with FakeTensorMode():
        on_gpu, on_cpu = (torch.empty(1, 2, 8, 64, dtype=dtype, device=device) for device in ("cuda", "cpu"))
    assert sdpa_attention.use_gqa_in_sdpa(None, on_gpu, on_gpu) is shared
    assert sdpa_attention.use_gqa_in_sdpa(None, on_cpu, on_cpu)
    assert not sdpa_attention.use_gqa_in_sdpa(on_gpu, on_gpu, on_gpu)


@pytest.mark.parametrize("way", WAYS)
def test_cudnn_attention_is_not_used(way, tiny_model):
    torch.backends.cuda.enable_cudnn_sdp(True)
    WAYS[way](tiny_model)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
