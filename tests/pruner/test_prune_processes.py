"""Several processes prune as one does."""

import csv
import json

from tests.conftest import last_checkpoint, runs
from tests.utils.processes import NETWORKS, assert_near, run_processes


def test_two_processes_prune_as_one(digits, own_code, train, tmp_path, capfd):
    import prune as script

    own_code("networks", NETWORKS)
    arch = {"type": "networks.plain", "args": {"width": 16}}
    changes = {"arch": arch, "trainer.epochs": 3, "data_loader.args.batch_size": 64}
    trained = train(digits(changes))
    pruner = {
        "iterative_steps": 2,
        "target": {"macs": 0.5},
        "round_to": 1,
        "importance": "TaylorImportance",
    }
    changes |= {"trainer.epochs": 1, "trainer.last_epochs": 2}
    config = digits(changes, pruner={"type": "MagnitudePruner", "args": pruner})
    (tmp_path / "prune.json").write_text(json.dumps(config))
    command_line = ["-c", str(tmp_path / "prune.json"), "-r", str(trained)]
    pruned = []
    for count in (1, 2):
        before = set(runs(tmp_path))
        assert run_processes(count, script.main, command_line) == [0] * count
        pruned += set(runs(tmp_path)) - before
    assert_near(*pruned)
    one, two = (last_checkpoint(run) for run in pruned)
    assert one["structure"] == two["structure"]
    tables = []
    for run in pruned:
        with open(run / "prune" / "steps.csv", encoding="utf-8-sig", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    for row, other in zip(*tables, strict=True):
        # of all validation samples, not of one process's share
        for column in ("macs", "accuracy_before", "accuracy"):
            assert row[column] == other[column]
    assert (pruned[1] / "prune" / "report.html").exists()
    impossible = [*command_line, "-s", "pruner.args.target.macs=0.0001"]
    # the main process finds the error, all end with it
    assert run_processes(2, script.main, impossible) == [2, 2]
    assert "Traceback" not in capfd.readouterr().err
