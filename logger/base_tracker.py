"""Other places where runs are recorded, beside info.log, metrics.csv and TensorBoard."""

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from utils import run_folder

Values = dict[str, float]


class BaseTracker(ABC):
    """Another place where a run is recorded: write `begin` and `log`.

    A method may raise anything: the run continues without this tracker, with one warning. Only a
    run's main process has trackers.
    """

    @abstractmethod
    def begin(self, run: Path, config: dict, parent: Path | None) -> None:
        """A run begins or continues in the folder `run`; `parent` is the folder of the run whose
        weights it starts from.
        """

    @abstractmethod
    def log(self, values: Values, step: int) -> None:
        """What an epoch measured, and its number as "epoch"; `step` counts the batches trained."""

    def end(self, state: str) -> None:
        """The run is "finished" or "stopped"."""

    def result(self, run: Path, name: str, values: Values, files: list[Path]) -> None:
        """A script has used the network of `run`: its name, what it measured and wrote. Called
        without `begin`.
        """


def tell(trackers: list[BaseTracker], method: str, *values: object) -> None:
    """Call this method of each tracker with these values; one that fails is removed from the list,
    with a warning.
    """
    for tracker in _watching:
        getattr(tracker, method)(*values)
    for tracker in [*trackers]:
        try:
            getattr(tracker, method)(*values)
        except Exception as error:  # whatever a server or its library does
            trackers.remove(tracker)
            name, reason = type(tracker).__name__, str(error).partition("\n")[0]
            text = f"trackers: {name} failed, and is not used any more: {reason[:200]}"
            logging.getLogger("trainer").warning(text)


def tell_trackers(
    trackers: dict[str, BaseTracker] | None,
    used: Path,
    name: str,
    values: Values,
    files: list[Path],
) -> None:
    """Tell the trackers of a run what a script found.

    Args:
        trackers: by name; None if there are none
        used: the run's checkpoint or file
        name: of what was done, "test"
        values: what was measured
        files: what was written
    """
    tell([*(trackers or {}).values()], "result", run_folder.run_of(used), name, values, files)


_watching: list[BaseTracker] = []


@contextlib.contextmanager
def watching(tracker: BaseTracker) -> Iterator[None]:
    """Runs of this process report to `tracker`, too. What it raises ends them."""
    _watching.append(tracker)
    try:
        yield
    finally:
        _watching.remove(tracker)
