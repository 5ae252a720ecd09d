"""Training: the parts of a run, the loop over them, and what it leaves behind."""

from facescale.models.weights import load_backbone, load_weights_, save_backbone
from facescale.training.loop import Summary, train
from facescale.training.state import TrainState, build
from facescale.training.step import train_step

__all__ = [
    "Summary",
    "TrainState",
    "build",
    "load_backbone",
    "load_weights_",
    "save_backbone",
    "train",
    "train_step",
]
