import argparse
import contextlib
import functools
import gc
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from utils import launch
from utils.errors import Interrupted, RunError, UserError

NEWEST = "the newest run"  # what -r without a path means
RUN = "run folder"  # what processes that are started anew find it by


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


def command(
    read: Callable,
    description: str,
    options: Iterable[CustomArgs],
    add_arguments: Callable | None,
    function: Callable,
) -> Callable[[list[str] | None], int]:
    """Makes of `function(config)` a command: `main(argv=None)` reads the command line and returns the exit code.

    What trains does so on several devices where they are asked for: the command starts a process for each, which calls
    `main` again. What looks at a finished network is done by one process.

    Args:
        read: makes the parsed command line, and `options`, the config
        description: what --help says
        options: flags that set keys of the config
        add_arguments: adds the script's own to the argparse.ArgumentParser
    """

    @functools.wraps(function)
    def main(argv: list[str] | None = None) -> int:
        made = parser(description, options)
        if add_arguments:
            add_arguments(made)
        trains = not made.get_default("best")
        if trains:
            add_processes(made)
        arguments = made.parse_args(argv)
        if not trains and launch.place().rank > 0:
            return 0
        try:
            with _processes(arguments) if trains else contextlib.nullcontext():
                _go_on(arguments)
                with _loading():
                    config = read(arguments, options)
                count = launch.processes_to_start(arguments, config.get("n_gpu", 1)) if trains else 1
                if count > 1:
                    script = inspect.getfile(function)
                    return launch.start(count, script, sys.argv[1:] if argv is None else argv, arguments.max_restarts)
                function(config)
        except (UserError, RunError, OSError, RecursionError) as error:
            if arguments.verbose:
                traceback.print_exc()
            said = f"{made.prog}: {sentence(error)}"
            if launch.is_first_to_say(said):
                print(said, file=sys.stderr)
            return 1 if isinstance(error, RunError) else 2
        except Interrupted as stop:
            return 128 + stop.signum
        except KeyboardInterrupt:
            return 130
        return 0

    return main


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Within it modules are loaded, and stay: the garbage collector need not look through them while they come."""
    # pydantic would look for plugins among all packages that are installed
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # and at once all that came is old, which one pass over it would find, too
        gc.unfreeze()
        gc.enable()


def _processes(arguments: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Joins the processes that torchrun, SLURM or `launch.start` started beside this one, if any."""
    if launch.place().world_size == 1:
        return contextlib.nullcontext()
    from utils import distributed

    return distributed.joined(on_cpu=arguments.device == "cpu")


def _go_on(arguments: argparse.Namespace) -> None:
    """Where the processes were started anew because one died, take up the run that they had begun, if it saved anything."""
    if not launch.restarted():
        return
    from utils import checkpoint, distributed

    run = distributed.kept_from_before(RUN)
    if run is not None and distributed.from_first(Path(run).is_dir() and any(checkpoint.of_run(Path(run)))):
        arguments.resume, arguments.config = run, None
