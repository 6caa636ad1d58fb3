"""Runs that are made two at a time, stored one by one, and never made twice.

A run has a name, GROUP/SEED, and a function that makes it and returns what was measured. Its numbers are in the file as
soon as it is done, so that an experiment that is killed goes on with what is missing.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.timing import hardware, tell, versions, write_json
from dvae_lib import TrainingConfig

RESULTS = Path(__file__).resolve().parent / "results"
CPU = torch.device("cpu")

Measure = Callable[[str], Mapping[str, Any]]


def described(config: TrainingConfig) -> dict[str, Any]:
    """Say what a run's configuration is, without the entries that are None: what was made before an entry was there,
    and makes no use of it, stays what it is."""
    return {name: value for name, value in asdict(config).items() if value is not None}


def machine() -> dict[str, Any]:
    """Say on what a run was made; all runs have one thread."""
    return {"hardware": {**hardware(CPU), "threads": 1}, "versions": versions()}


def stored(path: Path) -> dict[str, Any]:
    """Return what the file at `path` holds: settings, machines, and the runs by name."""
    return json.loads(path.read_text()) if path.exists() else {"settings": {}, "machines": [], "runs": {}}


def put(path: Path, settings: Mapping[str, Any], name: str, numbers: Mapping[str, Any]) -> None:
    """Add a run to the file at `path`, atomically.

    Raises:
        ValueError: a setting differs from that of the runs that are there; one that they do not have may come.
    """
    content = stored(path)
    refuse_others(path, content, settings)
    here = json.loads(json.dumps(machine()))
    if here not in content["machines"]:
        content["machines"].append(here)
    content["settings"] |= settings
    content["runs"][name] = {"machine": content["machines"].index(here), **numbers}
    content["runs"] = dict(sorted(content["runs"].items(), key=lambda item: group_and_seed(item[0])))
    write_json(path, content)


def refuse_others(path: Path, content: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ValueError if the file at `path`, with this content, holds runs of other settings."""
    for key, value in json.loads(json.dumps(settings)).items():  # as the file has them
        if content["settings"].get(key, value) != value:
            raise ValueError(f"{path.name} holds runs of other settings: {key} is {content['settings'][key]} there")


def group_and_seed(name: str) -> tuple[str, int]:
    """Return the two parts of a run's name."""
    group, seed = name.rsplit("/", 1)
    return group, int(seed)


def make(path: Path, settings: Mapping[str, Any], names: Sequence[str], measure: Measure, processes: int = 2) -> None:
    """Make the runs of these names that the file at `path` lacks, in this order, `processes` at a time.

    Raises:
        ValueError: as `put`, before anything is run.
        Exception: what the first run that failed raised, once the others are stored.
    """
    content = stored(path)
    refuse_others(path, content, settings)
    failures: list[BaseException] = []
    missing = [name for name in names if name not in content["runs"]]
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(processes, context, initializer=_prepare) as pool,
        tqdm(total=len(names), initial=len(names) - len(missing), unit=" runs", desc=path.stem) as bar,
    ):
        waiting = {pool.submit(_timed, measure, name): name for name in missing}
        try:
            for future in concurrent.futures.as_completed(waiting):
                if error := future.exception():
                    failures.append(error)
                else:
                    put(path, settings, waiting[future], future.result())
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise failures[0]


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # `train` would end early, and what it left would be measured
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"  # one bar is enough


def _timed(measure: Measure, name: str) -> dict[str, Any]:
    start = time.perf_counter()
    numbers = measure(name)
    return {"seconds": round(time.perf_counter() - start, 1), **numbers}


def command_line(
    description: str,
    path: Path,
    settings: Mapping[str, Any],
    names: Sequence[str],
    measure: Measure,
    minutes: float,
    others: Mapping[str, float] | None = None,
) -> None:
    """Say how long it takes, with `minutes` for a run, for one of the groups in `others` as many as that says, and make
    what is missing.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, each with one thread")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="groups of runs")
    parser.add_argument("--estimate", action="store_true", help="only say how long it takes")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - {group_and_seed(name)[0] for name in names}:
        parser.error(f"no groups {', '.join(sorted(unknown))}")
    chosen = [name for name in names if not options.only or group_and_seed(name)[0] in options.only]
    missing = set(chosen) - stored(path)["runs"].keys()
    hours = sum((others or {}).get(group_and_seed(name)[0], minutes) for name in missing) / 60 / options.processes
    tell(f"{path.stem}: {len(missing)} of {len(chosen)} runs are missing, about {hours:.1f} hours")
    if not options.estimate:
        make(path, settings, chosen, measure, options.processes)
