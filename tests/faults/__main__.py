"""python -m tests.faults [--minutes N] [--only KIND ...] [--seed N] [--trial N] [--trials N]

Tries at random what may happen to a run: kill -9, signals, damaged and hostile files, odd configs
and command lines, a full disk, ... Prints what was tried and what went wrong; each fault with a
command that repeats its trial.
"""

import argparse
import gc
import sys
import tempfile
from pathlib import Path

from tests.faults import server
from tests.faults.report import show
from tests.faults.schedule import KINDS, Plan, carry_out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--minutes", type=float, default=10, metavar="N", help="shared among the kinds (10)")
    add("--only", nargs="+", choices=[*KINDS], default=[*KINDS], metavar="KIND",
        help=f"some of {', '.join(KINDS)}")  # fmt: skip
    add("--seed", type=int, default=1, metavar="N", help="of all that is chosen by chance (1)")
    add("--trials", type=int, metavar="N", help="at most so many of each kind")
    add("--trial", type=int, metavar="N", help="this one alone; its folder is kept")
    add("--jobs", type=int, default=1, metavar="N", help="processes that try (1)")
    add("--folder", type=Path, help="where the trials take place (default: a temporary folder)")
    arguments = parser.parse_args(argv)
    server.preload()
    gc.collect()
    gc.freeze()  # else each fork's collector copies every page that it looks at
    plan = Plan(**{name: getattr(arguments, name) for name in Plan._fields})
    if arguments.folder or arguments.trial is not None:
        folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kata-faults-"))
        print(f"in {folder}")
        return show(carry_out(plan, folder), plan)
    with tempfile.TemporaryDirectory(prefix="kata-faults-") as temporary:
        return show(carry_out(plan, Path(temporary)), plan)


if __name__ == "__main__":
    sys.exit(main())
