"""Backbones: networks from face images, raw RGB pixels 0..255 (b, 3, 112, 112), to embeddings.

| name | network | embedding | neck | family |
|---|---|---|---|---|
| r18 r34 r50 r100 r152 r200 | IResNet | 512 | E | mxnet |
| ir_se_50 | IResNet-50 with squeeze-and-excitation | 512 | E | mxnet |
| r18_half | IResNet-18 with half the channels, for laptops | 256 | E | mxnet |
| y1 y2 | MobileFaceNet of InsightFace | 128, 256 | GDC | mxnet |
| vit_t vit_s vit_b vit_h and variants | ViT of arcface_torch | 512 | | arcface_torch |
| mbf mbf_large | MobileFaceNet of arcface_torch, wider | 512 | GDC | arcface_torch |

These are the defaults of `build`; `necks` and `families` say what the two choices mean. The
ViTs are vit_t, vit_t_dp005_mask0, vit_s, vit_s_dp005_mask_0, vit_b, vit_b_dp005_mask_005,
vit_l_dp005_mask_005 and vit_h, as arcface_torch calls them: stochastic depth and masked tokens in
training. They have no neck, dropout or image size to choose. Everything
here is plain `torch.nn`. `register` adds a network, from outside this package too.
"""

from facescale.backbones import iresnet, mobilefacenet, vit
from facescale.backbones.backbone import Backbone, Spec
from facescale.backbones.families import Family
from facescale.backbones.registry import NAMES, build, register

__all__ = [
    "NAMES",
    "Backbone",
    "Family",
    "Spec",
    "build",
    "iresnet",
    "mobilefacenet",
    "register",
    "vit",
]
