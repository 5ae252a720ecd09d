"""Vision transformers for faces, as arcface_torch trains them on WebFace42M.

Source: Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021; stochastic depth of Huang et
al., ECCV 2016; masked tokens as of He et al., CVPR 2022. Weight names are arcface_torch's, so that
its `model.pt` loads as it is.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from facescale.backbones.backbone import IMAGE_SHAPE, Backbone, normalise
from facescale.backbones.families import ARCFACE_TORCH
from facescale.backbones.registry import register, require

_FEATURE_EPS = 2e-5  # of the feature head's BatchNorm
_STD = 0.02  # of the initial weights, which arcface_torch cuts off at +-2: after 100 deviations


@register("vit_h", width=1024, depth=48, drop_path=0.1, recompute=True)
@register("vit_l_dp005_mask_005", width=768, depth=24, mask=0.05, recompute=True)
@register("vit_b_dp005_mask_005", width=512, depth=24, mask=0.05, recompute=True)
@register("vit_b", width=512, depth=24, drop_path=0.1, mask=0.1, recompute=True)
@register("vit_s_dp005_mask_0", width=512, depth=12)
@register("vit_s", width=512, depth=12, drop_path=0.1, mask=0.1)
@register("vit_t_dp005_mask0", width=256, depth=12)
@register("vit_t", width=256, depth=12, drop_path=0.1, mask=0.1)
class VisionTransformer(Backbone):
    """Patches of 9 x 9 pixels as tokens, `depth` blocks, and a linear layer over all tokens.

    112 pixels have room for 12 x 12 patches; the last four rows and columns are not seen. In
    training, each image leaves out a random share of its tokens, which the blocks are spared; the
    feature head gets a learned token in their places.

    Args:
        width: Length of a token.
        depth: Number of blocks.
        heads: Of each block's attention; must divide `width`.
        embedding_dim: Length of an embedding.
        drop_path: Probability that the last block's residual branch is left out for an image; the
            first block's is 0, and it grows linearly.
        mask: Share of tokens that training leaves out, in [0, 1).
        recompute: Default of `train.recompute`: large networks do not fit without it.
        family: "arcface_torch", the only one that has this network.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int = 8,
        embedding_dim: int = 512,
        drop_path: float = 0.05,
        mask: float = 0.0,
        recompute: bool = False,
        family: str = ARCFACE_TORCH.name,
    ) -> None:
        require("family of a ViT", family, [ARCFACE_TORCH.name])
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
        super().__init__(embedding_dim=embedding_dim, family=family)
        self.mask, self.recomputes = mask, recompute
        self.patch_embed = PatchEmbed(width, patch=9)
        tokens = (IMAGE_SHAPE[1] // 9) ** 2
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * tokens, width, bias=False),
            nn.BatchNorm1d(width, eps=_FEATURE_EPS),
            nn.Linear(width, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=_FEATURE_EPS),
        )
        self._initialise_()

    def _initialise_(self) -> None:
        if self.mask_token.is_meta:
            return  # no memory; torch would take a millisecond for each layer
        nn.init.normal_(self.mask_token, std=_STD)
        nn.init.normal_(self.pos_embed, std=_STD)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=_STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """RGB pixels 0..255 (b, 3, 112, 112), of any type, to embeddings (b, embedding_dim).

        The blocks follow the surrounding autocast; the feature head and the embeddings have the
        type of the weights. Raises ValueError for images of another shape.
        """
        self.check(pixels)
        dtype = self.pos_embed.dtype
        images = normalise(pixels, dtype, ARCFACE_TORCH.pixel_scale)
        x: Tensor = self.patch_embed(images) + self.pos_embed
        places = None
        if self.training and self.mask > 0.0:
            x, places = leave_out(x, self.mask)
        for block in self.blocks:
            x = block(x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.to(dtype))
            if places is not None:
                x = put_back(x, self.mask_token, places)
            embeddings: Tensor = self.feature(x.flatten(1))
        return embeddings


def leave_out(x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Leave out a random share of the tokens (b, n, width) of each image.

    Returns the others, in random order, and for each of the n places its index in that order: what
    lies beyond the kept ones was left out. Random numbers are torch's, as those of dropout.
    """
    order = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)
    kept = order[:, : int(x.shape[1] * (1.0 - share)), None]
    return x.gather(1, kept.expand(-1, -1, x.shape[2])), order.argsort(dim=1)


def put_back(x: Tensor, token: Tensor, places: Tensor) -> Tensor:
    """Undo `leave_out`, with `token` (1, 1, width) where there is none; (b, n, width)."""
    missing = token.expand(len(x), places.shape[1] - x.shape[1], -1)
    return torch.cat([x, missing], dim=1).gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


class PatchEmbed(nn.Module):
    """Each patch of an image to a token by one linear map."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(IMAGE_SHAPE[0], width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, tokens, width)."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a LayerNorm, beside the identity."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, width) to the same."""
        x = x + self._sometimes(self.attn(self.norm1(x)))
        return x + self._sometimes(self.mlp(self.norm2(x)))

    def _sometimes(self, x: Tensor) -> Tensor:
        """In training left out for some images, and larger for the others: stochastic depth."""
        if not self.training or self.drop_path == 0.0:
            return x
        keep = 1.0 - self.drop_path
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)


class Attention(nn.Module):
    """Multi-head self-attention; no bias in front of it, one behind."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, width) to the same."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(*qkv)
        projected: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """Two linear layers with ReLU6 between them, whose bound suits half precision."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, width) to the same."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y
