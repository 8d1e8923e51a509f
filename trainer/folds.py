"""Train and test on every fold of the data:  python -m trainer.folds -c FILE

The training data is divided into k folds, by class and by lot. Each run tests on one fold and
validates on the next, so that every sample is tested once, by a network that was not trained on
it. With few samples such a figure can be trusted, where that of a single split depends on chance.

-c FILE      train all folds
-r FAMILY    resume one that was interrupted; without FAMILY the newest
"""

import argparse
import logging
import math
import statistics
import sys

import numpy as np

from base.base_data_loader import LEAST_FOLDS
from logger.files import aligned
from trainer.decisions import CONFIDENCE, upper_bound
from trainer.family import Family, family_command, family_parser, judges, with_values
from utils import checkpoint
from utils.config.config import ConfigParser
from utils.config.resolve import from_file
from utils.errors import UserError

KIND = "folds"
SHOWN = 6  # values of the runs, on the screen


def main(argv: list[str] | None = None) -> int:
    parser = family_parser("trainer.folds", __doc__, "FAMILY")
    add = parser.add_argument
    add("-k", type=int, default=5, metavar="K", help="number of folds (5)")
    add(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="number of times, each with other folds (1)",
    )
    return family_command(parser, argv, KIND, begin, lambda family, _: run_folds(family))


def begin(arguments: argparse.Namespace) -> Family:
    """A new family. Raises UserError if the data cannot be divided into that many."""
    count, repeat = arguments.k, arguments.repeat
    if count < LEAST_FOLDS or repeat < 1:
        raise UserError(f"-k: at least {LEAST_FOLDS}, to train on, to validate and to test")
    config = from_file(arguments.config, arguments.set).config
    parser = ConfigParser(fold_config(config, 0, count, 0), origin=str(arguments.config))
    _compare_with_classes(parser, count)
    about = {"kind": KIND, "folds": count, "repeat": repeat, "members": count * repeat}
    return Family.begin(config, arguments.device, **about)


def _compare_with_classes(parser: ConfigParser, folds: int) -> None:
    """Warn of classes that some folds will lack. Raises UserError if one is inspection's target."""
    loader = parser.init_obj("data_loader")
    names, targets = loader.classes, loader.dataset.offers.targets
    if names is None or targets is None or np.ndim(targets) != 1:
        return
    counts = np.bincount(np.asarray(targets), minlength=len(names))
    few = {name: int(n) for name, n in zip(names, counts, strict=True) if n < folds}
    if (target := parser.option("inspection", "target")) in few:
        raise UserError(f"-k {folds}: there are only {few[target]} samples of {target}")
    if few:
        shown = ", ".join(f"{name} ({count})" for name, count in [*few.items()][:5])
        print(f"warning: fewer than {folds} samples: {shown}; some folds lack these classes")


def fold_config(config: dict, fold: int, count: int, repetition: int) -> dict:
    """The configuration of one fold: its part of the data, and a seed for each repetition."""
    separate = ("valid_data_loader", "test_data_loader")
    values = {
        "seed": config.get("seed", 0) + repetition,
        "data_loader.args.fold": [fold, count],
        "data_loader.args.validation_split": 0,
    }
    return with_values({k: v for k, v in config.items() if k not in separate}, values)


def run_folds(family: Family) -> dict:
    """Train and test what is missing, and write family.json; returns its content."""
    count, repeat, results = family.about["folds"], family.about["repeat"], []
    for number in range(count * repeat):
        repetition, fold = divmod(number, count)
        member = f"fold{fold + 1}" + f"-{repetition + 1}" * (repetition > 0)
        family.keep(done=number)
        config = fold_config(family.config, fold, count, repetition)
        results.append({"member": member, **train_and_test(family, member, config)})
    spread = spreads(results, count)
    family.keep(state="finished", done=len(results), results=results, spread=spread)
    monitor = str(family.config["trainer"].get("monitor", "")).partition(" ")[2]
    for kind, name in ("validation", monitor), ("test", monitor.replace("val_", "test_", 1)):
        if name in spread:
            family.keep(**{kind: f"{name.partition('_')[2]} {in_words(spread[name])}"})
    lines = _table(spread)
    if inspected := [found for result in results if (found := result.get("inspection"))]:
        total = summed(inspected)
        family.keep(inspection=total, escaped=f"{total['missed']} of {total['targets']}")
        lines.append("each fold by the threshold that its own validation chose:")
        lines += [f"  {line}" for line in _costs_in_words(total, repeat)]
    runs = [family.folder / "models" / r["member"] / r["run"] for r in results[:count]]
    for module in judges():
        module.report(runs, family.folder, family.device)
    lines.append(f"written: {family.folder}")
    logging.getLogger("trainer").info("\n".join(lines))
    return family.about


