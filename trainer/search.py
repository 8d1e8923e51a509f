"""Search for a better configuration:  python -m trainer.search -c FILE --space SPACE

Each trial is an ordinary run; those that fall behind are stopped early. The first one is the
configuration as it is. The best becomes a configuration file. Needs Optuna (pip install optuna).

SPACE is a JSON file that says what to try for keys of the configuration:
  {"optimizer.args.lr": {"log": [1e-4, 1e-1]}, "data_loader.args.batch_size": [16, 32, 64],
   "loss.args.label_smoothing": {"float": [0, 0.2]}, "arch.args.width": {"int": [8, 32]}}

-c FILE --space SPACE   a new search
-r SEARCH               go on where it was cut off; without SEARCH the newest
"""

import argparse
import contextlib
import copy
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from base.monitor import Monitor
from logger.base_tracker import BaseTracker, watching
from logger.files import aligned
from trainer.family import Family, family_command, judges
from utils.config import config_file
from utils.config.config import ConfigParser
from utils.config.resolve import from_file
from utils.errors import Interrupted, RunError, UserError
from utils.files import shell_command

if TYPE_CHECKING:
    from optuna import Study, Trial

KIND = "search"
WARM_UP = 0.25  # of the epochs, in which no trial is stopped


class Watch(BaseTracker):
    """Reports a run's epochs to its trial, and stops the run if that falls behind.

    Attributes:
        stopped: whether it did
    """

    def __init__(self, trial: "Trial", metric: str):
        self.trial, self.metric, self.stopped = trial, metric, False

    def begin(self, run: Path, config: dict, parent: Path | None) -> None:
        """Nothing: the trial has begun already."""

    def log(self, values: dict[str, float], step: int) -> None:
        self.trial.report(values[self.metric], int(values["epoch"]))
        if self.trial.should_prune() and not self.stopped:
            self.stopped = True
            signal.raise_signal(signal.SIGTERM)  # the run saves its state, and ends


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.search", description=__doc__)
    add = parser.add_argument
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("-c", "--config", metavar="FILE", type=Path)
    start.add_argument("-r", "--resume", metavar="SEARCH", type=Path, nargs="?", const=Path())
    add("--space", metavar="SPACE", type=Path, help="what to try, a JSON file")
    add("-n", "--trials", type=int, metavar="N", help="number of trials in all (20)")
    add("-d", "--device", metavar="DEVICE")
    add("-s", "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="with -c: set any key of the config")  # fmt: skip
    return family_command(parser, argv, lambda arguments: search(_open(arguments)))


def _open(arguments: argparse.Namespace) -> Family:
    more = {} if arguments.trials is None else {"members": arguments.trials}
    if arguments.resume is not None:
        new = arguments.resume == Path()
        family = (
            Family.newest(KIND, arguments.device)
            if new
            else Family(arguments.resume, arguments.device)
        )
        family.keep(**more)
        return family
    if arguments.space is None:
        raise UserError("--space: what is to be searched? Pass a JSON file; --help shows one")
    parser = from_file(arguments.config, arguments.set)
    config, (space, _) = parser.config, config_file.read_layers(arguments.space)
    if Monitor(parser["trainer"].get("monitor", "off")).mode == "off":
        raise UserError("trainer.monitor: a search needs to know what is better, max val_accuracy")
    for values in corners(space):  # both ends of each range must be possible
        ConfigParser(with_values(config, values), origin=f"{arguments.config} with {values}")
    config.pop("$schema", None)
    about = {"kind": KIND, "space": space, "state": "unfinished", "members": 20} | more
    return Family.begin(KIND, config, about, arguments.device)


def corners(space: dict) -> list[dict]:
    """Values for all keys at once: the first of each, and the last. Raises UserError."""
    ends, faults = {}, [] if space else ["--space: the file names no keys"]
    for key, spec in space.items():
        values = next(iter(spec.values())) if isinstance(spec, dict) and spec else spec
        kind = next(iter(spec), None) if isinstance(spec, dict) else "list"
        numbers = isinstance(values, list) and all(type(v) in (int, float) for v in values)
        is_one = not isinstance(spec, dict) or len(spec) == 1
        if (
            not isinstance(values, list)
            or not is_one
            or kind not in ("list", "log", "float", "int")
        ):
            faults.append(f'{key}: should be a list of values, or {{"log": [LOW, HIGH]}}')
        elif not values:
            faults.append(f"{key}: the list is empty")
        elif kind != "list" and not (numbers and len(values) == 2 and values[0] < values[1]):
            faults.append(f'{key}: "{kind}" should have two numbers, the lower one first')
        elif kind == "log" and values[0] <= 0:
            faults.append(f'{key}: the lower end of "log" should be above 0')
        else:
            ends[key] = values
    if faults:
        raise UserError("\n  ".join(["--space:", *faults]))
    return [{key: values[0] for key, values in ends.items()},
            {key: values[-1] for key, values in ends.items()}]  # fmt: skip


def with_values(config: dict, values: dict) -> dict:
    """The configuration with these values, "a.b.c" -> value."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        config_file.assign(config, key.split("."), value)
    return config


def search(family: Family) -> dict:
    """Run the trials that are missing, and write best.json; returns the content of family.json.

    Raises UserError if Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install optuna") from None
    space, count = family.about["space"], family.about["members"]
    monitor, epochs = (family.config["trainer"].get(key) for key in ("monitor", "epochs"))
    rule, states = Monitor(monitor), optuna.trial.TrialState
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(family.folder / "study.log"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="search",
        direction="maximize" if rule.mode == "max" else "minimize",
        load_if_exists=True,
    )
    # another seed each time: one that goes on would draw the same values again
    seed = family.config.get("seed", 0) + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=int(WARM_UP * epochs))
    if not study.trials and (own := values_of(family.config, space)):
        study.enqueue_trial(own)
    while (running := begun(study)) or _done(study) < count:
        trial = optuna.trial.Trial(study, running._trial_id) if running else study.ask()
        values = {key: suggest(trial, key, spec) for key, spec in space.items()}
        watch = Watch(trial, rule.name)
        member = f"trial{trial.number + 1}"
        family.keep(done=_done(study))
        try:
            with watching(watch):
                result = family.train(member, values)
        except Interrupted:
            if not watch.stopped:
                raise
            study.tell(trial, state=states.PRUNED)
        except RunError:  # its loss became infinite, say: the others need not end with it
            study.tell(trial, state=states.FAIL)
        else:
            study.tell(trial, result.best)
    return _finish(family, study, rule)


