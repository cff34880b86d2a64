"""Run on two processes by `tests/launch/test_recipes.py`: a model whose weights FSDP2 shards, against the whole one.

accelerate shards on GPUs only; `fully_shard`, which it calls, works on CPUs too.
"""

import gc
import sys
from copy import deepcopy

import torch
from accelerate import PartialState
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from alignment.arguments import ModelArguments
from alignment.generation import Decoding, generate
from alignment.head import loss_in_head
from alignment.models import load_for_training
from alignment.pretrained import load_tokenizer


def main() -> None:
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    tokenizer = load_tokenizer(sys.argv[1])
    torch.manual_seed(0)
    whole = load_for_training(ModelArguments(model_name_or_path=sys.argv[1], dtype="float32", lora_dropout=0.0))
    for name, weight in whole.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)  # which begins as zeros
    sharded = deepcopy(whole)
    for layer in sharded.get_base_model().model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    register_fsdp_forward_method(sharded, "generate")  # as the trainer does

    prompts = [tokenizer("안녕 " * n).input_ids for n in (4, 60, 120, 180)]
    # The longer the prompt the longer the text, so one process has more tokens to write.
    for do_sample in (False, True):
        decoding = Decoding(do_sample=do_sample, max_new_tokens_ratio=0.1)
        texts, expected = (
            generate(
                model, tokenizer, prompts, end_token_id=tokenizer.eos_token_id, max_new_tokens=64, decoding=decoding
            )
            for model in (sharded, whole)
        )
        assert len({len(tokenizer(text).input_ids) for text in texts}) > 2
        assert texts == expected

    ids = torch.tensor([prompts[1]])
    labels = ids.clone()
    labels[:, :-9] = -100
    losses = []
    for model in (sharded, whole):
        with loss_in_head(model.get_output_embeddings(), labels):
            losses.append(model(input_ids=ids, use_cache=False).logits)
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1])
    pairs = [(a.grad, b.grad) for a, b in zip(sharded.parameters(), whole.parameters(), strict=True) if b.requires_grad]
    assert pairs
    for ours, plain in pairs:
        assert plain.any()
        torch.testing.assert_close(ours.full_tensor(), plain)
    print(f"process {state.process_index}: {len(pairs)} gradients agree")


main()
gc.collect()  # the models, which hold process groups
torch.distributed.destroy_process_group()  # or its threads may still run when the interpreter ends, and abort it
