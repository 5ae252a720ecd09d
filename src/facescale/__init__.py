"""Train face recognition over millions of identities, and measure how fast and large that goes.

Names are imported when they are first used: `import facescale` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_PLACES = {
    "Augment": "data.transforms:Augment",
    "Config": "config:Config",
    "Loader": "data.loader:Loader",
    "Margin": "head:Margin",
    "MarginHead": "head:MarginHead",
    "PairSet": "data.pairs:PairSet",
    "Summary": "training:Summary",
    "Verification": "evaluation.verification:Verification",
    "arcface": "head:arcface",
    "backbone": "backbones:build",
    "backbones": "backbones:",
    "combined": "head:combined",
    "cosface": "head:cosface",
    "load_backbone": "training:load_backbone",
    "load_pairs": "data.pairs:load_pairs",
    "open_dataset": "data.dataset:open_dataset",
    "save_backbone": "training:save_backbone",
    "train": "training:train",
    "verify": "evaluation.verification:verify",
    "verify_pairs": "evaluation.embedding:verify_pairs",
}
"""Module and name of everything public."""


def __getattr__(name: str) -> Any:
    """A public name, imported on first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'facescale' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = import_module(f"facescale.{module}")
    globals()[name] = value = getattr(value, attribute) if attribute else value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
