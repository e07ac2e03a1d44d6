"""Pictures of predictions, as arrays of pixels: RGB, uint8 (height, width, 3)."""

import io

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from etude.pretrain.looks.usage import Usage

Pixels = npt.NDArray[np.uint8]

STRIP = 6
"""Rows of pixels between the two halves; white where frames were masked."""

_LEAST_ROWS = 120
_COLOURS = "magma"
_MASKED, _VISIBLE = 255, 60


def compared(target_FC: Tensor, predicted_FC: Tensor, mask_F: Tensor) -> Pixels:
    """The truth above; below it what was predicted where frames were masked, the truth elsewhere.

    One pixel across is a frame, one up is a bin (several, of few bins), the lowest at the bottom.
    Colours span the 1st to the 99th percentile of the truth, in both halves.
    """
    filled_FC = predicted_FC.where(mask_F[:, None], target_FC)
    low, high = np.percentile(target_FC.numpy(), (1, 99))
    span = max(float(high - low), 1e-12)

    def half(values_FC: Tensor) -> Pixels:
        level = np.clip((values_FC.numpy().T[::-1] - low) / span, 0.0, 1.0)
        taller = max(1, -(-_LEAST_ROWS // len(level)))
        pixels: Pixels = matplotlib.colormaps[_COLOURS](level, bytes=True)[..., :3]
        return pixels.repeat(taller, axis=0)

    strip_F = np.where(mask_F.numpy(), _MASKED, _VISIBLE).astype(np.uint8)
    strip = np.broadcast_to(strip_F[None, :, None], (STRIP, len(strip_F), 3))
    return np.concatenate([half(target_FC), strip, half(filled_FC)])


def usage_picture(usage: Usage) -> Pixels:
    """A panel for each codebook: how often each class is label and guess, most frequent first."""
    books = len(usage.target_KV)
    across = min(4, books)
    down = -(-books // across)
    figure = Figure(figsize=(3.2 * across, 2.2 * down), layout="constrained", dpi=100)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for k, panel in enumerate(panels):
        if k >= books:
            panel.set_visible(False)
            continue
        order = usage.target_KV[k].argsort(descending=True, stable=True)
        panel.plot(usage.predicted_KV[k][order].numpy(), linewidth=0.8, label="predicted")
        panel.plot(usage.target_KV[k][order].numpy(), linewidth=1.2, label="target")
        panel.set_yscale("symlog", linthresh=1.0)
        panel.set_ylim(bottom=0)
        panel.set_title(f"codebook {k}" if books > 1 else "classes", fontsize=9)
        panel.tick_params(labelsize=7)
    panels[0].legend(fontsize=7)
    panels[0].set_ylabel("masked frames", fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    drawn = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return drawn[..., :3].copy()


def png(pixels: Pixels) -> bytes:
    """As a PNG file."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return buffer.getvalue()
