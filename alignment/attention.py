"""Faults and limits of torch's attention on GPUs, and how models are kept from them."""

import functools

import torch
from torch import Tensor
from transformers.integrations import sdpa_attention


def avoid_faulty_attention() -> None:
    """Has all models of this process attend without two faults of torch 2.13 on CUDA, and not in the slowest way.

    cuDNN's attention, which an H100 and newer ones take first, can have NaN gradients where there is a mask and the
    length is 64, 192, 320, ..., which `pad_to_multiple_of` makes common. The memory-efficient one has the last of 33,
    65, 97, ... queries see the first row of the mask, where no gradient is asked for and the keys of a single head are
    a view for all heads of queries; so they are copied.

    Heads of keys that several of queries share are left so to flash attention alone, which takes 16-bit types from
    Ampere on: elsewhere it would be the kernel that holds heads x tokens x tokens, where the memory-efficient one takes
    copies.

    Source: pytorch/pytorch#196678, huggingface/trl#7181; pytorch/pytorch#191937; torch's sdp_utils.cpp.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    repeat = sdpa_attention.repeat_kv
    if hasattr(repeat, "__wrapped__"):  # it is done
        return

    @functools.wraps(repeat)
    def repeat_kv(states: Tensor, times: int) -> Tensor:
        repeated = repeat(states, times)
        return repeated if repeated.device.type == "cpu" else repeated.contiguous()

    in_one_call = sdpa_attention.use_gqa_in_sdpa

    def use_gqa_in_sdpa(mask: Tensor | None, key: Tensor, value: Tensor) -> bool:
        return _flash_attention_takes(key) and in_one_call(mask, key, value)

    sdpa_attention.repeat_kv, sdpa_attention.use_gqa_in_sdpa = repeat_kv, use_gqa_in_sdpa


def _flash_attention_takes(key: Tensor) -> bool:
    if key.device.type != "cuda":
        return True
    return key.dtype != torch.float32 and torch.cuda.get_device_capability(key.device) >= (8, 0)
