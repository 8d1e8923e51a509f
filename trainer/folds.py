"""Train and test on every fold of the data:  python -m trainer.folds -c FILE

The training data is shared out to k folds, by class and by lot. Of each run one fold is for
testing and the next for validation, so that every sample is judged once, by a network that knew
nothing of it. One can so trust a figure that a single split of few samples leaves to chance.

-c FILE      train all folds
-r FAMILY    go on where it was cut off; without FAMILY the newest
"""

import argparse
import logging
import math
import statistics
import sys
from pathlib import Path

import numpy as np

from base.base_data_loader import LEAST_FOLDS
from base.base_trainer import Result
from logger.files import aligned
from trainer.decisions import CONFIDENCE, upper_bound
from trainer.family import Family, family_command, judges
from utils import checkpoint
from utils.config.config import ConfigParser
from utils.config.resolve import from_file
from utils.errors import UserError

KIND = "folds"
SHOWN = 6  # values of the runs, on the screen


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.folds", description=__doc__)
    add = parser.add_argument
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("-c", "--config", metavar="FILE", type=Path)
    start.add_argument("-r", "--resume", metavar="FAMILY", type=Path, nargs="?", const=Path())
    add("-k", type=int, default=5, metavar="K", help="number of folds (5)")
    add("--repeat", type=int, default=1, metavar="N",
        help="share the data out anew, so many times in all (1)")  # fmt: skip
    add("-d", "--device", metavar="DEVICE")
    add("-s", "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="with -c: set any key of the config")  # fmt: skip
    return family_command(parser, argv, lambda arguments: run_folds(_open(arguments)))


def _open(arguments: argparse.Namespace) -> Family:
    if arguments.resume is not None:
        if arguments.resume == Path():
            return Family.newest(KIND, arguments.device)
        return Family(arguments.resume, arguments.device)
    if arguments.k < LEAST_FOLDS or arguments.repeat < 1:
        raise UserError(f"-k: at least {LEAST_FOLDS}, to train on, to validate and to test")
    config = from_file(arguments.config, arguments.set).config
    parser = ConfigParser(changed(config, 0, arguments.k, 0), origin=str(arguments.config))
    _compare_with_classes(parser, arguments.k)
    config.pop("$schema", None)
    about = {"kind": KIND, "folds": arguments.k, "repeat": arguments.repeat, "state": "unfinished"}
    about["members"] = arguments.k * arguments.repeat
    return Family.begin(KIND, config, about, arguments.device)


def _compare_with_classes(parser: ConfigParser, folds: int) -> None:
    """Warn of classes that some folds will lack. Raises UserError if one is inspection's target."""
    loader = parser.init_obj("data_loader")
    names, targets = loader.classes, loader.dataset.offers.targets
    if names is None or targets is None or np.ndim(targets) != 1:
        return
    counts = np.bincount(np.asarray(targets), minlength=len(names))
    few = {name: int(n) for name, n in zip(names, counts, strict=True) if n < folds}
    shown = ", ".join(f"{name} ({count})" for name, count in [*few.items()][:5])
    if (target := parser.option("inspection", "target")) in few:
        raise UserError(f"-k {folds}: there are only {few[target]} samples of {target}")
    if few:
        print(f"warning: fewer than {folds} samples: {shown}; some folds lack these classes")


def changed(config: dict, fold: int, count: int, repetition: int) -> dict:
    """The configuration of one fold: its part of the data, and a seed for each repetition."""
    loader = config.get("data_loader")
    args = loader.get("args", {}) if isinstance(loader, dict) else {}
    own = {"fold": [fold, count], "validation_split": 0}
    loader = (loader if isinstance(loader, dict) else {"type": loader}) | {"args": args | own}
    seed = {"seed": config.get("seed", 0) + repetition}
    separate = ("valid_data_loader", "test_data_loader")
    return {k: v for k, v in config.items() if k not in separate} | seed | {"data_loader": loader}


def run_folds(family: Family) -> dict:
    """Train and test what is missing, and write family.json; returns its content."""
    count, repeat, results = family.about["folds"], family.about["repeat"], []
    whole, others = family.config, judges()
    for repetition in range(repeat):
        for fold in range(count):
            member = f"fold{fold + 1}" + f"-{repetition + 1}" * (repetition > 0)
            family.config = changed(whole, fold, count, repetition)
            family.keep(done=len(results))
            result: Result = family.train(member, {})
            found = {name: v for name, v in best_row(result).items() if name.startswith("val_")}
            for module in others:
                tested = module.judge(result.run, family.device)
                found |= {f"test_{name}": tested[name] for name in test_metrics(tested, found)}
                found["inspection"] = tested.get("inspection")
            results.append({"member": member, "run": result.run.name, **found})
    spread = spreads(results, count)
    inspected = [found for each in results if (found := each.get("inspection"))]
    about = {"state": "finished", "done": len(results), "results": results, "spread": spread}
    about |= {"inspection": summed(inspected)} if inspected else {}
    monitor = str(family.config["trainer"].get("monitor", "")).partition(" ")[2]
    for kind, name in ("validation", monitor), ("test", monitor.replace("val_", "test_", 1)):
        if name in spread:
            about[kind] = f"{name.partition('_')[2]} {in_words(spread[name])}"
    if inspected:
        about["escaped"] = f"{about['inspection']['missed']} of {about['inspection']['targets']}"
    family.keep(**about)
    rows = [["", "mean ± spread", "95 % of the mean", "each"]]
    for name, values in spread.items():
        interval = f"{values['low']:.4g} to {values['high']:.4g}" if "low" in values else ""
        each = " ".join(f"{value:.4g}" for value in values["each"][:SHOWN])
        each += " ..." if len(values["each"]) > SHOWN else ""
        rows.append([name, in_words(values), interval, each])
    lines = aligned(rows)
    if inspected:
        lines += ["each fold by the threshold that its own validation chose:"]
        lines += [f"  {line}" for line in _costs_in_words(about["inspection"], repeat)]
    runs = [family.folder / "models" / r["member"] / r["run"] for r in results[:count]]
    for module in others:
        module.report(runs, family.folder, family.device)
    lines.append(f"written: {family.folder}")
    logging.getLogger("trainer").info("\n".join(lines))
    return family.about


def best_row(result: Result) -> dict[str, float]:
    """What the epoch of the best checkpoint logged."""
    state = checkpoint.load(result.file)
    return state["trainer"]["history"][-1]


def test_metrics(report: dict, validated: dict) -> list[str]:
    """The numbers of a test that the validation has, too."""
    names = [name.removeprefix("val_") for name in validated]
    return [name for name in names if isinstance(report.get(name), int | float)]


def spreads(results: list[dict], folds: int) -> dict[str, dict]:
    """Of each number of the members: "mean", "spread" (standard deviation), "each", and "low" and
    "high", between which the mean of such runs lies with 95 % confidence.

    As the members share training data, the variance is corrected (Nadeau and Bengio, Machine
    Learning 52, 2003).
    """
    from scipy import stats

    names = [n for n, value in results[0].items() if isinstance(value, int | float)]
    found = {}
    for name in names:
        each = [result[name] for result in results if name in result]
        mean, count = statistics.fmean(each), len(each)
        found[name] = {"mean": mean, "spread": statistics.stdev(each), "each": each}
        share = 1 / (folds - 2)  # samples tested for each that is trained on
        error = math.sqrt((1 / count + share) * statistics.variance(each))
        width = stats.t.ppf(0.975, count - 1) * error
        found[name] |= {"low": mean - width, "high": mean + width}
    return found


def summed(inspections: list[dict]) -> dict:
    """The counts of all folds, each by its own threshold: "missed" of "targets", "false" of
    "others", and "escape_bound" and "overkill_bound" at most.
    """
    parts = [inspection["at_threshold"] for inspection in inspections]
    names = ("missed", "targets", "false", "others")
    total = {name: sum(part[name] for part in parts) for name in names}
    confidence = inspections[0].get("confidence", CONFIDENCE)
    total["escape_bound"] = upper_bound(total["missed"], total["targets"], confidence)
    total["overkill_bound"] = upper_bound(total["false"], total["others"], confidence)
    return total | {"target": inspections[0]["target"], "confidence": confidence}


def in_words(values: dict) -> str:
    return f"{values['mean']:.4g} ± {values['spread']:.2g}"


def _costs_in_words(total: dict, repeat: int) -> list[str]:
    confidence = f'("at most" with {100 * total["confidence"]:.3g} % confidence)'
    repeated = f"; each sample {repeat} times, so the bounds are too good" if repeat > 1 else ""
    return [
        f"missed {total['target']}  {total['missed']} of {total['targets']}, at most "
        f"{total['escape_bound']:.2%}",
        f"false {total['target']}   {total['false']} of {total['others']}, at most "
        f"{total['overkill_bound']:.2%}",
        confidence + repeated,
    ]


if __name__ == "__main__":
    sys.exit(main())
