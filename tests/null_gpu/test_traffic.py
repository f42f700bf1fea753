"""The bytes that a compiled layer's kernels move: read from what Inductor writes, and little above the least."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.null_gpu.conftest import Card
from tests.null_gpu.traffic import kernels

SLACK = 1.12
"""Of the least; in the first measurement 1.077 (float32) and 1.101 (bfloat16)."""

MODULE = """
triton_poi_fused_add_0 = async_compile.triton('triton_poi_fused_add_0', '''
    inductor_meta={'kernel_name': 'triton_poi_fused_add_0', 'kernel_num_gb': 0.25, 'kernel_flop': 0},
def call(args):
        triton_poi_fused_add_0.run(*args, stream=raw_stream0)
''', device_str='cuda')
triton_tem_fused_flex_attention_1 = async_compile.triton('triton_tem_fused_flex_attention_1', '''
''', device_str='cuda')
triton_per_fused_mean_2 = async_compile.triton('triton_per_fused_mean_2', '''
    inductor_meta={'kernel_name': 'triton_per_fused_mean_2', 'kernel_num_gb': 1e-06, 'kernel_flop': 0},
''', device_str='cuda')

    def call(self, args):
            triton_poi_fused_add_0.run(buf0, buf1, 4, stream=raw_stream0)
            triton_tem_fused_flex_attention_1.run(buf1, buf2, stream=raw_stream0)
            triton_per_fused_mean_2.run(buf2, buf3, 4, stream=raw_stream0)
            triton_poi_fused_add_0.run(buf3, buf4, 4, stream=raw_stream0)
"""


def test_each_launch_counts_and_only_those_of_the_module():
    expected = [("triton_poi_fused_add_0", 250_000_000), ("triton_per_fused_mean_2", 1_000)]
    assert list(kernels(MODULE)) == [*expected, expected[0]]


@pytest.mark.parametrize("stream", ["float32", "bfloat16"])
def test_a_layer_moves_little_more_than_it_must(
    card: Card, stream: str, record_property: Callable[[str, object], None]
) -> None:
    told = card.says("tests.null_gpu.traffic", stream)
    record_property(f"bytes of a layer, {stream} residual stream", told)
    found = re.search(r"([\d.]+) MB  a layer, forward and backward; ([\d.]+) MB at least", told)
    assert found, told
    total, least = map(float, found.groups())
    assert least < total < SLACK * least, told
