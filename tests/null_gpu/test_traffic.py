"""The bytes of kernels are read from what Inductor writes: here from its shape, cut down to what is read."""

from __future__ import annotations

from tests.null_gpu.traffic import kernels

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
