"""Adds a codec's tokens to a corpus:  python launch/encode.py CORPUS --weights FILE

Encodes whole tracks and cuts the tokens per clip into CORPUS/targets/CODEC, tars with the same
names, keys and order as the audio's, which are not touched. Interrupted, it continues. Under
`torchrun` or `deepspeed` each rank takes its share of the shards. `--packed` stores codes in
the bits that they need, 10 instead of 16. `--merge OUT` writes tars that hold audio and tokens
together, for other readers. `--advise` measures here what storing tokens costs and what it
costs to make them in training (`source: online`), and says which is cheaper.
"""

import argparse
import signal
from pathlib import Path

from etude.data.errors import InputError
from etude.data.progress import Progress
from etude.data.shards import Corpus, open_corpus
from etude.data.tokens import merge_shard, open_tokens
from etude.launch.cli import interrupt_on, run

_CROP_SECONDS = 5.0


def main() -> int:
    """Reads the command line and encodes, merges or advises."""
    arguments = _parse()
    interrupt_on(signal.SIGTERM, signal.SIGUSR1)
    corpus = open_corpus(arguments.corpus)
    if arguments.merge is not None:
        return _merge(corpus, arguments.codec, arguments.merge)
    if arguments.weights is None:
        raise InputError("--weights FILE is needed: the codec's weights.")
    if arguments.advise:
        return _advise(corpus, arguments)

    from etude.pretrain.codec import load_codec
    from etude.pretrain.distributed import current_world
    from etude.pretrain.encoding import encode_corpus

    world = current_world()
    codec = load_codec(arguments.weights, kind=arguments.codec).to(world.device)
    bar: list[Progress] = []

    def begin(clips: int) -> None:
        if world.is_main:
            bar.append(Progress("encoding", clips, unit="clip"))

    def advance(clips: int) -> None:
        for progress in bar:
            progress.advance(clips)

    tokens = encode_corpus(
        corpus,
        codec,
        rank=world.rank,
        ranks=world.size,
        lanes=arguments.lanes,
        chunk_seconds=arguments.chunk_seconds,
        packed=arguments.packed,
        begin=begin,
        advance=advance,
    )
    if tokens is not None:
        bits = 16 if tokens.packing is None else tokens.packing.bits
        print(
            f"{tokens.root}: {len(corpus.shards)} shards, {tokens.settings.codebooks} codebooks of "
            f"{tokens.settings.codebook_size} in {bits} bits, weights "
            f"{tokens.settings.weights_sha256[:12]}"
        )
    return 0


def _advise(corpus: Corpus, arguments: argparse.Namespace) -> int:
    from etude.pretrain.codec import load_codec
    from etude.pretrain.distributed import current_world
    from etude.pretrain.encoding_advice import advise

    world = current_world()
    if not world.is_main:
        return 0
    codec = load_codec(arguments.weights, kind=arguments.codec).to(world.device)
    crops = None if arguments.updates is None else arguments.updates * arguments.global_batch
    print(
        f"{corpus.root} on one {world.device.type}, weights {codec.weights_sha256[:12]}, "
        f"{arguments.lanes} tracks or crops at a time; nothing is written to it",
        flush=True,
    )
    advice = advise(
        corpus,
        codec,
        crop_seconds=arguments.crop_seconds or _CROP_SECONDS,
        crops=crops,
        lanes=arguments.lanes,
        chunk_seconds=arguments.chunk_seconds,
    )
    print("\n".join(advice.lines()))
    return 0


def _merge(corpus: Corpus, codec: str, out: Path) -> int:
    tokens = open_tokens(corpus, codec)
    if out.resolve() == corpus.root.resolve():
        raise InputError("--merge needs another folder than the corpus.")
    out.mkdir(parents=True, exist_ok=True)
    progress = Progress("merging", len(corpus.shards), unit="shard")
    for shard in corpus.shards:
        if not (out / shard.file).is_file():
            merge_shard(tokens, shard.file, out)
        progress.advance()
    print(f"{out}: {len(corpus.shards)} shards with KEY.flac, KEY.json and KEY.{codec}.npy")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="encode.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "corpus", type=Path, metavar="CORPUS", help="folder made by launch/prepare.py"
    )
    parser.add_argument("--codec", choices=["encodec_24khz"], default="encodec_24khz")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the codec's weights")
    parser.add_argument(
        "--packed", action="store_true", help="store the bits that codes need: 10 of 16"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--merge", type=Path, metavar="OUT", help="write combined tars and stop")
    instead.add_argument(
        "--advise",
        action="store_true",
        help="measure and compare stored and online tokens for half a minute and stop",
    )
    parser.add_argument(
        "--crop-seconds",
        type=float,
        metavar="S",
        help=f"--advise: of each crop of the run ({_CROP_SECONDS:g})",
    )
    parser.add_argument("--updates", type=int, metavar="N", help="--advise: of the run")
    parser.add_argument(
        "--global-batch", type=int, metavar="B", help="--advise: crops of an update"
    )
    parser.add_argument(
        "--lanes", type=int, default=8, help="tracks encoded side by side (%(default)s)"
    )
    parser.add_argument(
        "--chunk-seconds", type=float, default=1.6, help="of each at a time (%(default)s)"
    )
    # The deepspeed launcher adds it; the environment already says so.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lanes < 1 or not arguments.chunk_seconds > 0:
        raise InputError(
            f"--lanes must be at least 1 and --chunk-seconds above 0, but are {arguments.lanes} "
            f"and {arguments.chunk_seconds:g}."
        )
    if arguments.merge is not None and arguments.packed:
        raise InputError("--merge always writes plain uint16, for other readers: omit --packed.")
    run_is = (arguments.crop_seconds, arguments.updates, arguments.global_batch)
    if not arguments.advise and any(value is not None for value in run_is):
        raise InputError("--crop-seconds, --updates and --global-batch tell --advise of a run.")
    if any(value is not None and not value > 0 for value in run_is):
        raise InputError("--crop-seconds, --updates and --global-batch must be above 0.")
    if (arguments.updates is None) != (arguments.global_batch is None):
        raise InputError("--updates and --global-batch belong together: give both or neither.")
    return arguments


if __name__ == "__main__":
    run(main)
