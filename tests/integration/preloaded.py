"""Import, in the server that forks ranks, all that takes time when a run starts."""

import accelerate  # noqa: F401
import nvidia.dali.fn  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from torch._dynamo import utils  # noqa: F401

import tests.integration.scenes  # noqa: F401
