"""The report of a pruning run: steps.csv, the page, the recommended step, TensorBoard."""

import base64
import csv
import html.parser
import itertools
import re

import numpy as np
import pytest
import scipy.stats

from logger.visualization import TensorboardWriter
from pruner.report import explanation, not_faster, pruning_table, recommended, report_pruning

DROP, MACS = {"max_accuracy_drop": 0.01}, {"macs": 0.3}
HEADER = ["step", "channels", "macs", "params", "size_mb", "latency_ms", "accuracy"]


def steps(accuracies, macs=(1.0, 0.8, 0.6, 0.4, 0.3), **columns):
    """Rows as PruneTrainer makes them; `columns` replace some of their values."""
    rows = []
    for step, (accuracy, share) in enumerate(zip(accuracies, macs, strict=False)):
        before = None if step == 0 or accuracy is None else accuracy - 0.2
        row = {
            "step": step,
            "epochs": 3,
            "channels": 4800 - 700 * step,
            "macs": round(3e8 * share),
            "params": round(1e7 * share),
        }
        row |= {
            "size_mb": 40 * share,
            "latency_ms": 6 * share,
            "latency": share,
            "torch_ms": 9 * share,
        }
        row |= {
            "accuracy_before": before,
            "accuracy": accuracy,
            "recall_before": before,
            "recall": accuracy,
        }
        row |= {"checkpoint": f"model_step{step}.pth" if step else None}
        row |= {"samples": None, "escape": None}
        rows.append(row | {key: values[step] for key, values in columns.items()})
    return rows


ROWS = steps([0.975, 0.98, 0.97, 0.969, 0.95], latency=[1.0, 0.8, 0.797, 0.5, 0.4])
WIDTHS = [{"conv1": 64 - 8 * step, "layer1.conv": 128 - 16 * step, "fc": 6} for step in range(5)]
SILENT = TensorboardWriter("nowhere", enabled=False)


