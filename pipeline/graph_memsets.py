"""Zeroing inside a captured CUDA graph, done by kernels: a memset node keeps the GPU waiting several times as long as a small kernel."""

import ctypes
from typing import Any

import torch

_KERNEL, _MEMSET = 0, 2  # CUgraphNodeType

_Nodes = list[int]


class _Memset(ctypes.Structure):
    """CUDA_MEMSET_NODE_PARAMS."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("pitch", ctypes.c_size_t),
        ("value", ctypes.c_uint),
        ("element_size", ctypes.c_uint),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


class _Kernel(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS, version 2: only handed from one call to another."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("grid_and_block_and_shared_memory", ctypes.c_uint * 7),
        ("arguments", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


class _Memory:
    """Device memory at an address, as torch takes it over from other libraries, without a copy."""

    def __init__(self, address: int, num_bytes: int):
        words = address % 4 == 0 and num_bytes % 4 == 0
        shape, kind = ((num_bytes // 4,), "<i4") if words else ((num_bytes,), "|u1")
        self.__cuda_array_interface__ = {"data": (address, False), "shape": shape, "typestr": kind, "version": 3}


class _Driver:
    """The graph functions of the CUDA driver, by the names that have kept their arguments since CUDA 12."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def call(self, name: str, *arguments: Any) -> None:
        """
        Raises:
            RuntimeError: the driver returned an error.
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} returned CUDA error {code}")

    def _nodes(self, name: str, handle: int) -> _Nodes:
        count = ctypes.c_size_t()
        self.call(name, ctypes.c_void_p(handle), None, ctypes.byref(count))
        if not count.value:
            return []
        found = (ctypes.c_void_p * count.value)()
        self.call(name, ctypes.c_void_p(handle), found, ctypes.byref(count))
        return [node for node in found if node is not None]

    def nodes(self, graph: int, kind: int) -> _Nodes:
        """The graph's nodes of one kind."""
        wanted, found = [], ctypes.c_int()
        for node in self._nodes("cuGraphGetNodes", graph):
            self.call("cuGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(found))
            if found.value == kind:
                wanted.append(node)
        return wanted

    def before(self, node: int) -> _Nodes:
        return self._nodes("cuGraphNodeGetDependencies", node)

    def after(self, node: int) -> _Nodes:
        return self._nodes("cuGraphNodeGetDependentNodes", node)

    def memset(self, node: int) -> _Memset:
        parameters = _Memset()
        self.call("cuGraphMemsetNodeGetParams", ctypes.c_void_p(node), ctypes.byref(parameters))
        return parameters

    def replace(self, graph: int, memset: int, kernel: int) -> None:
        """Put a copy of a kernel node, of any graph, where a memset node is."""
        parameters, copy = _Kernel(), ctypes.c_void_p()
        self.call("cuGraphKernelNodeGetParams_v2", ctypes.c_void_p(kernel), ctypes.byref(parameters))
        before, after = self.before(memset), self.after(memset)
        handles = (ctypes.c_void_p * len(before))(*before)
        self.call(
            "cuGraphAddKernelNode_v2",
            ctypes.byref(copy),
            ctypes.c_void_p(graph),
            handles,
            ctypes.c_size_t(len(before)),
            ctypes.byref(parameters),
        )
        count = len(after)
        sources, targets = (ctypes.c_void_p * count)(*[copy.value] * count), (ctypes.c_void_p * count)(*after)
        self.call("cuGraphAddDependencies", ctypes.c_void_p(graph), sources, targets, ctypes.c_size_t(count))
        self.call("cuGraphDestroyNode", ctypes.c_void_p(memset))


def zero_by_kernels(graph: torch.cuda.CUDAGraph) -> int:
    """Replace a captured graph's memset nodes that write zeros by kernel nodes that do.

    cuDNN zeroes counters before most convolutions of a channels_last network.

    Args:
        graph: captured with `keep_graph=True`, not instantiated yet. Memory of its pool is not touched now.

    Returns:
        How many nodes were replaced.

    Raises:
        RuntimeError: the driver refused; the graph is not to be used.
    """
    driver, raw = _Driver(), graph.raw_cuda_graph()
    zeroing = []
    for node in driver.nodes(raw, _MEMSET):
        memset = driver.memset(node)
        if memset.value == 0 and memset.height == 1:
            zeroing.append((node, _Memory(memset.address, memset.width * memset.element_size)))
    if not zeroing:
        return 0
    targets = [torch.as_tensor(memory, device="cuda") for _, memory in zeroing]
    for dtype in (torch.int32, torch.uint8):
        torch.empty(1, dtype=dtype, device="cuda").fill_(0)  # loads the kernel, which capturing must not
    fills = torch.cuda.CUDAGraph(keep_graph=True)
    fills.capture_begin(capture_error_mode="thread_local")
    for target in targets:
        target.fill_(0)
    fills.capture_end()
    following = {(*driver.before(node), None)[0]: node for node in driver.nodes(fills.raw_cuda_graph(), _KERNEL)}
    kernel = None
    for node, _ in zeroing:  # the fills stand one behind the other
        kernel = following[kernel]
        driver.replace(raw, node, kernel)
    return len(zeroing)
