"""Owns mixed precision: the autocast context and the only GradScaler of the program.

`training/step.py` scales the loss with it, and updates the loss scale.
"""

import torch

from pipeline.config import PrecisionConfig, ScaledPrecision

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Precision:
    """Autocast and loss scaling for one device (Micikevicius et al. 2018, arXiv:1710.03740).

    In bf16 and fp32 the scaler is disabled: it does nothing, so that the step needs no `if`.
    """

    def __init__(self, config: PrecisionConfig, device: torch.device):
        self.mode = config.mode
        scaled = isinstance(config, ScaledPrecision)
        scale = config if scaled else ScaledPrecision()  # of no effect in a scaler that is disabled
        self.scaler = torch.amp.GradScaler(
            device.type,
            init_scale=scale.init_scale,
            growth_interval=scale.growth_interval,
            enabled=scaled,
        )
        self._device_type = device.type

    def autocast(self) -> torch.autocast:
        return torch.autocast(self._device_type, _DTYPES.get(self.mode), enabled=self.mode in _DTYPES)

    def loss_scale(self) -> float:
        """Return the current loss scale, after waiting for the device; 1 in bf16 and fp32."""
        return self.scaler.get_scale()
