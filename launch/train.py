"""Trains an encoder:  deepspeed launch/train.py CONFIG [key.path=value ...]

Runs the same under `deepspeed`, `torchrun`, `srun` and plain `python`. The same command on the same
run.dir continues from the newest valid checkpoint.
"""

import argparse
from pathlib import Path

from etude.launch.cli import STOPS, end_on, interrupt_on, run
from etude.pretrain.launchers import follow_launchers


def main() -> int:
    """Reads the config, checks the inputs, trains."""
    arguments = _parse()
    end_on(*STOPS)
    follow_launchers()
    from etude.launch.run_config import load_run_config
    from etude.pretrain.config_file import dump_yaml

    config = load_run_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_yaml(config), end="")
        return 0
    # Heavy imports only now: a misspelt key is told in a second.
    from etude.pretrain.launching import dry_run, train_run

    interrupt_on(*STOPS)  # until training has begun and can be saved
    return dry_run(config) if arguments.dry_run else train_run(config)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Keys: see `--print-config` and the docstrings of pretrain/config.py.",
    )
    parser.add_argument(
        "config", type=Path, help="YAML file of the run, such as configs/quickstart.yaml"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check config, data and labels, estimate, stop"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )
    # The deepspeed launcher adds it; the environment already says so.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    # Intermixed: a setting may also follow an option.
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run(main)