class Page(html.parser.HTMLParser):
    """A page's tags, the addresses and styles in it, and its words."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.fetched, self.styles, self.words = [], [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [
            value for key, value in attributes if key in ("src", "href", "data", "srcset")
        ]
        self.styles += [value for key, value in attributes if key == "style"]

    def handle_data(self, data):
        self.words += " ".join(data.split()) + " " if self.tags[-1:] != ["style"] else ""


@pytest.fixture
def report(tmp_path):
    """A function that writes a report, and returns the page and the rows of steps.csv."""

    def run(
        rows, aim=MACS, widths=WIDTHS, name="NEU", target_class=None, writer=SILENT, finished=True
    ):
        folder = tmp_path / "1123_101512" / "prune"
        made = report_pruning(
            folder, name, rows, widths[: len(rows)], aim, writer, target_class, finished
        )
        assert made == folder / "report.html"
        with open(folder / "steps.csv", encoding="utf-8-sig", newline="") as file:
            table = list(csv.reader(file))
        assert sorted(path.name for path in folder.iterdir()) == ["report.html", "steps.csv"]
        return Page(folder / "report.html"), table

    return run


@pytest.mark.parametrize(
    ("accuracies", "aim", "step"),
    [
        (
            [0.98, 0.97, 0.975, 0.96, 0.95],
            DROP,
            2,
        ),  # 0.98 - 0.01 = 0.97 is allowed, the later one is smaller
        ([0.98, 0.975, 0.97, 0.96, 0.95], DROP, 2),
        ([0.8, 0.7, 0.69], {"max_accuracy_drop": 0.1}, 1),  # in floating point 0.8 - 0.1 > 0.7
        ([0.98, 0.96, 0.95, 0.97, 0.1], DROP, 3),  # recovered again
        ([0.98, 0.9], DROP, 0),
        ([0.98, None, 0.975, None], DROP, 2),
        ([0.97, 0.98, 0.97, 0.99, 0.97], MACS, 3),  # 0.02 below the best
        ([0.97, 0.98, 0.97, 0.98, 0.97], MACS, 4),
        ([0.97, 0.98, None], MACS, 1),
        ([0.97, 0.97, 0.97, 0.97, 0.5], MACS, 3),
        ([0.97, 0.99, 0.95, 0.94, 0.9], MACS, 1),
        ([0.97, 0.99, 0.98, 0.95, 0.9], MACS, 2),
        ([0.9, 0.8, 0.7, 0.6, 0.55], MACS, 0),
        ([0.97, 0.96], MACS, 1),
        ([0.97, None], MACS, 0),
        ([0.97], MACS, 0),
        ([0.97], DROP, 0),
        ([None, None, None], MACS, 2),
        ([None, None], DROP, 1),
        ([None], DROP, 0),
    ],
)
def test_recommended_step(accuracies, aim, step):
    assert recommended(steps(accuracies), aim) == step


@pytest.mark.parametrize("seed", range(20))
def test_recommended_is_the_smallest_that_is_not_surely_a_point_worse(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(20, 5000))
    right = generator.binomial(count, generator.uniform(0.6, 1.0, 5))
    rows = steps((right / count).tolist(), samples=[count] * 5)
    best, fitting = right.max(), []
    for row, own in zip(rows, right, strict=True):
        one, other = (scipy.stats.beta(hits + 1, count - hits + 1) for hits in (own, best))
        spread = np.sqrt(one.mean() * (1 - one.mean()) + other.mean() * (1 - other.mean()))
        sure = other.mean() - one.mean() - scipy.stats.norm.ppf(0.95) * spread / np.sqrt(count + 2)
        if sure <= 0.01 and own >= best - 0.03 * count - 1e-6:
            fitting.append(row["step"])
    assert recommended(rows, MACS) == fitting[-1]


def test_a_step_after_a_poorly_trained_original_is_not_the_last_by_default():
    """Seen on 360 images: 0.864 at 8.4 % of the MACs, 0.778 at 3.6 %, both above the original."""
    accuracies = [0.75, 0.85, 0.86, 0.864, 0.778]
    rows = steps(accuracies, macs=(1.0, 0.6, 0.2, 0.084, 0.036), samples=[360] * 5)
    assert recommended(rows, MACS) == 3
    words = " ".join(explanation(rows, MACS))
    assert "Step 4 would leave 3.6% of the MACs, but is less accurate" in words
    assert "0.7780 against 0.8640 on 360 samples" in words
    assert "Step 3 is more accurate than the original" in words
    assert "had not finished learning" in words
    few = [row | {"samples": 20} for row in rows]  # which cannot tell these apart
    assert recommended(few, MACS) == 3
    assert "is not surely, but probably less accurate" in " ".join(explanation(few, MACS))


def test_steps_csv(report):
    rows = steps([0.975, 0.98, None], size_mb=[44.5, None, None], latency=[1.0, None, 0.5])
    _, (header, *table) = report(rows)
    assert header[:7] == HEADER
    assert set(header) == set(rows[0])
    for row, cells in zip(rows, table, strict=True):
        for column, cell in zip(header, cells, strict=True):
            value = row[column]
            assert (
                cell == ""
                if value is None
                else cell == value
                if isinstance(value, str)
                else float(cell) == value
            )
    _, again = report([*rows, steps([0.9] * 4)[3]])
    assert again[:4] == [header, *table]
    assert again[4][0] == "3"


@pytest.mark.charts
def test_page_is_self_contained_and_complete(report):
    page, _ = report(ROWS, target_class="crazing")
    assert "script" not in page.tags
    assert len(page.fetched) == 3  # the icon and two curves
    assert all(source.startswith("data:") for source in page.fetched)
    assert not re.search(r"https?://|url\(|@import", page.source)
    for text in (
        *(
            "NEU",
            "run 1123_101512",
            "Aim: 30.0% of the original's MACs",
            "Step 4, the newest: 30.0%",
            "Recommended: step 2",
        ),
        *("0.9700", "(-0.0050)", "recall of crazing", "64 → 48", "128 → 96"),
        "Step 3 would leave 40.0% of the MACs",
        "Step 2 made the network smaller but not faster: 60.0% of the original's MACs after 80.0%, "
        "79.7%",
    ):
        assert text in page.words.replace(" .", "."), text
    assert re.search(r"python export\.py -r \S+1123_101512\S{1,2}model_step2\.pth", page.words)
    assert page.words.count("smaller but not faster") == 1
    assert page.source.count("class=best") == 1
    assert [style for style in page.styles if style.startswith("width")] == [
        *("width: 75.0%", "width: 50.0%"),  # conv1: of 64 channels 48 in step 2, 32 in step 4
        *("width: 75.0%", "width: 50.0%"),
        *("width: 100.0%", "width: 100.0%"),
    ]
    for chart, share in zip(page.fetched[1:], ("MACs", "latency"), strict=True):
        svg = base64.b64decode(chart.partition(",")[2]).decode()
        assert f"% of the original's {share}" in svg.replace("&apos;", "'")
        assert ("aim" in re.findall(">([^<]+)</text>", svg)) == (share == "MACs")
        assert {"0", "1", "2", "3", "4", "recommended"} <= set(re.findall(">([^<]+)</text>", svg))


@pytest.mark.parametrize(
    ("aim", "text", "reached"),
    [
        (
            {"channel_sparsity": 0.4},
            "Aim: 40.0% of the original's channels gone",
            "29.2% of the original's channels gone",
        ),
        (
            {"params": 0.5},
            "Aim: 50.0% of the original's parameters",
            "60.0% of the original's parameters",
        ),
        (
            {"latency": 0.5},
            "Aim: 50.0% of the original's latency",
            "60.0% of the original's latency",
        ),
        ({"latency_ms": 2}, "Aim: a latency of 2.00 ms", "a latency of 3.60 ms"),
        (DROP, "Aim: accuracy 0.0100 below the original's", "accuracy 0.0150 above the original's"),
    ],
)
def test_page_names_aim_and_progress(report, aim, text, reached):
    page, _ = report(steps([0.97, 0.98, 0.985]), aim)
    assert text in page.words
    assert f"Step 2, the newest: {reached}" in page.words


def test_page_says_so_far_while_the_run_goes_on(report):
    assert "in 2 steps so far" in report(ROWS[:3], finished=False)[0].words
    assert "so far" not in report(ROWS[:3])[0].words


@pytest.mark.charts
def test_aim_in_milliseconds_is_drawn_at_its_share(report):
    """The same chart as for that share of the original's latency, 6 ms."""
    (page, _), (same, _), (without, _) = (
        report(ROWS, aim) for aim in ({"latency_ms": 3}, {"latency": 0.5}, {"params": 0.5})
    )
    assert page.fetched[1:] == same.fetched[1:] != without.fetched[1:]


