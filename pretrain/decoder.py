"""What fills in the masked frames where the encoder skips them (data2vec 2.0, section 3.2)."""

import torch
from torch import Tensor, nn


class ConvDecoder(nn.Module):
    """Residual convolutions over the encoder's visible frames and learned fillers.

    Each layer is a grouped convolution, a layer norm without parameters and a GELU, as in fairseq's
    data2vec 2.0 (``Decoder1d``); the filler is learned rather than noise.

    :param dim: the encoder's width, in and out.
    :param inner: width of the convolutions.
    """

    def __init__(self, dim: int, *, inner: int, layers: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.filler = nn.Parameter(torch.empty(dim).uniform_())
        self.expand = nn.Linear(dim, inner)
        self.convs = nn.ModuleList(
            nn.Conv1d(inner, inner, kernel, padding=kernel // 2, groups=groups)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(inner, elementwise_affine=False)
        self.project = nn.Linear(inner, dim)

    def forward(self, visible_BVD: Tensor, visible_BV: Tensor, num_frames: int) -> Tensor:
        """Visible frames (B, V, D) at ``visible_BV`` to all frames (B, F, D)."""
        filler = self.filler.to(visible_BVD.dtype)
        everything = filler.expand(len(visible_BVD), num_frames, -1)
        index = visible_BV[..., None].expand_as(visible_BVD)
        hidden = self.expand(everything.scatter(1, index, visible_BVD)).transpose(1, 2)
        for conv in self.convs:
            made = nn.functional.gelu(self.norm(conv(hidden).transpose(1, 2))).transpose(1, 2)
            hidden = hidden + made
        projected: Tensor = self.project(hidden.transpose(1, 2))
        return projected
