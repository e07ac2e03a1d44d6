"""Loads exports as a user of some version of transformers does; started by ``run.py``.

Nothing of ours is imported: what the folder ships must be enough. One difference is known and not
ours: in transformers 5 the last of a pre-norm ``HubertModel``'s ``hidden_states`` is the output of
the last layer before the final norm; ``last_hidden_state`` is after it, as ever.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

TOLERANCE = 1e-4
CLASSES = {"hubert": "HubertModel", "data2vec": "Data2VecAudioModel"}


def main() -> int:
    worst = 0.0
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
        folder, expected = file.with_suffix(""), load_file(file)
        format = folder.name.rpartition("-")[2]
        if format == "mert":
            model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
        else:
            model = getattr(transformers, CLASSES[format]).from_pretrained(folder)
        processor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
        lengths = expected["lengths"].tolist()
        difference = compare(model.eval(), processor, expected, "full", None)
        # Without an attention mask a padded batch means nothing: group-norm models have none.
        if processor.return_attention_mask:
            difference = max(difference, compare(model, processor, expected, "padded", lengths))
        print(f"transformers {transformers.__version__}  {folder.name:<20} {difference:.1e}")
        worst = max(worst, difference if difference == difference else float("inf"))
    return 0 if worst <= 1 else 1


def compare(
    model: Any, processor: Any, expected: dict[str, Any], kind: str, lengths: list[int] | None
) -> float:
    """Largest difference of any hidden state, in units of what is tolerated there."""
    rows = list(expected["waveform"])
    if lengths is not None:
        rows = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    inputs = processor(
        [row.numpy() for row in rows],
        sampling_rate=processor.sampling_rate,
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        output = model(**inputs, output_hidden_states=True)
    states = output.hidden_states
    if type(model).__name__ == "HubertModel" and model.config.do_stable_layer_norm:
        states = (*states[:-1], output.last_hidden_state)
    wanted = [expected[f"{kind}{i}"] for i in range(len(states))]
    if f"{kind}{len(states)}" in expected:
        return float("inf")
    frames = [state.shape[1] for state in wanted[:1]] * len(rows)
    if lengths is not None:
        frames = [model._get_feat_extract_output_lengths(length) for length in lengths]
    worst = 0.0
    for state, want in zip(states, wanted, strict=True):
        allowed = TOLERANCE * max(1.0, float(want.abs().max()))
        for row, count in enumerate(frames):
            error = (state[row, : int(count)] - want[row, : int(count)]).abs().max()
            worst = max(worst, float(error) / allowed)
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
