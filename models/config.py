"""The encoder's settings as plain values, read by training, export and import alike; no torch here.

Defaults are MERT-v1-95M's (yizhilll/MERT, ``config/pretrain/MERT_RVQ-VAE_CQT_95M.yaml``);
``docs/fidelity.md`` tells which of the released values are known and which are chosen.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from etude.models.frames import FrameGrid

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]


class EncoderConfig(BaseModel):
    """Geometry and regularisation of the encoder (YAML section ``model``)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    sample_rate: Count = 24_000
    """Samples per second of what the encoder hears: 24,000 for MERT-v1, 16,000 for the rest."""

    normalize: bool = False
    """Whether every waveform is brought to mean 0 and variance 1 first (music2vec; MERT hears the
    level as it is). Exports tell it to users as ``do_normalize``."""

    frontend: Literal["waveform", "logmel"] = "waveform"
    """``waveform``: the conv stack of every released model; ``logmel``: fixed log-mel bands on the
    same frame grid, an ablation that learns faster on small data and has no Hugging Face form."""

    logmel_bins: Count = 80
    """Bands of the log-mel front end, from windows of ``logmel_window`` samples."""

    logmel_window: Annotated[int, Field(ge=64)] = 1024
    """Samples per window of the log-mel front end."""

    conv_dims: Annotated[tuple[Count, ...], Field(min_length=1)] = (512,) * 7
    """Channels of each convolution of the front end."""

    conv_kernels: tuple[Count, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Kernel size of each convolution."""

    conv_strides: tuple[Count, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Stride of each convolution; their product is the hop (320 samples)."""

    conv_bias: bool = False
    """Whether the convolutions learn a bias."""

    conv_norm: Literal["group", "layer"] = "group"
    """``group``: one channel-wise group norm after the first convolution (MERT);
    ``layer``: layer norm after every one (music2vec)."""

    layers: Count = 12
    """Transformer layers."""

    dim: Count = 768
    """Width of the transformer."""

    ffn_dim: Count = 3072
    """Inner width of the feed-forward blocks."""

    heads: Count = 12
    """Attention heads; must divide ``dim``."""

    norm: Literal["post", "pre"] = "post"
    """Layer norm after each residual sum (MERT 95M, music2vec) or before each block, with a final
    norm (MERT 330M)."""

    layer: Literal["transformer", "conformer"] = "transformer"
    """``conformer``: with a convolution module and a second feed-forward block in each layer
    (Gulati et al. 2020), an ablation that has no Hugging Face form here; needs ``norm: pre``."""

    conformer_kernel: Count = 31
    """Frames that a conformer layer's convolution sees (Gulati et al. 2020, table 1: 32); odd."""

    positions: Literal["convolution", "rotary"] = "convolution"
    """``convolution``: relative positions by convolution before the layers, as in every released
    model; ``rotary``: turned queries and keys in every layer (Su et al. 2021, arXiv 2104.09864), an
    ablation that has no Hugging Face form here."""

    position_kernel: Annotated[int, Field(ge=2)] = 128
    """Frames seen by the positional convolution; split among the stack where there is one."""

    position_groups: Count = 16
    """Groups of the positional convolution; must divide ``dim``."""

    position_depth: Count = 1
    """1: one weight-normed convolution (MERT); 5: the stack of music2vec."""

    dropout: Probability = 0.1
    """Dropout after the positional convolution, the attention and the feed-forward block."""

    attention_dropout: Probability = 0.1
    """Dropout on the attention weights."""

    activation_dropout: Probability = 0.0
    """Dropout inside the feed-forward block."""

    projection_dropout: Probability = 0.1
    """Dropout on the projected conv features (fairseq's ``dropout_input``)."""

    layer_drop: Probability = 0.05
    """Probability that a layer is passed over in an update, the same layers on every rank."""

    feature_grad_scale: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Factor on the gradient that reaches the conv stack (fairseq's ``feature_grad_mult``)."""

    impl: Literal["fast", "plain"] = "fast"
    """How the conv stack is computed: ``fast`` as matrix products, ``plain`` by fairseq2's modules.
    Both have the same parameters and give the same but for rounding."""

    padding: Literal["published", "exact"] = "published"
    """What a padded batch does at the pad's edge. ``published``: as the released models and
    transformers do, whose stacked positional convolutions leak across it; ``exact``: a clip gives
    the same features padded or not, which needs ``conv_norm: layer``."""

    @model_validator(mode="after")
    def _check_geometry(self) -> "EncoderConfig":
        lengths = {len(self.conv_dims), len(self.conv_kernels), len(self.conv_strides)}
        if len(lengths) != 1:
            raise ValueError(
                "conv_dims, conv_kernels and conv_strides must have one entry per convolution, but "
                f"have {len(self.conv_dims)}, {len(self.conv_kernels)} and {len(self.conv_strides)}"
            )
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim})")
        if self.dim % self.position_groups:
            raise ValueError(
                f"position_groups ({self.position_groups}) must divide dim ({self.dim})"
            )
        if self.layer == "conformer" and self.norm != "pre":
            raise ValueError(
                "layer: conformer needs norm: pre, because its blocks have their norms before them"
            )
        if self.conformer_kernel % 2 == 0:
            raise ValueError(
                f"conformer_kernel ({self.conformer_kernel}) must be odd, so that a frame sees as "
                "far back as ahead"
            )
        if self.positions == "rotary" and self.dim // self.heads % 2:
            raise ValueError(
                f"positions: rotary turns pairs, but dim ({self.dim}) over heads ({self.heads}) "
                "gives an odd number for each head"
            )
        if self.padding == "exact" and self.conv_norm == "group":
            raise ValueError(
                "padding: exact needs conv_norm: layer, because a group norm over time takes its "
                "statistics from the padding too"
            )
        convolves = self.positions == "convolution"
        if convolves and self.position_depth > 1 and self.stacked_kernel % 2 == 0:
            raise ValueError(
                f"position_kernel ({self.position_kernel}) over position_depth "
                f"({self.position_depth}) gives convolutions of {self.stacked_kernel} frames, but "
                "those of a stack must be odd: fairseq2 and transformers pad even ones differently"
            )
        return self

    free_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "dropout",
            "attention_dropout",
            "activation_dropout",
            "projection_dropout",
            "layer_drop",
            "feature_grad_scale",
            "impl",
            "normalize",
            "padding",
        }
    )
    """Settings that may differ between two encoders with the same weights."""

    @property
    def stacked_kernel(self) -> int:
        """Kernel of each positional convolution of a stack, as fairseq splits it."""
        return max(3, self.position_kernel // self.position_depth)

    @property
    def grid(self) -> FrameGrid:
        """The time grid of the front end."""
        return FrameGrid(self.sample_rate, self.conv_kernels, self.conv_strides)
