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
import sys
from collections.abc import Iterator
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
    def began(self) -> datetime.datetime:
        """When it began; before December 2026 only the file system knows."""
        began = self.about.get("began")
        known = began if isinstance(began, int | float) else _time(self.folder / "config.json")
        return datetime.datetime.fromtimestamp(known)

    @property
    def state(self) -> str:
        """ "finished", "stopped", "training", "broken off" if nothing trains it any more; of old
        runs "unfinished"; "unreadable" if run.json is damaged.
        """
        state = self.about.get("state")
        if state is None and (self.folder / RUN_FILE).exists():
            return "unreadable"
        if state is None:  # before December 2026
            return "finished" if len(self.history) >= self._epochs else "unfinished"
        if state == "training" and lock.is_free(self.folder):
            return "broken off"
        return state

    @property
    def _epochs(self) -> int:
        trainer = self.config.get("trainer")
        epochs = trainer.get("epochs") if isinstance(trainer, dict) else None
        known = isinstance(epochs, int) and epochs >= len(self.history)  # pruning has several times
        return epochs if known else len(self.history)

    @property
    def best(self) -> tuple[str, float] | None:
        """What is monitored, and its best value."""
        trainer = self.config.get("trainer")
        rule = trainer.get("monitor") if isinstance(trainer, dict) else None
        mode, _, name = str(rule or "min val_loss").partition(" ")
        if mode not in ("min", "max"):
            mode, name = "min", "val_loss"
        values = [v for row in self.history if isinstance(v := row.get(name), int | float)]
        return (name, min(values) if mode == "min" else max(values)) if values else None

    @property
    def curve(self) -> list[float]:
        """The values of what is monitored, epoch by epoch."""
        name = self.best[0] if self.best else ""
        return [v for row in self.history if isinstance(v := row.get(name), int | float)]

    @property
    def parent(self) -> Path | None:
        """The folder of the run whose weights it starts from."""
        parent = self.about.get("parent")
        return (self.folder / parent).resolve() if isinstance(parent, str) else None

    def row(self) -> dict[str, str | float]:
        """The cells of the table, by COLUMNS; "" for what is unknown."""
        record, samples = self.about.get("origin") or {}, self.about.get("samples") or {}
        watched = self.best[0].removeprefix("val_") if self.best else ""
        watched = watched if watched in self.test else "loss"
        found = (self.test.get("inspection") or {}).get("at_threshold")
        files = [*(self.export.get("bytes") or {}).values(), *self.best_bytes]
        times = (self.export.get("latency") or {}).values()
        latency = [values["p50"] for values in times if isinstance(values, dict)]
        cells = {
            "name": self.folder.parent.name,
            "run": self.folder.name,
            "kind": self.kind,
            "date": f"{self.began:%Y-%m-%d %H:%M}",
            "state": self.state,
            "epochs": f"{len(self.history)}/{self._epochs}".removesuffix("/0"),
            "data": str(record.get("data") or "")[:8],
            "samples": " + ".join(f"{count:,}" for count in samples.values()),
            "validation": self.best and _figure(*self.best, samples.get("validated on")),
            "test": self.test and _figure(watched, self.test.get(watched), self.test.get("n")),
            "escaped": found and f"{found.get('missed')} of {found.get('targets')}",
            "minutes": round(sum(row.get("seconds", 0.0) for row in self.history) / 60, 1),
            "MB": round(files[0] / 1e6, 2) if files else "",
            "ms": round(min(latency), 2) if latency else "",
            "from": self.parent and f"{self.parent.parent.name}/{self.parent.name}",
        }
        return {column: cells.get(column) or "" for column in COLUMNS}

    @property
    def best_bytes(self) -> list[int]:
        """The size of the best checkpoint, if there is one."""
        return [file.stat().st_size for file in self.folder.glob(BEST)]


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


def find_runs(root: Path) -> Iterator[Run]:
    """All runs in a folder like saved/, those of families too, the newest first."""
    places = [(folder, None) for folder in root.glob("models/*/*")]
    for kind in FAMILIES:
        for family in root.glob(f"{kind}/*/*"):
            places += [(folder, family) for folder in family.glob("models/*/*")]
    found = [Run.read(*place) for place in places if any(place[0].glob("*.json"))]
    yield from sorted(found, key=lambda run: (run.began, run.id), reverse=True)


