"""A page of all runs:  python -m logger.shelf

Writes saved/index.html, which needs no server, and saved/index.csv. A row is a run or a family of
runs (folds, a search): its state, data, figures with the number of samples they rest on, what its
configuration changed, what it was made from and what was made from it.

--text             shows the table here, too
--compare A B      a page that sets two runs side by side: configuration, curves, classes
"""

import argparse
import datetime
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from logger.files import aligned, flat, write_csv
from logger.metrics_csv import MetricsFile
from logger.page import write_html
from utils import lock
from utils.errors import UserError
from utils.files import printable
from utils.run_folder import BEST, RUN_FILE, log_dir_for, read_json, read_run_file
from utils.screen import run_command

FAMILIES = {"folds": "folds", "search": "search"}  # folder in saved/ -> what its families are
COLUMNS = ("name", "run", "state", "validation", "test", "escaped", "changed", "from", "kind",
           "date", "epochs", "samples", "minutes", "MB", "ms", "data")  # fmt: skip
IGNORED = ("name", "trainer.save_dir", "trainer.tensorboard", "trainer.verbosity")  # no difference
CURVE = 120, 30  # pixels of the small curve


@dataclass
class Run:
    """What is known of a run, from the files in its folders; none of them need be there.

    Attributes:
        folder: saved/models/<name>/<run>
        config: as used
        about: from run.json
        history: the rows of metrics.csv
        test: from test/result.json
        export: from export.json
        family: the folder of its family; None for a run of its own
        children: ids of the runs that start from its weights
    """

    folder: Path
    config: dict
    about: dict
    history: list[dict]
    test: dict
    export: dict
    family: Path | None = None
    children: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, family: Path | None = None) -> "Run":
        """Raises nothing: a damaged file counts as missing."""
        history = MetricsFile(log_dir_for(folder) / "metrics.csv", enabled=False).read()
        files = (folder / "config.json", folder / "test" / "result.json", folder / "export.json")
        config, test, export = map(read_json, files)
        return cls(folder, config, read_run_file(folder), history, test, export, family)

    @property
    def id(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def kind(self) -> str:
        """The script that made it; "fine-tune" if train.py began with another run's weights."""
        script = Path(str(self.about.get("script", "train.py"))).stem
        return "fine-tune" if script == "train" and self.parent else script

    @property
    def began(self) -> float:
        """When it began; before December 2026 only the file system knows."""
        return self.about.get("began") or _time(self.folder / "config.json")

    @property
    def state(self) -> str:
        """ "finished", "stopped", "training", "broken off" if nothing trains it any more; of old
        runs "unfinished"; "unreadable" if run.json is damaged.
        """
        state = self.about.get("state")
        if state is None and (self.folder / RUN_FILE).exists():
            return "unreadable"
        if state is None:  # before December 2026
            return "finished" if len(self.history) >= self.epochs else "unfinished"
        if state == "training" and lock.is_free(self.folder):
            return "broken off"
        return state

    @property
    def epochs(self) -> int:
        """How many it should train; pruning trains several times as many."""
        return max(self.config.get("trainer", {}).get("epochs", 0), len(self.history))

    @property
    def curve(self) -> tuple[str, float | None, list[float]]:
        """What is monitored, its best value, and its values epoch by epoch."""
        mode, _, name = self.config.get("trainer", {}).get("monitor", "off").partition(" ")
        if mode == "off":
            mode, name = "min", "val_loss"
        values = [v for row in self.history if isinstance(v := row.get(name), int | float)]
        return name, (min if mode == "min" else max)(values, default=None), values

    @property
    def parent(self) -> Path | None:
        """The folder of the run whose weights it starts from."""
        parent = self.about.get("parent")
        return parent and (self.folder / parent).resolve()

    def row(self) -> dict[str, str | float]:
        """The cells of the table, by COLUMNS; "" for what is unknown."""
        record, samples = self.about.get("origin") or {}, self.about.get("samples") or {}
        name, best, _ = self.curve
        tested = name.removeprefix("val_") if name.removeprefix("val_") in self.test else "loss"
        costs = (self.test.get("inspection") or {}).get("at_threshold")
        sizes = [*(self.export.get("bytes") or {}).values()]
        sizes += [file.stat().st_size for file in self.folder.glob(BEST)]
        times = (self.export.get("latency") or {}).values()
        latency = [values["p50"] for values in times if isinstance(values, dict)]
        cells = {
            "name": self.folder.parent.name,
            "run": self.folder.name,
            "kind": self.kind,
            "date": _date(self.began),
            "state": self.state,
            "epochs": f"{len(self.history)}/{self.epochs}".removesuffix("/0"),
            "data": str(record.get("data") or "")[:8],
            "samples": " + ".join(f"{count:,}" for count in samples.values()),
            "validation": _figure(name, best, samples.get("validated on")),
            "test": _figure(tested, self.test.get(tested), self.test.get("n")),
            "escaped": costs and f"{costs.get('missed')} of {costs.get('targets')}",
            "minutes": round(sum(row.get("seconds", 0.0) for row in self.history) / 60, 1),
            "MB": sizes and round(sizes[0] / 1e6, 2),
            "ms": latency and round(min(latency), 2),
            "from": self.parent and f"{self.parent.parent.name}/{self.parent.name}",
        }
        return {column: cells.get(column) or "" for column in COLUMNS}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m logger.shelf", description=__doc__)
    add = parser.add_argument
    add("root", metavar="FOLDER", nargs="?", type=Path, default=Path("saved"),
        help="where the runs are (saved)")  # fmt: skip
    add("--text", action="store_true", help="show the table on the screen, too")
    add("--compare", nargs=2, metavar=("A", "B"), type=Path, help="the folders of two runs")

    def write(arguments: argparse.Namespace) -> None:
        if arguments.compare:
            path = compare(*arguments.compare, arguments.root)
        else:
            path = write_shelf(arguments.root, arguments.text)
        print(f"written: {path}")

    return run_command(parser, argv, write)


def find_runs(root: Path) -> list[Run]:
    """All runs in a folder like saved/, those of families too, the newest first."""
    families = [None, *(family for kind in FAMILIES for family in root.glob(f"{kind}/*/*"))]
    runs = [
        Run.read(folder, family)
        for family in families
        for folder in (family or root).glob("models/*/*")
        if any(folder.glob("*.json"))
    ]
    return sorted(runs, key=lambda run: (run.began, run.id), reverse=True)


def write_shelf(root: Path, as_text: bool = False) -> Path:
    """Write index.html and index.csv; returns the page's path. Raises UserError without runs."""
    runs = find_runs(root)
    if not runs:
        raise UserError(f"{root} holds no runs: train one first, or name the folder that does")
    by_folder = {run.folder.resolve(): run for run in runs}
    for run in runs:
        if parent := by_folder.get(run.parent):
            parent.children.append(run.id)
    own = [run for run in runs if run.family is None]
    shown = []  # what the page shows in each row
    for position, run in enumerate(own):
        names = (other for other in own[position + 1 :] if other.folder.parent == run.folder.parent)
        before = next(names, by_folder.get(run.parent))
        changed = difference(before.config, run.config) if before else {}
        row = run.row() | {"changed": ", ".join(f"{k} {new}" for k, (_, new) in changed.items())}
        report = run.folder / "test" / "report.html"
        shown.append((row, report, changed, run.children, _points(run)))
    for kind, name in FAMILIES.items():
        for file in sorted(root.glob(f"{kind}/*/*/family.json"), reverse=True):
            members = [run for run in runs if run.family == file.parent]
            row, report = _family_row(file, name, members), file.parent / "report.html"
            shown.append((row, report, {}, [], ""))
    shown.sort(key=lambda each: str(each[0]["date"]), reverse=True)
    table = [row for row, *_ in shown]
    write_csv(root / "index.csv", list(COLUMNS), (row.values() for row in table))
    if as_text:
        few = [*("name", "run", "kind", "state", "validation", "test")]
        few += ["escaped"] if any(row["escaped"] for row in table) else []
        print("\n".join(aligned([few, *([str(row[c]) for c in few] for row in table)])))
    links = {path: path.relative_to(root).as_posix() for _, path, *_ in shown if path.exists()}
    write_html(
        root / "index.html",
        Path(__file__).with_name("shelf.html"),
        name="Runs",
        run=str(root.resolve().name),
        columns=[column for column in COLUMNS if any(row[column] != "" for row in table)],
        rows=[(row, links.get(path), *more) for row, path, *more in shown],
        curve=CURVE,
    )
    return root / "index.html"


def _family_row(file: Path, kind: str, members: list[Run]) -> dict[str, str | float]:
    """The cells of a family's row, from its family.json and its runs."""
    about = read_json(file)
    row = dict.fromkeys(COLUMNS, "") | {
        "name": file.parent.parent.name,
        "run": file.parent.name,
        "kind": kind,
        "date": _date(_time(file)),
        "state": about.get("state", "unfinished"),
        "epochs": f"{about.get('done', len(members))}/{about.get('members', '?')} runs",
        "minutes": round(sum(float(member.row()["minutes"] or 0) for member in members), 1),
    }
    figures = ("validation", "test", "escaped", "samples")
    return row | {key: about[key] for key in figures if key in about}


def compare(first: Path, second: Path, root: Path) -> Path:
    """Write compare.html about two runs into `root`; returns its path. Raises UserError."""
    for folder in (first, second):
        if not (folder / "config.json").exists():
            raise UserError(f"--compare {folder}: pass the folder of a run, saved/models/NAME/RUN")
    pair = one, two = Run.read(first), Run.read(second)
    cells = zip(COLUMNS, one.row().values(), two.row().values(), strict=True)
    root.mkdir(parents=True, exist_ok=True)
    path = root / "compare.html"
    write_html(
        path,
        Path(__file__).with_name("comparison.html"),
        name=one.id,
        run=f"and {two.id}",
        runs=[one.id, two.id],
        rows=[(column, *values) for column, *values in cells if values != ["", ""]],
        changed=[(key, *values) for key, values in difference(one.config, two.config).items()],
        curves=_curves(pair),
        classes=_class_rows(one, two),
    )
    return path


def _class_rows(first: Run, second: Run) -> list[list[str | float]]:
    """The scores of the classes that both were tested on."""
    tested = second.test.get("per_class") or {}
    rows = []
    for name, one in (first.test.get("per_class") or {}).items():
        if two := tested.get(name):
            counts = dict.fromkeys((str(one["support"]), str(two["support"])))
            recalls = one["recall"], two["recall"], f"{two['recall'] - one['recall']:+.3f}"
            rows.append([name, " / ".join(counts), *recalls, one["precision"], two["precision"]])
    return rows


def _curves(pair: tuple[Run, Run]) -> str | None:
    """A chart of each number that both validated; None if there are none."""
    from logger.charts import BLUE, RED, new_figure, svg_uri

    last = [run.history[-1] if run.history else {} for run in pair]
    names = [name for name in last[0] if name in last[1] and "val_" in name]
    if not names:
        return None
    lines = math.ceil(len(names) / 3)
    figure = new_figure(10, 2.6 * lines)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, 3, place)
        for run, color in zip(pair, (BLUE, RED), strict=True):
            points = [(row["epoch"], row[name]) for row in run.history if name in row]
            axes.plot(*zip(*points, strict=True), color=color, label=run.id)
        axes.set_title(name, fontsize=10)
    figure.axes[0].legend(fontsize=7)
    return svg_uri(figure)


def difference(before: dict, now: dict) -> dict[str, tuple[str, str]]:
    """key -> (value before, value now) where two configurations differ; "–" for none."""
    old, new = flat(before), flat(now)
    keys = [key for key in {**old, **new} if key not in IGNORED and old.get(key) != new.get(key)]
    return {key: (_short(old.get(key, "–")), _short(new.get(key, "–"))) for key in keys}


def _figure(name: str, value: object, count: object) -> str:
    """ "accuracy 0.9876 (n 1,000)"; "" without a value."""
    if not isinstance(value, int | float):
        return ""
    samples = f" (n {count:,})" if isinstance(count, int) else ""
    return f"{name.removeprefix('val_')} {value:.4g}{samples}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return printable(text if len(text) <= 80 else f"{text[:77]}...")


def _points(run: Run) -> str:
    """The points of the small curve, for an SVG of the size CURVE."""
    (*_, values), (width, height) = run.curve, CURVE
    if len(values) < 2:
        return ""
    low, step = min(values), width / (len(values) - 1)
    scale = (height - 4) / ((max(values) - low) or 1)
    points = ((n * step, height - 2 - (value - low) * scale) for n, value in enumerate(values))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _time(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0


def _date(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


if __name__ == "__main__":
    sys.exit(main())
