"""A MERT model on plain PyTorch. Ships with every `--as mert` export.

Of transformers it uses `PreTrainedModel` and `BaseModelOutput` alone, so that a change inside
transformers' HuBERT cannot break it. The parameters are called as in the released MERT models.

    waveform (B, T) -> convolutions -> layer norm, projection -> positions -> transformer layers
"""

from typing import Any, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_MERT import MERTConfig


class MERTConvLayer(nn.Module):
    """A convolution, a norm where there is one, GELU."""

    def __init__(self, config: MERTConfig, index: int) -> None:
        super().__init__()
        channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            1 if index == 0 else config.conv_dim[index - 1],
            channels,
            config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.over_channels = config.feat_extract_norm == "layer"
        if self.over_channels:
            self.layer_norm: nn.Module = nn.LayerNorm(channels)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(channels, channels)
        else:
            self.layer_norm = nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.conv(hidden)
        if self.over_channels:
            hidden = self.layer_norm(hidden.transpose(1, 2)).transpose(1, 2)
        else:
            hidden = self.layer_norm(hidden)
        return F.gelu(hidden)


class MERTFeatureExtractor(nn.Module):
    """The stack of convolutions."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            MERTConvLayer(config, index) for index in range(len(config.conv_dim))
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, T) to (B, F, C)."""
        hidden = waveform[:, None]
        for layer in self.conv_layers:
            hidden = layer(hidden)
        return hidden.transpose(1, 2)


class MERTFeatureProjection(nn.Module):
    """Layer norm, projection to the transformer's width, dropout."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.dropout(self.projection(self.layer_norm(features)))
        return projected


class MERTPositions(nn.Module):
    """Relative positions: a wide convolution with weight norm over time."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        kernel = config.num_conv_pos_embeddings
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel,
            padding=kernel // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        self.conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
        self.surplus = 1 - kernel % 2

    def forward(self, hidden: Tensor) -> Tensor:
        positions = self.conv(hidden.transpose(1, 2))
        if self.surplus:
            positions = positions[:, :, : -self.surplus]
        return F.gelu(positions).transpose(1, 2)


class MERTAttention(nn.Module):
    """Self-attention over all frames of a row that are no padding."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Tensor, mask: Optional[Tensor], weights_wanted: bool
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """
        hidden: (B, F, D). mask: what is added to the scores, (B, 1, 1, F).
        Returns (B, F, D) and the attention weights (B, heads, F, F) where wanted.
        """
        rows, frames, dim = hidden.shape
        query, key, value = (
            projection(hidden).view(rows, frames, self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if weights_wanted:
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            if mask is not None:
                scores = scores + mask
            weights = scores.softmax(dim=-1)
            attended = F.dropout(weights, dropout) @ value
        else:
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout
            )
        return self.out_proj(attended.transpose(1, 2).reshape(rows, frames, dim)), weights


class MERTFeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.intermediate_dropout(F.gelu(self.intermediate_dense(hidden)))
        output: Tensor = self.output_dropout(self.output_dense(hidden))
        return output


class MERTLayer(nn.Module):
    """Attention and feed-forward with residuals, norms after them (95M) or before (330M)."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        self.norm_first = config.do_stable_layer_norm
        self.attention = MERTAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = MERTFeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, hidden: Tensor, mask: Optional[Tensor], weights_wanted: bool
    ) -> Tuple[Tensor, Optional[Tensor]]:
        heard = self.layer_norm(hidden) if self.norm_first else hidden
        attended, weights = self.attention(heard, mask, weights_wanted)
        hidden = hidden + self.dropout(attended)
        if self.norm_first:
            return hidden + self.feed_forward(self.final_layer_norm(hidden)), weights
        hidden = self.layer_norm(hidden)
        return self.final_layer_norm(hidden + self.feed_forward(hidden)), weights