def train_and_test(family: Family, member: str, config: dict) -> dict:
    """What the epoch of a member's best checkpoint logged in validation, and its test the same."""
    result = family.train(member, config)
    best = checkpoint.load(result.file)["trainer"]["history"][-1]
    found = {name: value for name, value in best.items() if name.startswith("val_")}
    measured = [name.removeprefix("val_") for name in found]
    for module in judges():
        report = module.judge(result.run, family.device)
        numbers = {name: report.get(name) for name in measured}
        found |= {f"test_{k}": v for k, v in numbers.items() if isinstance(v, int | float)}
        found["inspection"] = report.get("inspection")
    return {"run": result.run.name, **found}


def spreads(results: list[dict], folds: int) -> dict[str, dict]:
    """Of each number of the members: "mean", "spread" (standard deviation), "each", and "low" and
    "high": the 95 % confidence interval of the mean of such runs.

    As the members share training data, the variance is corrected (Nadeau and Bengio, Machine
    Learning 52, 2003).
    """
    from scipy import stats

    found = {}
    for name in (name for name, value in results[0].items() if isinstance(value, int | float)):
        each = [result[name] for result in results if name in result]
        mean, spread, count = statistics.fmean(each), statistics.stdev(each), len(each)
        share = 1 / (folds - 2)  # samples tested for each that is trained on
        width = stats.t.ppf(0.975, count - 1) * spread * math.sqrt(1 / count + share)
        found[name] = {"mean": mean, "spread": spread, "each": each}
        found[name] |= {"low": mean - width, "high": mean + width}
    return found


def _table(spread: dict[str, dict]) -> list[str]:
    rows = [["", "mean ± spread", "95 % of the mean", "each"]]
    for name, values in spread.items():
        interval = f"{values['low']:.4g} to {values['high']:.4g}"
        each = " ".join(f"{value:.4g}" for value in values["each"][:SHOWN])
        each += " ..." if len(values["each"]) > SHOWN else ""
        rows.append([name, in_words(values), interval, each])
    return aligned(rows)


def summed(inspections: list[dict]) -> dict:
    """The counts of all folds, each by its own threshold: "missed" of "targets", "false" of
    "others", and "escape_bound" and "overkill_bound" at most.
    """
    confidence = inspections[0].get("confidence", CONFIDENCE)
    total = {"target": inspections[0]["target"], "confidence": confidence}
    for name in ("missed", "targets", "false", "others"):
        total[name] = sum(inspection["at_threshold"][name] for inspection in inspections)
    total["escape_bound"] = upper_bound(total["missed"], total["targets"], confidence)
    total["overkill_bound"] = upper_bound(total["false"], total["others"], confidence)
    return total


def in_words(values: dict) -> str:
    return f"{values['mean']:.4g} ± {values['spread']:.2g}"


def _costs_in_words(total: dict, repeat: int) -> list[str]:
    target, confidence = total["target"], f"{100 * total['confidence']:.3g}"
    escape, overkill = (f"at most {total[k]:.2%}" for k in ("escape_bound", "overkill_bound"))
    repeated = f"; each sample {repeat} times, so the bounds are too good" if repeat > 1 else ""
    return [
        f"missed {target}  {total['missed']} of {total['targets']}, {escape}",
        f"false {target}   {total['false']} of {total['others']}, {overkill}",
        f'("at most" with {confidence} % confidence){repeated}',
    ]


if __name__ == "__main__":
    sys.exit(main())
