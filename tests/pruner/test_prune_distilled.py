"""Distillation while pruning: the network before the first cut teaches those after it."""

import json

import prune as prune_script
from tests.conftest import last_checkpoint, runs


def test_original_network_teaches_the_pruned_ones(digits, train, tmp_path):
    run = train(digits())
    task = {"type": "DistillationTask", "args": {"teacher": "original", "weight": 0.7}}
    pruner = {"type": "MagnitudePruner", "args": {"iterative_steps": 2, "channel_sparsity": 0.5}}
    config = digits({"task": task, "pruner": pruner, "trainer.epochs": 1}, name="Pruned")
    file = tmp_path / "prune.json"
    file.write_text(json.dumps(config))
    assert prune_script.main(["-c", str(file), "-r", str(run)]) == 0
    [pruned] = [folder for folder in runs(tmp_path) if folder.parent.name == "Pruned"]
    log = (tmp_path / "saved" / "log" / "Pruned" / pruned.name / "metrics.csv").read_text()
    assert "distillation" in log
    assert (pruned / "prune" / "step0.pth").exists()
    assert last_checkpoint(pruned)["kept"] == {"parts": {}, "values": {}}
