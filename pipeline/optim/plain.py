"""Defines torch's optimizers without torch's compiler, whose import takes a second.

torch wraps some methods of its optimizers, so that torch.compile does not trace into them, and imports the
compiler for that as soon as one is called. Our step is compiled without its optimizer, if at all: these are
the methods under the wrappers.
"""

from inspect import unwrap

import torch


class _Plain(torch.optim.Optimizer):
    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)


class Sgd(_Plain, torch.optim.SGD):
    """SGD of torch."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class AdamW(_Plain, torch.optim.AdamW):
    """AdamW of torch."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
