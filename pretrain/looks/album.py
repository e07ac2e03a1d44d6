"""What a look leaves: files in a folder that is whole or absent, and the same in TensorBoard."""

import io
import shutil
from pathlib import Path
from typing import final

import soundfile
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from etude.data.files import json_bytes
from etude.pretrain.looks.pictures import Pixels, png


@final
class Album:
    """Files of one look, beside its folder until :meth:`publish`.

    :param folder: ``RUN/looks/step-…``.
    :param writer: of TensorBoard, where there is one.
    """

    def __init__(self, folder: Path, step: int, writer: SummaryWriter | None) -> None:
        self._folder = folder
        self._draft = folder.with_suffix(".tmp")
        self._step = step
        self._writer = writer
        if self._draft.exists():
            shutil.rmtree(self._draft)  # of a process that was killed
        self._draft.mkdir(parents=True)

    def picture(self, name: str, pixels: Pixels) -> None:
        """``NAME.png``."""
        (self._draft / f"{name}.png").write_bytes(png(pixels))
        if self._writer is not None:
            self._writer.add_image(  # type: ignore[no-untyped-call]
                f"look/{name}", pixels, self._step, dataformats="HWC"
            )

    def sound(self, name: str, waveform: Tensor, sample_rate: int) -> None:
        """``NAME.wav``, 16 bit.

        :param waveform: (T,), int16 or float in [-1, 1]; what is louder is clipped.
        """
        if waveform.is_floating_point():
            waveform = (waveform * 32768).round().clamp(-32768, 32767).to(torch.int16)
        # By way of memory: what soundfile raises for a full disk is no OSError.
        file = io.BytesIO()
        soundfile.write(file, waveform.numpy(), sample_rate, format="WAV", subtype="PCM_16")
        (self._draft / f"{name}.wav").write_bytes(file.getvalue())
        if self._writer is not None:
            self._writer.add_audio(  # type: ignore[no-untyped-call]
                f"look/{name}", waveform[None].float() / 32768, self._step, sample_rate
            )

    def note(self, name: str, content: object, text: str) -> None:
        """``NAME.json`` for programs; ``text`` for TensorBoard."""
        (self._draft / f"{name}.json").write_bytes(json_bytes(content))
        if self._writer is not None:
            self._writer.add_text(  # type: ignore[no-untyped-call]
                f"look/{name}", text, self._step
            )

    def publish(self) -> None:
        """Gives the folder its name."""
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._draft.rename(self._folder)

    def discard(self) -> None:
        """Removes what was not published."""
        shutil.rmtree(self._draft, ignore_errors=True)
