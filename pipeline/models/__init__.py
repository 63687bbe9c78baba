"""Builds networks by name."""

from pipeline.models.build import build_model, num_parameters
from pipeline.models.cam_layer import cam_target_layer
from pipeline.models.davidnet import DavidNet
from pipeline.models.pretrained import load_pretrained, load_weights
from pipeline.models.resnet import ResNet
from pipeline.models.speednet import SpeedNet

__all__ = [
    "DavidNet",
    "ResNet",
    "SpeedNet",
    "build_model",
    "cam_target_layer",
    "load_pretrained",
    "load_weights",
    "num_parameters",
]
