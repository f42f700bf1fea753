"""Bytes that the kernels between a compiled layer's products move, from the Triton code that Inductor wrote for it.

``python -m tests.null_gpu.traffic [STREAM [MODEL]]``, with torch's CUDA build and the null card, prints each kernel of
a layer of SmolLM2-135M, forward and backward, their sum beside the least (`runners/bench/roofline.py`), and how long
all layers would take at a card's bandwidth. STREAM: type of the residual stream; MODEL: a change to the model, as JSON.

A kernel's bytes are Inductor's own count. What a kernel reads at two offsets, as the rotation does its queries and
keys, counts twice there; a card takes the second from its cache.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

BATCH, TIME = 16, 2048
CARDS = {"H200": 4.8e12, "H100": 3.35e12}


def kernels(code: str) -> Iterator[tuple[str, int]]:
    """Name and bytes of each Triton kernel that a module written by Inductor launches, in the order of its launches.

    A kernel that is launched twice comes twice. Templates, such as FlexAttention's, are attention's: left out.
    """
    pieces = re.split(r"^(\w+) = async_compile\.triton\(", code, flags=re.MULTILINE)
    sizes = {}
    for name, source in zip(pieces[1::2], pieces[2::2], strict=True):
        if count := re.search(r"'kernel_num_gb': ([\d.e+-]+)", source):
            sizes[name] = round(float(count[1]) * 1e9)
    for name in re.findall(r"^ +(triton_\w+)\.run\((?!\*args)", code, re.MULTILINE):
        if not name.startswith("triton_tem"):
            yield name, sizes[name]


def layer_code(stream: str, delta: dict[str, object]) -> list[str]:
    """What Inductor writes for a training step of one layer, forward and backward: a module each."""
    import torch
    import torch._inductor.config
    from torch._inductor.utils import run_and_get_code
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from llama_variants import LlamaDecoderLayer, ModelConfig
    from llama_variants.blocks.masks import visible

    config, device = ModelConfig.preset("smollm2-135m").override(delta), torch.device("cuda")
    with device:
        layer = LlamaDecoderLayer(config)
        rotation = layer.self_attn.rotary.rotation(torch.arange(TIME)[None])
        mask = visible(TIME, 0, layer.self_attn.window, None, device, by_block=True)
        x, grad = torch.zeros(2, BATCH, TIME, config.hidden_size, dtype=getattr(torch, stream)).unbind()
    layer.compile(fullgraph=True, dynamic=False)

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = layer(x.detach().requires_grad_(), rotation, mask)
        y.backward(grad)

    counted = torch._inductor.config.patch(benchmark_kernel=True, force_disable_caches=True)
    with counted, sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # cuDNN starts on no null card
        return run_and_get_code(step)[1]


def main() -> None:
    """Print the table."""
    from llama_variants import ModelConfig
    from runners.bench.roofline import layer_bytes

    stream, delta = sys.argv[1] if len(sys.argv) > 1 else "float32", json.loads([*sys.argv, "{}"][2:][0])
    found = [kernel for code in layer_code(stream, delta) for kernel in kernels(code)]
    for name, size in found:
        print(f"{size / 1e6:8.1f} MB  {name}")
    config = ModelConfig.preset("smollm2-135m").override(delta)
    total, least = sum(size for _, size in found), layer_bytes(config, "bfloat16", stream) * BATCH * TIME
    print(f"{total / 1e6:8.1f} MB  a layer, forward and backward; {least / 1e6:.1f} MB at least")
    for card, rate in CARDS.items():
        ms = [1000 * config.num_hidden_layers * size / rate for size in (total, least)]
        print(f"predicted on an {card}: {ms[0]:.1f} ms a step for all layers, {ms[1]:.1f} ms at least")


if __name__ == "__main__":
    main()
