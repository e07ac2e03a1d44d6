"""F: fairseq2's wav2vec 2.0 as it comes: its own masks, quantizer and contrastive loss, no CQT."""

from typing import Any

import soundfile  # noqa: F401  (before fairseq2, whose native half wants its libsndfile)
import torch
from fairseq2.models.wav2vec2 import Wav2Vec2Config, create_wav2vec2_model
from fairseq2.nn import BatchLayout
from torch import Tensor

from .common import GEOMETRY, Problem, Way, stepper

DROPOUTS = ("dropout_p", "attn_dropout_p", "ffn_inner_dropout_p", "layer_drop_p")


def fairseq2_wav2vec2(problem: Problem) -> Way:
    size = GEOMETRY[problem.size]
    torch.manual_seed(0)
    config = Wav2Vec2Config()
    encoder: Any = config.encoder_config
    encoder.model_dim, encoder.ffn_inner_dim = size["dim"], size["ffn_dim"]
    encoder.num_encoder_layers, encoder.num_encoder_attn_heads = size["layers"], size["heads"]
    for name in (*DROPOUTS, "first_pass_dropout_p"):
        setattr(encoder, name, 0.0)
    model = create_wav2vec2_model(config).train().to(problem.device)
    waveform = problem.waveform()
    layout = BatchLayout(waveform.shape, None, device=waveform.device)

    def loss() -> Tensor:
        with problem.autocast():
            found: Tensor = model(waveform, layout)[0].aggregate
        return found / problem.crops

    what = "fairseq2's wav2vec 2.0 unmodified, contrastive loss, autocast, no CQT"
    return Way(what, stepper(model.parameters(), loss))
