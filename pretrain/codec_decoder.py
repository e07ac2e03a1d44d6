"""The way back from tokens to sound: EnCodec's decoder, for listening and nothing else.

It is read from the file that the tokeniser was read from, at the first use: training, which only
encodes, neither needs nor holds it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.models.precision import plain_float32
from etude.pretrain.codec import (
    codec_from_tensors,
    read_weights,
    transformers_name,
    untrained_model,
)
from etude.pretrain.errors import ConfigError


@final
class TokenDecoder:
    """encodec's ``EncodecModel.decode``, on the CPU.

    Not a module: inside an objective its weights would be taken for ones to train.

    :param weights: file or folder, as for ``load_codec``.
    """

    sample_rate = 24_000

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._loaded: tuple[Tensor, Any] | None = None

    @torch.no_grad()
    def __call__(self, codes_FK: Tensor) -> Tensor:
        """Sound of tokens of the coarsest K codebooks, float32 (F * 320,).

        :raises ConfigError: if the file holds no decoder.
        """
        if self._loaded is None:
            tensors = read_weights(self._weights)
            books_KVD = codec_from_tensors(tensors, source=str(self._weights)).codebooks_KVD
            self._loaded = books_KVD, _decoder_of(tensors, str(self._weights))
        books_KVD, decoder = self._loaded
        codes_KF = codes_FK.cpu().T
        embedding_FD = torch.zeros(codes_KF.shape[1], books_KVD.shape[2])
        with plain_float32(torch.device("cpu")):
            for code_F, book_VD in zip(codes_KF, books_KVD, strict=False):
                embedding_FD = embedding_FD + F.embedding(code_F, book_VD)
            waveform: Tensor = decoder(embedding_FD.T[None])[0, 0]
        return waveform


def decoder_name(name: str, *, older_weight_norm: bool = False) -> str:
    """What transformers calls a tensor of encodec's ``decoder.…``, which mirrors its encoder."""
    mirrored = name.replace("decoder.", "encoder.", 1).replace(".convtr.convtr.", ".conv.conv.")
    theirs = transformers_name(mirrored, older_weight_norm=older_weight_norm)
    return theirs.replace("encoder.", "decoder.", 1)


def _decoder_of(tensors: Mapping[str, Tensor], source: str) -> Any:
    """The decoder that is among the tensors, in encodec's or transformers' names."""
    # Any: what encodec's modules keep in attributes is not declared.
    decoder: Any = untrained_model(seed=0).decoder
    wanted = {f"decoder.{name}": tensor.shape for name, tensor in decoder.state_dict().items()}
    layouts = (
        {name: name for name in wanted},
        {name: decoder_name(name) for name in wanted},
        {name: decoder_name(name, older_weight_norm=True) for name in wanted},
    )
    for layout in layouts:
        fits = (key in tensors and tensors[key].shape == wanted[n] for n, key in layout.items())
        if all(fits):
            named = {n.removeprefix("decoder."): tensors[key] for n, key in layout.items()}
            decoder.load_state_dict({name: tensor.float() for name, tensor in named.items()})
            return decoder.eval()
    raise ConfigError(
        f"{source} has no decoder of EnCodec 24 kHz, so its tokens cannot be made audible. Take "
        "the authors' file or transformers' model.safetensors."
    )
