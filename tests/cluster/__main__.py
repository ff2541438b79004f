"""The cluster test: `make cluster-test`, or `python -m tests.cluster --help`.

Exit status: 0 if every step passed, 1 if one failed, 3 where it cannot run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from tests.cluster.host import HostError
from tests.cluster.hosts import Hosts
from tests.cluster.requirements import missing
from tests.cluster.scenario import Scenario, StepFailed
from tests.cluster.steps import EXTRA, STEPS

WORKERS = 3


def parse() -> argparse.Namespace:
    """The flags of the command."""
    width = max(map(len, {**STEPS, **EXTRA}))
    lines = [f"  {step.name:<{width}}  {step.meaning}" for step in {**STEPS, **EXTRA}.values()]
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train on a cluster of hosts that are Linux network namespaces.",
        epilog="steps:\n" + "\n".join(lines),
    )
    names = [*STEPS, *EXTRA]
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help="do only these steps, in this order")
    parser.add_argument("--on", type=int, metavar="SITE", help="do them on hosts that --keep left running")
    parser.add_argument("--keep", action="store_true", help="leave the hosts running after the steps, until Ctrl-C")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds and figures of the steps to FILE")
    parser.add_argument("--patience", type=float, default=1.0, help="multiply all deadlines, for a busy machine")
    return parser.parse_args()


def main() -> int:
    """Run the command; returns its exit status."""
    args = parse()
    if reason := missing():
        print(f"cluster-test cannot run here: {reason}", file=sys.stderr)
        return 3
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with Hosts.attach(args.on) if args.on else Hosts(WORKERS) as hosts:
            passed = run(Scenario(hosts, args.patience), args.only or list(STEPS), args.json)
            if args.keep:
                keep(hosts)
    except HostError as error:
        print(f"cluster-test: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        left = "the hosts run on" if args.on else "nothing is left"
        print(f"\ncluster-test: stopped; {left}", file=sys.stderr)
        return 130
    return 0 if passed else 1


def run(scenario: Scenario, names: list[str], file: Path | None) -> bool:
    """Do the steps called ``names`` up to the first that fails; returns whether all passed."""
    done: list[dict[str, object]] = []
    failure = None
    for step in ({**STEPS, **EXTRA}[name] for name in names):
        print(f"{time.strftime('%H:%M:%S')} {step.name}: {step.meaning}", flush=True)
        try:
            done.append(scenario.do(step))
        except (StepFailed, AssertionError) as error:
            failure = f"{step.name} failed: {error}"
            print(f"\n{scenario.evidence()}\n\n{failure}", flush=True)
            break
        print(f"         {done[-1]['seconds']} s {done[-1]['figures'] or ''}", flush=True)
    width = max(map(len, names))
    print(f"\n{'step':<{width}} seconds  deadline")
    for row in done:
        print(f"{row['step']:<{width}} {row['seconds']:>7}  {row['deadline']:>8}")
    if file is not None:
        result = {"passed": failure is None, "failure": failure, "load": os.getloadavg(), "steps": done}
        file.write_text(json.dumps(result, indent=1) + "\n")
    return failure is None


def keep(hosts: Hosts) -> None:
    """Print how to enter the hosts, and wait for Ctrl-C."""
    print(f"\nthe hosts run until Ctrl-C; more steps: python -m tests.cluster --on {hosts.site_pid} --only STEP")
    for host in hosts.all:
        how = shlex.join(host.enter("exec bash -i")) if host.is_up else "is down"
        print(f"  {host.name:<9} {host.address}  {how}")
    signal.pause()


if __name__ == "__main__":
    sys.exit(main())