class MERTEncoder(nn.Module):
    """Positions and layers."""

    def __init__(self, config: MERTConfig) -> None:
        super().__init__()
        self.norm_first = config.do_stable_layer_norm
        self.layerdrop = config.layerdrop
        self.pos_conv_embed = MERTPositions(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(MERTLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, hidden: Tensor, inside: Optional[Tensor], weights_wanted: bool
    ) -> Tuple[Tensor, List[Tensor], List[Optional[Tensor]]]:
        """
        hidden: (B, F, D). inside: true where a frame is no padding, bool (B, F).
        Returns the last output, all hidden states (layers + 1), and attention weights.
        """
        mask = None
        if inside is not None:
            hidden = hidden.masked_fill(~inside[..., None], 0.0)
            mask = torch.zeros(inside.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill(~inside, torch.finfo(hidden.dtype).min)[:, None, None]
        hidden = hidden + self.pos_conv_embed(hidden)
        if not self.norm_first:
            hidden = self.layer_norm(hidden)
        hidden = self.dropout(hidden)
        states: List[Tensor] = []
        attentions: List[Optional[Tensor]] = []
        for layer in self.layers:
            states.append(hidden)
            weights = None
            if not (self.training and float(torch.rand(())) < self.layerdrop):
                hidden, weights = layer(hidden, mask, weights_wanted)
            attentions.append(weights)
        if self.norm_first:
            hidden = self.layer_norm(hidden)
        states.append(hidden)
        return hidden, states, attentions


class MERTModel(PreTrainedModel):
    """The bare encoder: `model(input_values).last_hidden_state` is (B, F, D)."""

    config_class = MERTConfig
    base_model_prefix = "mert_model"
    main_input_name = "input_values"
    _no_split_modules = ["MERTLayer"]

    def __init__(self, config: MERTConfig) -> None:
        super().__init__(config)
        self.feature_extractor = MERTFeatureExtractor(config)
        self.feature_projection = MERTFeatureProjection(config)
        self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = MERTEncoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """For a model that starts anew; loading a folder replaces everything."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d) and not hasattr(module, "parametrizations"):
            nn.init.kaiming_normal_(module.weight)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Optional[Tensor] = None,
        mask_time_indices: Optional[Tensor] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs: Any,
    ) -> Union[BaseModelOutput, Tuple[Any, ...]]:
        """
        input_values: mono audio at `config.sample_rate`, (B, T).
        attention_mask: 1 where a sample is no padding, (B, T).
        mask_time_indices: frames to replace by the mask embedding, bool (B, F).
        """
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        features = self.feature_extractor(input_values)
        inside = None
        if attention_mask is not None:
            lengths = self._get_feat_extract_output_lengths(attention_mask.long().sum(dim=1))
            frames = torch.arange(features.shape[1], device=features.device)
            inside = frames < lengths[:, None]
        hidden = self._masked(self.feature_projection(features), mask_time_indices)
        last, states, attentions = self.encoder(hidden, inside, output_attentions)
        output = BaseModelOutput(
            last_hidden_state=last,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _get_feat_extract_output_lengths(self, input_lengths: Any) -> Any:
        """Frames of a number of samples, int or tensor; called as in transformers' HuBERT."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride):
            input_lengths = (input_lengths - kernel) // stride + 1
        return input_lengths

    def _masked(self, hidden: Tensor, mask: Optional[Tensor]) -> Tensor:
        """Masks the frames asked for, or in training a few random spans (SpecAugment)."""
        config = self.config
        if mask is None:
            if not (self.training and config.apply_spec_augment and config.mask_time_prob > 0):
                return hidden
            rows, frames, _ = hidden.shape
            length = min(config.mask_time_length, frames)
            starts = torch.rand(rows, frames, device=hidden.device)
            mask = _spans((starts < config.mask_time_prob / length).float(), length)
        embedding = self.masked_spec_embed.to(hidden.dtype)
        return torch.where(mask[..., None], embedding, hidden)


def _spans(starts: Tensor, length: int) -> Tensor:
    """True at every start (B, F) and in the `length` - 1 frames after it."""
    padded = F.pad(starts, (length - 1, 0))
    return F.max_pool1d(padded[:, None], length, 1)[:, 0] > 0
