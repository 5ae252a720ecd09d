"""Train face recognition over millions of identities, and measure how fast and large that goes."""

from facescale import backbones
from facescale.backbones import build as backbone
from facescale.config import Config
from facescale.data.dataset import open_dataset
from facescale.data.loader import Loader
from facescale.data.pairs import PairSet, load_pairs
from facescale.data.transforms import Augment
from facescale.evaluation.embedding import verify_pairs
from facescale.evaluation.verification import Verification, verify
from facescale.head import Margin, MarginHead, arcface, combined, cosface
from facescale.training import Summary, load_backbone, save_backbone, train

__version__ = "0.1.0"

__all__ = [
    "Augment",
    "Config",
    "Loader",
    "Margin",
    "MarginHead",
    "PairSet",
    "Summary",
    "Verification",
    "arcface",
    "backbone",
    "backbones",
    "combined",
    "cosface",
    "load_backbone",
    "load_pairs",
    "open_dataset",
    "save_backbone",
    "train",
    "verify",
    "verify_pairs",
]
