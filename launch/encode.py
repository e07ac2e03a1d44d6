"""Adds a codec's tokens to a corpus:  python launch/encode.py CORPUS --weights FILE

Encodes whole tracks and cuts the tokens per clip into CORPUS/targets/CODEC, tars with the same
names, keys and order as the audio's, which are not touched. Interrupted, it continues. Under
`torchrun` or `deepspeed` each rank takes its share of the shards. `--merge OUT` writes tars
that hold audio and tokens together, for other readers.
"""

import argparse
import signal
from pathlib import Path

from etude.data.errors import InputError
from etude.data.progress import Progress
from etude.data.shards import Corpus, open_corpus
from etude.data.tokens import merge_shard, open_tokens
from etude.launch.cli import interrupt_on, run


def main() -> int:
    """Reads the command line and encodes, or merges."""
    arguments = _parse()
    interrupt_on(signal.SIGTERM, signal.SIGUSR1)
    corpus = open_corpus(arguments.corpus)
    if arguments.merge is not None:
        return _merge(corpus, arguments.codec, arguments.merge)
    if arguments.weights is None:
        raise InputError("--weights FILE is needed: the codec's weights.")

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
        begin=begin,
        advance=advance,
    )
    if tokens is not None:
        print(
            f"{tokens.root}: {len(corpus.shards)} shards, {tokens.settings.codebooks} codebooks of "
            f"{tokens.settings.codebook_size}, weights {tokens.settings.weights_sha256[:12]}"
        )
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
    parser.add_argument("--merge", type=Path, metavar="OUT", help="write combined tars and stop")
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
    return arguments


if __name__ == "__main__":
    run(main)