def test_names_are_escaped(report):
    evil = "<script>alert('x')</script>"
    page, _ = report(ROWS, widths=[{evil: 8, '"><img src=x>': 4}] * 5, name=evil, target_class=evil)
    assert "script" not in page.tags
    assert all(source.startswith("data:") for source in page.fetched)
    assert page.words.count(evil) >= 3


@pytest.mark.parametrize(
    "aim",
    [
        *({key: 0.5} for key in ("channel_sparsity", "macs", "params", "latency", "latency_ms")),
        DROP,
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_missing_measurements(report, aim, count):
    nothing = dict.fromkeys(
        ("size_mb", "latency_ms", "latency", "torch_ms", "recall", "recall_before"), [None] * 2
    )
    rows = steps([None] * count, **nothing)
    page, table = report(rows, aim)
    assert len(page.fetched) == 1  # nothing to draw
    assert "None" not in page.words
    assert "nan" not in page.words
    assert [row[4:7] for row in table[1:]] == [["", "", ""]] * count
    assert "None" not in "".join(pruning_table(rows, aim))


def test_table_for_the_screen():
    header, *rest = pruning_table(ROWS, DROP)
    lines, (legend, *notes) = rest[: len(ROWS)], rest[len(ROWS) :]
    assert max(map(len, pruning_table(ROWS, DROP))) <= 80
    for name in ("step", "channels", "MACs", "params", "MB", "ms", "accuracy", "recall"):
        assert name in header.split()
    assert len(lines) == len(ROWS)
    assert [line.split()[0] for line in lines] == list("01234")
    assert [line.endswith("*") for line in lines] == [False, False, False, True, False]
    assert legend == "* recommended"
    for text in (
        "2,700",
        "40.0%",
        "16.00",
        "2.40",
        "50.0%",
        "0.9690",
    ):
        assert text in lines[3]
    assert pruning_table(ROWS, {"max_accuracy_drop": 0.001})[2].endswith("*")
    assert len({line.index("%") for line in lines}) == 1
    assert "Step 2 made the network smaller but not faster" in " ".join(notes)
    assert "Step 4 would leave 30.0% of the MACs" in " ".join(notes)
    assert "Step 2" not in "".join(pruning_table(steps([0.9] * 5), MACS))
    assert all(
        line.isascii() for line in pruning_table(steps([0.9, None], latency=[None, None]), MACS)
    )  # any console shows it


def test_table_of_a_large_network_fits_the_screen():
    rows = steps([0.97512, 0.9, 1.0], channels=[1_234_567] * 3, macs=[1.0, 0.5, 0.25])
    rows = [row | {"size_mb": 1234.5, "latency_ms": 1234.5, "macs": 10**12} for row in rows]
    assert max(map(len, pruning_table(rows, MACS))) <= 80


def test_step_without_a_cut_is_not_called_smaller():
    rows = steps([0.9, 0.9, 0.9], macs=(1.0, 0.5, 0.5), latency=[1.0, 0.5, 0.5])
    assert not_faster(rows) == []


def test_tensorboard_has_each_step(report, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorboardWriter(tmp_path / "log")
    writer.set_step(70, "valid")
    for rows in itertools.accumulate(ROWS, lambda done, row: [*done, row], initial=[]):
        for _ in range(
            2 if len(rows) == 3 else 1
        ):  # interrupted after the report, and reported again
            if rows:
                report(rows, writer=writer)
    assert (writer.step, writer.mode) == (70, "valid")
    writer.close()
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    for name in (
        "accuracy",
        "recall",
        "macs",
        "params",
        "channels",
        "size_mb",
        "latency",
        "latency_ms",
        "torch_ms",
    ):
        seen = {event.step: event.value for event in events.Scalars(f"pruning/{name}")}
        assert seen == {row["step"]: pytest.approx(row[name]) for row in ROWS}
    assert len(events.Tags()["scalars"]) == 9
