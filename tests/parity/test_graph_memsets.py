"""A captured graph whose memset nodes were replaced by kernels does what it did."""

import ctypes

import pytest
import torch

from pipeline.graph_memsets import zero_by_kernels


def memset(name: str, tensor: torch.Tensor, value: int, count: int) -> None:
    code = getattr(ctypes.CDLL("libcuda.so.1"), name)(
        ctypes.c_uint64(tensor.data_ptr()), value, ctypes.c_size_t(count), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    )
    assert code == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_zeroing_is_done_by_kernels():
    """Bytes, half words and words, odd counts, one behind the other and between kernels; what is set to another value stays a memset."""
    with torch.cuda.stream(torch.cuda.Stream()):
        numbers, odd, halves, ones = (
            torch.empty(1000, dtype=dtype, device="cuda") for dtype in (torch.int32, torch.uint8, torch.int16, torch.uint8)
        )
        total = torch.empty(1, dtype=torch.int64, device="cuda")
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            memset("cuMemsetD32Async", numbers, 0, 999)
            numbers.add_(2)
            memset("cuMemsetD8Async", odd, 0, 13)
            memset("cuMemsetD16Async", halves, 0, 7)
            memset("cuMemsetD8Async", ones, 1, 500)
            torch.sum(numbers, 0, out=total[0])
            memset("cuMemsetD32Async", numbers, 0, 1)
        assert zero_by_kernels(graph) == 4
        assert zero_by_kernels(graph) == 0
        graph.instantiate()
        for spoilt in (9, 5):
            for tensor in (numbers, odd, halves, ones):
                tensor.fill_(spoilt)
            graph.replay()
            torch.cuda.synchronize()
            assert total.item() == 999 * 2 + spoilt + 2
            assert numbers.tolist() == [0] + [2] * 998 + [spoilt + 2]
            assert odd.tolist() == [0] * 13 + [spoilt] * 987
            assert halves.tolist() == [0] * 7 + [spoilt] * 993
            assert ones.tolist() == [1] * 500 + [spoilt] * 500


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_graph_without_memsets_stays_as_it_is():
    with torch.cuda.stream(torch.cuda.Stream()):
        tensor = torch.zeros(4, device="cuda")
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            tensor.add_(1)
        assert zero_by_kernels(graph) == 0
        graph.instantiate()
        graph.replay()
        torch.cuda.synchronize()
        assert tensor.tolist() == [1.0] * 4
