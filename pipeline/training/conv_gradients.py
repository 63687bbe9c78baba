"""Computes the two gradients of a convolution side by side, in steps that are captured in a CUDA graph.

Neither needs the other, but autograd launches one after the other. On a Hopper GPU many of cuDNN's weight
gradients begin with a launch of a single block, which prepares their workspace for 7 to 15 us, and each
gradient ends with idle multiprocessors. As branches of the graph one gradient fills the gaps of the other.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

_BACKWARD = torch.ops.aten.convolution_backward.default


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@torch.library.custom_op("quickres::convolution_gradients", mutates_args=())
def convolution_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of a convolution by x and by the weight.

    The arguments are those of `torch.nn.functional.conv2d`; `gradient` is that by the output.
    """
    arguments = gradient, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups
    # Outside of a capture cuDNN may be choosing algorithms, by times that a second stream would change.
    if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        by_x, by_weight, _ = _BACKWARD(*arguments, [True, True, False])
        return by_x, by_weight
    main, side = torch.cuda.current_stream(x.device), _side_stream(x.device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        by_weight = _BACKWARD(*arguments, [False, True, False])[1]
    by_x = _BACKWARD(*arguments, [True, False, False])[0]
    main.wait_stream(side)
    return by_x, by_weight


@convolution_gradients.register_fake
def _fake_gradients(gradient, x, weight, stride, padding, dilation, groups):
    arguments = gradient, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups
    return _BACKWARD(*arguments, [True, True, False])[:2]


class SideBySide(CustomGraphPass):
    """Makes inductor call `convolution_gradients` wherever both gradients of a convolution are computed."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=_BACKWARD):
            *operands, _, stride, padding, dilation, transposed, _, groups, wanted = node.args
            if transposed or list(wanted) != [True, True, False]:
                continue
            with graph.inserting_before(node):
                arguments = (*operands, stride, padding, dilation, groups)
                both = graph.call_function(torch.ops.quickres.convolution_gradients.default, arguments)
            both.meta.update(node.meta, val=tuple(node.meta["val"][:2]))
            node.replace_all_uses_with(both)
            graph.erase_node(node)

    def __eq__(self, other: object) -> bool:
        # dynamo compares the options of two networks before it takes the code of one for the other
        return isinstance(other, SideBySide)

    def __hash__(self) -> int:
        return hash(SideBySide)

    def uuid(self) -> bytes:
        """Return what tells inductor's cache that this file changed."""
        return get_hash_for_files((__file__,))