def write_shelf(root: Path, as_text: bool = False) -> Path:
    """Write index.html and index.csv; returns the page's path. Raises UserError without runs."""
    runs = [*find_runs(root)]
    if not runs:
        raise UserError(f"{root} holds no runs: train one first, or name the folder that does")
    by_folder = {run.folder.resolve(): run for run in runs}
    for run in runs:
        if made := by_folder.get(run.parent):
            made.children.append(run.id)
    own = [run for run in runs if run.family is None]
    shown = []  # what the page shows in each row
    for position, run in enumerate(own):
        names = (other for other in own[position + 1 :] if other.folder.parent == run.folder.parent)
        before = next(names, by_folder.get(run.parent))
        changed = difference(before.config, run.config) if before else {}
        row = run.row() | {"changed": ", ".join(f"{k} {new}" for k, (_, new) in changed.items())}
        report = run.folder / "test" / "report.html"
        shown.append((row, report, changed, run.children, _polyline(run)))
    shown += [(row, report, {}, [], "") for row, report in _families(root, runs)]
    shown.sort(key=lambda each: str(each[0]["date"]), reverse=True)
    table = [row for row, *_ in shown]
    known = [column for column in COLUMNS if any(row[column] != "" for row in table)]
    write_csv(root / "index.csv", list(COLUMNS), (row.values() for row in table))
    if as_text:
        few = ("name", "run", "kind", "state", "validation", "test")
        print("\n".join(aligned([list(few), *([str(row[c]) for c in few] for row in table)])))
    links = {path: path.relative_to(root).as_posix() for _, path, *_ in shown if path.exists()}
    write_html(
        root / "index.html",
        Path(__file__).with_name("shelf.html"),
        name="Runs",
        run=str(root.resolve().name),
        columns=known,
        rows=[(row, links.get(path), *more) for row, path, *more in shown],
        curve=CURVE,
    )
    return root / "index.html"


def _families(root: Path, runs: list[Run]) -> Iterator[tuple[dict, Path]]:
    """A row for each family, and where its report is."""
    for kind, name in FAMILIES.items():
        for file in sorted(root.glob(f"{kind}/*/*/family.json"), reverse=True):
            about, folder = read_json(file), file.parent
            members = [run for run in runs if run.family == folder]
            row: dict[str, str | float] = dict.fromkeys(COLUMNS, "")
            row |= {"name": folder.parent.name, "run": folder.name, "kind": name}
            date = datetime.datetime.fromtimestamp(_time(file))
            row |= {"date": f"{date:%Y-%m-%d %H:%M}", "state": about.get("state", "unfinished")}
            row["epochs"] = f"{about.get('done', len(members))}/{about.get('members', '?')} runs"
            row |= {key: about[key] for key in ("validation", "test", "escaped", "samples")
                    if key in about}  # fmt: skip
            row["minutes"] = round(sum(float(m.row()["minutes"] or 0) for m in members), 1)
            yield row, folder / "report.html"


def compare(first: Path, second: Path, root: Path) -> Path:
    """Write compare.html about two runs into `root`; returns its path. Raises UserError."""
    from logger.charts import BLUE, RED, new_figure, svg_uri

    for folder in (first, second):
        if not (folder / "config.json").exists():
            raise UserError(f"--compare {folder}: pass the folder of a run, saved/models/NAME/RUN")
    pair = Run.read(first), Run.read(second)
    names = [n for n in pair[0].history[-1] if n in pair[1].history[-1] and "val_" in n] \
        if all(run.history for run in pair) else []  # fmt: skip
    figure = new_figure(10, 2.6 * max(1, -(-len(names) // 3)))
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(-(-len(names) // 3), 3, place)
        for run, color in zip(pair, (BLUE, RED), strict=True):
            points = [(row["epoch"], row[name]) for row in run.history if name in row]
            axes.plot(*zip(*points, strict=True), color=color, label=run.id)
        axes.set_title(name, fontsize=10)
    if names:
        figure.axes[0].legend(fontsize=7)
    root.mkdir(parents=True, exist_ok=True)
    path = root / "compare.html"
    write_html(
        path,
        Path(__file__).with_name("comparison.html"),
        name=pair[0].id,
        run=f"and {pair[1].id}",
        pair=pair,
        rows=[run.row() for run in pair],
        columns=COLUMNS,
        changed=difference(pair[0].config, pair[1].config),
        curves=svg_uri(figure) if names else None,
        classes=_per_class(*pair),
    )
    return path


def difference(before: dict, now: dict) -> dict[str, tuple[str, str]]:
    """key -> (value before, value now) where two configurations differ; "–" for none."""
    old, new = flat(before), flat(now)
    keys = [key for key in {**old, **new} if key not in IGNORED and old.get(key) != new.get(key)]
    return {key: (_short(old.get(key, "–")), _short(new.get(key, "–"))) for key in keys}


def _per_class(first: Run, second: Run) -> list[tuple[str, list[float], list[float]]]:
    """Class, and (recall, precision) of both, for the classes that both were tested on."""
    one, two = (run.test.get("per_class") or {} for run in (first, second))
    keys = ("recall", "precision", "support")
    return [
        (name, [one[name][key] for key in keys], [two[name][key] for key in keys])
        for name in one
        if name in two
    ]


def _figure(name: str, value: object, count: object) -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{name.removeprefix('val_')} {value:.4g}" + (
        f" (n {count:,})" if isinstance(count, int) else ""
    )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return printable(text if len(text) <= 80 else f"{text[:77]}...")


def _polyline(run: Run) -> str:
    """The points of the small curve, for an SVG of the size CURVE."""
    values, (width, height) = run.curve, CURVE
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    scale = (height - 4) / ((high - low) or 1)
    step = width / (len(values) - 1)
    return " ".join(
        f"{n * step:.1f},{height - 2 - (value - low) * scale:.1f}" for n, value in enumerate(values)
    )


def _time(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0


if __name__ == "__main__":
    sys.exit(main())
