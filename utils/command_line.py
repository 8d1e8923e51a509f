import argparse
from collections.abc import Callable, Iterable
from typing import NamedTuple

NEWEST = "the newest run"  # what -r without a path means


class CustomArgs(NamedTuple):
    """A flag that sets one key of the config: CustomArgs(["--lr"], type=float, target=("optimizer", "args", "lr"))."""

    flags: list[str]
    type: Callable
    target: tuple[str, ...]


def parser(description: str, options: Iterable[CustomArgs]) -> argparse.ArgumentParser:
    """The command line that all scripts share, and flags for `options`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("-c", "--config", metavar="FILE", help="the configuration, JSON with comments")
    made.add_argument("-r", "--resume", metavar="PATH", nargs="?", const=NEWEST,
                        help="a checkpoint or a run's folder; without PATH the newest run")  # fmt: skip
    made.add_argument(
        "-d", "--device", metavar="WHERE", help="cpu, the number of a GPU, or several: 2,3 (default: a GPU if there is one)"
    )
    made.add_argument("-s", "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
                        help="set any key of the config: -s trainer.epochs=5 metrics.0=accuracy")  # fmt: skip
    for option in options:
        key = ".".join(option.target)
        made.add_argument(*option.flags, type=option.type, dest=key, metavar="VALUE", help=f"sets {key}")
    made.add_argument("--check", action="store_true", help="build everything, run one batch, save, load, and stop")
    made.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    return made


def add_processes(parser: argparse.ArgumentParser) -> None:
    """What the scripts that train take too."""
    parser.add_argument("--procs", type=int, metavar="N", help="with -d cpu: train in N processes")
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N",
                        help="go on from the last checkpoint when one of several dies, up to N times")  # fmt: skip


def sentence(error: BaseException) -> str:
    """What an error says to people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}"
    if isinstance(error, RecursionError):
        return "the configuration is nested too deeply"
    return str(error)
