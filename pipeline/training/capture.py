"""Captures work on a GPU as a CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def new_graph(pool: Any = None) -> Iterator[torch.cuda.CUDAGraph]:
    """Capture the work of the block on the current stream, which is not the default one, as a new graph.

    Args:
        pool: memory of graphs that never run at the same time, to share it; None: memory of its own.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    # thread_local: DALI's threads allocate and synchronise while this thread captures
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        yield graph
