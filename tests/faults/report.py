"""The table of what was tried, and the faults."""

import re
from collections import Counter

from tests.faults.schedule import KINDS, Plan, Result


def show(results: list[Result], plan: Plan) -> int:
    """Print the table and the faults; returns the exit code, 1 if there are faults."""
    print(f"\n{'':10} {'trials':>7} {'faults':>7} {'s each':>7}  what was tried")
    for kind in plan.only:
        own = [result for result in results if result.kind == kind]
        if not own:
            continue
        counts = sum((Counter(result.counts) for result in own), Counter())
        tried = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
        seconds = sum(result.seconds for result in own) / len(own)
        faults = sum(result.fault is not None for result in own)
        print(f"{kind:10} {len(own):7,} {faults:7,} {seconds:7.2f}  {KINDS[kind].title}: {tried}")
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.fault is not None:
            alike = re.sub(r"\d+|'[^']*'|\"[^\"]*\"|\S*/\S*", "#", result.fault)[:160]
            groups.setdefault((result.kind, alike), []).append(result)
    for (kind, _), alike in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = alike[0]
        print(f"\n{kind}: {len(alike)} times: {first.fault}")
        print(f"  python -m tests.faults --seed {plan.seed} --only {kind} --trial {first.number}")
    return 1 if groups else 0
