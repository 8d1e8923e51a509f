"""test.py under a launcher that starts several processes."""

from tests.utils.processes import run_processes


def test_only_one_process_tests(digits, train, capfd):
    import test as script

    run = train(digits())
    capfd.readouterr()
    assert run_processes(2, script.main, ["-r", str(run)]) == [0, 0]
    assert capfd.readouterr().out.count("accuracy") == 1