def begun(study: "Study") -> object | None:
    """A trial that was cut off."""
    return next((trial for trial in study.trials if trial.state.name == "RUNNING"), None)


def _done(study: "Study") -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


def suggest(trial: "Trial", key: str, spec: list | dict) -> object:
    """A value for a key, of what the space allows."""
    if isinstance(spec, list):
        # Optuna stores plain values only
        number = trial.suggest_categorical(key, [*range(len(spec))])
        return spec[number]
    [(kind, (low, high))] = spec.items()
    if kind == "int":
        return trial.suggest_int(key, low, high)
    return trial.suggest_float(key, low, high, log=kind == "log")


def values_of(config: dict, space: dict) -> dict:
    """What the configuration says for the keys of the space; empty if that is not all in it."""
    found = {}
    for key, spec in space.items():
        value: object = config
        for part in key.split("."):
            with contextlib.suppress(ValueError, IndexError):
                value = value[int(part)] if isinstance(value, list) else value
            value = value.get(part) if isinstance(value, dict) else value
        if isinstance(spec, list):
            if value not in spec:
                return {}
            found[key] = spec.index(value)
        else:
            [(low, high)] = spec.values()
            if type(value) not in (int, float) or not low <= value <= high:
                return {}
            found[key] = value
    return found


def _finish(family: Family, study: "Study", rule: Monitor) -> dict:
    space, complete = family.about["space"], []
    rows = [["trial", rule.name, *space]]
    for trial in study.trials:
        values = {key: spec[trial.params[key]] if isinstance(spec := space[key], list) else
                  trial.params[key] for key in space if key in trial.params}  # fmt: skip
        shown = "failed" if trial.value is None else f"{trial.value:.4g}"
        shown += ", stopped early" * (trial.state.name == "PRUNED")
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in values.values())
        rows.append([str(trial.number + 1), shown, *cells])
        if trial.value is not None and trial.state.name == "COMPLETE":
            complete.append((trial, values))
    if not complete:
        raise RunError("no trial has reached its last epoch, see above")
    sign = -1 if rule.mode == "max" else 1
    best, values = min(complete, key=lambda pair: sign * pair[0].value)
    file = family.folder / "best.json"
    config_file.write(with_values(family.config, values), file)
    about = {"state": "finished", "done": len(study.trials), "best": f"trial{best.number + 1}"}
    name = rule.name.removeprefix("val_")
    about["validation"] = f"{name} {best.value:.4g}, the best of {len(study.trials)}"
    lines = [*aligned(rows), "", f"best: trial {best.number + 1}, {rule.name} {best.value:.4g}"]
    tested, samples = {}, 0
    for trial in dict.fromkeys([best.number, complete[0][0].number]):
        run = family.find(f"trial{trial + 1}")
        for module in judges():
            with contextlib.suppress(UserError):  # there may be no test data
                report = module.judge(run, family.device)
                if name in report:
                    tested[f"trial {trial + 1}"], samples = report[name], report["n"]
    if tested:
        about["test"] = f"{name} {next(iter(tested.values())):.4g} (n {samples:,})"
        words = ", ".join(f"{value:.4g} by {which}" for which, value in tested.items())
        lines.append(f"on {samples:,} test samples, by which nothing was chosen, {name} is {words}")
    family.keep(**about)
    command = shell_command("python", "train.py", "-c", file)
    lines += [f"written: {file}", "next:", f"  {command}"]
    logging.getLogger("trainer").info("\n".join(lines))
    return family.about


if __name__ == "__main__":
    sys.exit(main())
