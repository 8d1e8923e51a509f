"""Search for a better configuration:  python -m trainer.search -c FILE --space SPACE

Each trial is an ordinary run; those that fall behind are stopped early. The first one is the
configuration as it is. The best becomes a configuration file. Needs Optuna (pip install optuna).

SPACE is a JSON file that says what to try for keys of the configuration:
  {"optimizer.args.lr": {"log": [1e-4, 1e-1]}, "data_loader.args.batch_size": [16, 32, 64],
   "loss.args.label_smoothing": {"float": [0, 0.2]}, "arch.args.width": {"int": [8, 32]}}

-c FILE --space SPACE   a new search
-r SEARCH               resume one; without SEARCH the newest
"""

import argparse
import contextlib
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from base.monitor import Monitor
from logger.base_tracker import BaseTracker, watching
from logger.files import aligned
from trainer.family import Family, family_command, family_parser, judges, with_values
from utils.config import config_file
from utils.config.config import ConfigParser
from utils.config.resolve import from_file
from utils.errors import Interrupted, RunError, UserError
from utils.files import shell_command

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

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
    parser = family_parser("trainer.search", __doc__, "SEARCH")
    parser.add_argument("--space", metavar="SPACE", type=Path, help="what to try, a JSON file")
    parser.add_argument("-n", "--trials", type=int, metavar="N", help="trials in all (20)")
    return family_command(parser, argv, KIND, begin, search)


def begin(arguments: argparse.Namespace) -> Family:
    """A new search. Raises UserError for a space with values that cannot be tried."""
    if arguments.space is None:
        raise UserError("--space: which values? Pass a JSON file; --help shows one")
    parser = from_file(arguments.config, arguments.set)
    config, (space, _) = parser.config, config_file.read_layers(arguments.space)
    if Monitor(parser["trainer"].get("monitor", "off")).mode == "off":
        raise UserError("trainer.monitor: a search needs to know what is better, max val_accuracy")
    for values in corners(space):  # both ends of each range must be possible
        ConfigParser(with_values(config, values), origin=f"{arguments.config} with {values}")
    return Family.begin(config, arguments.device, kind=KIND, space=space, members=20)


def corners(space: dict) -> list[dict]:
    """Values for all keys at once: the first of each, and the last. Raises UserError."""
    faults = [f"{key}: {fault}" for key, spec in space.items() if (fault := find_fault(spec))]
    if not space:
        faults = ["the file names no keys"]
    if faults:
        raise UserError("\n  ".join(["--space:", *faults]))
    ends = {
        k: spec if isinstance(spec, list) else [*spec.values()].pop() for k, spec in space.items()
    }
    return [{key: values[place] for key, values in ends.items()} for place in (0, -1)]


def find_fault(spec: object) -> str | None:
    """What is wrong with what the space says for a key."""
    if isinstance(spec, list):
        return None if spec else "the list is empty"
    [(kind, ends)] = spec.items() if isinstance(spec, dict) and len(spec) == 1 else [(None, None)]
    if kind not in ("log", "float", "int"):
        return 'should be a list of values, or {"log": [LOW, HIGH]}'
    numbers = [end for end in ends if type(end) in (int, float)] if isinstance(ends, list) else []
    if numbers != ends or len(ends) != 2 or ends[0] >= ends[1]:
        return f'"{kind}" should have two numbers, the lower one first'
    if kind == "log" and ends[0] <= 0:
        return 'the lower end of "log" should be above 0'
    return None


