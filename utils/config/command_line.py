"""The command line that all scripts share, and what happens around a script's main()."""

import argparse
import contextlib
import functools
import gc
import inspect
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from utils.config.config import RUN, ConfigParser
from utils.config.resolve import NEWEST, CustomArgs, Script, add_options, describe_resumed, resolve
from utils.engine import launch
from utils.errors import RunError, UserError, first_line, gpu_error, is_out_of_memory
from utils.screen import ExitCode, run_command

Main = Callable[[ConfigParser, argparse.Namespace], object]
Command = Callable[[list[str] | None], ExitCode]


def command(
    description: str,
    options: Iterable[CustomArgs] = (),
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    prepare: Callable[[argparse.Namespace], bool | None] = lambda arguments: None,
    **traits: object,
) -> Callable[[Main], Command]:
    """Makes of `main(config, arguments)` a command: `main(argv=None)` returns an `ExitCode`, whose
    `result` is what the function returned.

    A script that trains does so on several devices if they are asked for: the command starts a
    process for each, which calls `main` again. Other scripts run in one process.

    Args:
        description: the text of --help
        options: flags that set keys of the config
        add_arguments: adds the script's own arguments to the parser
        prepare: called before the configuration is read; the command ends if it returns True
        traits: see `Script`
    """
    script = Script(**traits)

    def decorate(function: Main) -> Command:
        @functools.wraps(function)
        def main(argv: list[str] | None = None) -> ExitCode:
            parser = build_parser(description, options, script.trains)
            add_arguments(parser)

            def work(arguments: argparse.Namespace) -> ExitCode | None:
                if script.trains:
                    launch.configure_threads(arguments.threads, arguments.procs or 1)
                else:
                    launch.configure_threads()
                read = _fast_imports()(functools.partial(resolve, arguments, options, script))
                if arguments.info:
                    print(describe_resumed(arguments, script))
                    return None
                if prepare(arguments):
                    return None
                if script.trains:
                    return _run(function, sys.argv[1:] if argv is None else argv, arguments, read)
                if launch.dist_info().rank == 0:
                    config = read()
                    with _machine_explained(config.less_memory):
                        return ExitCode(0, function(config, arguments))
                return None

            return run_command(parser, argv, work)

        return main

    return decorate


def _run(
    function: Main, argv: list[str], arguments: argparse.Namespace, read: Callable
) -> ExitCode:
    """Run a script that trains; `read(trial_dir)` gives its configuration."""
    with contextlib.ExitStack() as stack:
        if launch.dist_info().world_size > 1:  # torchrun, SLURM or `launch.start` started others
            from utils.engine import distributed

            stack.enter_context(distributed.process_group(on_cpu=arguments.device == "cpu"))
        _resume_after_restart(arguments)
        trial_dir = None
        if arguments.check:
            trial_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="check-"))
        config = read(trial_dir)
        config.command = shlex.join(["python", Path(inspect.getfile(function)).name, *argv])
        count = launch.processes_to_start(arguments.device, arguments.procs, config.get("n_gpu", 1))
        if count > 1:
            file = inspect.getfile(function)
            return ExitCode(launch.start(count, file, argv, arguments.max_restarts))
        from utils import lock
        from utils.engine.signals import cleaned_up

        stack.callback(lock.release)
        stack.enter_context(cleaned_up(config.remove_empty_run))
        try:
            with _machine_explained(config.less_memory):
                return ExitCode(0, function(config, arguments))
        except BaseException:
            config.remove_empty_run()
            raise


@contextlib.contextmanager
def _machine_explained(advice: Callable[[], str]) -> Iterator[None]:
    """Raises RunError, with what to do, if the memory is full, UserError for what a GPU refuses."""
    try:
        yield
    except Exception as error:
        if sentence := gpu_error(error):
            raise UserError(sentence) from error
        if not is_out_of_memory(error):
            raise
        raise RunError(f"the memory is full; {advice()} ({first_line(error)[:200]})") from error


def build_parser(
    description: str, options: Iterable[CustomArgs], trains: bool
) -> argparse.ArgumentParser:
    """The arguments of all scripts, flags for `options`, and the arguments of training scripts."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add("-c", "--config", metavar="FILE", help="the configuration, JSON with comments")
    add("-r", "--resume", metavar="PATH", nargs="?", const=NEWEST,
        help="a checkpoint or a run's folder; without PATH the newest run")  # fmt: skip
    add("-d", "--device", metavar="DEVICE",
        help="cpu, a GPU's number, or several: 2,3 (default: a GPU if there is one)")  # fmt: skip
    add("-s", "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="set any key of the config: -s trainer.epochs=5 metrics.0=accuracy")  # fmt: skip
    add_options(parser, options)
    add("--check", action="store_true", help="build everything, run one batch, save, load, stop")
    add("--info", action="store_true", help="show what made the checkpoint of -r, and stop")
    add("--trust", action="store_true",
        help="use any code that the checkpoint's own configuration names")  # fmt: skip
    parser.set_defaults(config_before_restart=None)
    add("--verbose", action="store_true", help="show the traceback of an error")
    if trains:
        add("--threads", type=int, metavar="N",
            help="threads that compute in each process (default: one for each core)")  # fmt: skip
        add("--procs", type=int, metavar="N", help="with -d cpu: train in N processes")
        add("--max-restarts", type=int, default=0, metavar="N",
            help="if a process dies, resume from the last checkpoint, up to N times")  # fmt: skip
    return parser


@contextlib.contextmanager
def _fast_imports() -> Iterator[None]:
    """Around many imports: the garbage collector need not search modules while they load."""
    # pydantic would look for plugins among all installed packages
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # everything loaded counts as old at once, without a pass over it
        gc.unfreeze()
        gc.enable()


def _resume_after_restart(arguments: argparse.Namespace) -> None:
    """After a restart because a process died, resume the run if it saved anything."""
    if not launch.restarted():
        return
    from utils import checkpoint
    from utils.engine import distributed

    run = distributed.stored_value(RUN)
    is_there = run is not None and Path(run).is_dir()
    saved = is_there and any(checkpoint.numbered_checkpoints(Path(run)))
    if run is not None and distributed.broadcast(saved):
        arguments.config_before_restart = arguments.config
        arguments.resume, arguments.config = run, None