def search(family: Family, arguments: argparse.Namespace) -> dict:
    """Run the trials that are missing, and write best.json; returns the content of family.json.

    Raises UserError if Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install optuna") from None
    if arguments.trials is not None:
        family.keep(members=arguments.trials)
    trainer, space = family.config["trainer"], family.about["space"]
    rule, states = Monitor(trainer["monitor"]), optuna.trial.TrialState
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(family.folder / "study.log"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="search",
        direction="maximize" if rule.mode == "max" else "minimize",
        load_if_exists=True,
    )
    # another seed each time: a resumed search would draw the same values again
    seed = family.config.get("seed", 0) + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=int(WARM_UP * trainer["epochs"]))
    if not study.trials and (own := values_of(family.config, space)):
        study.enqueue_trial(own)
    while True:
        cut_off = study.get_trials(states=[states.RUNNING])
        done = sum(trial.state.is_finished() for trial in study.trials)
        if not cut_off and done >= family.about["members"]:
            return _finish(family, study, rule)
        family.keep(done=done)
        trial = optuna.trial.Trial(study, cut_off[0]._trial_id) if cut_off else study.ask()
        values, watch = suggest(trial, space), Watch(trial, rule.name)
        try:
            with watching(watch):
                result = family.train(_member(trial), with_values(family.config, values))
        except Interrupted:
            if not watch.stopped:
                raise
            study.tell(trial, state=states.PRUNED)
        except RunError:  # its loss became infinite, say: the others need not end with it
            study.tell(trial, state=states.FAIL)
        else:
            study.tell(trial, result.best)


def _member(trial: "Trial | FrozenTrial") -> str:
    return f"trial{trial.number + 1}"


def suggest(trial: "Trial", space: dict) -> dict:
    """A value for each key, of what the space allows."""
    for key, spec in space.items():
        if isinstance(spec, list):  # Optuna stores plain values only
            trial.suggest_categorical(key, [*range(len(spec))])
            continue
        [(kind, (low, high))] = spec.items()
        if kind == "int":
            trial.suggest_int(key, low, high)
        else:
            trial.suggest_float(key, low, high, log=kind == "log")
    return suggested(trial, space)


def suggested(trial: "Trial | FrozenTrial", space: dict) -> dict:
    """The trial's values by key; Optuna knows those of a list by their places in it."""
    return {
        key: space[key][value] if isinstance(space[key], list) else value
        for key, value in trial.params.items()
    }


def values_of(config: dict, space: dict) -> dict:
    """What the configuration says for the keys of the space, as Optuna stores it; empty if that is
    not all in the space.
    """
    found = {}
    for key, spec in space.items():
        value: object = config
        for part in key.split("."):
            value = {"type": value} if isinstance(value, str) else value
            try:
                value = value[int(part) if isinstance(value, list) else part]
            except (LookupError, TypeError, ValueError):
                value = None
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
    space, trials = family.about["space"], study.trials
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        raise RunError("no trial has reached its last epoch, see above")
    best, name, folder = study.best_trial, rule.name.removeprefix("val_"), family.folder
    config_file.write(with_values(family.config, suggested(best, space)), folder / "best.json")
    about = {"state": "finished", "done": len(trials), "best": _member(best)}
    about["validation"] = f"{name} {best.value:.4g}, the best of {len(trials)}"
    tested, samples = {}, 0
    for trial in dict.fromkeys([best.number, complete[0].number]):
        run = family.find(_member(trials[trial]))
        for module in judges():
            with contextlib.suppress(UserError):  # there may be no test data
                report = module.judge(run, family.device)
                if name in report:
                    tested[f"trial {trial + 1}"], samples = report[name], report["n"]
    lines = [*_table(trials, space, rule), ""]
    lines.append(f"best: trial {best.number + 1}, {rule.name} {best.value:.4g}")
    if tested:
        about["test"] = f"{name} {next(iter(tested.values())):.4g} (n {samples:,})"
        words = ", ".join(f"{value:.4g} by {which}" for which, value in tested.items())
        lines.append(f"on {samples:,} test samples, by which nothing was chosen, {name} is {words}")
    family.keep(**about)
    command = shell_command("python", "train.py", "-c", folder / "best.json")
    lines += [f"written: {folder / 'best.json'}", "next:", f"  {command}"]
    logging.getLogger("trainer").info("\n".join(lines))
    return family.about


def _table(trials: "list[FrozenTrial]", space: dict, rule: Monitor) -> list[str]:
    rows = [["trial", rule.name, *space]]
    for trial in trials:
        shown = "failed" if trial.value is None else f"{trial.value:.4g}"
        shown += ", stopped early" * (trial.state.name == "PRUNED")
        values = suggested(trial, space)
        cells = [values.get(key, "") for key in space]
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        rows.append([str(trial.number + 1), shown, *cells])
    return aligned(rows)


if __name__ == "__main__":
    sys.exit(main())
