"""Shards handed out to workers by Ray Data, on this machine or a cluster."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence

from handloop.bulk.plan import Shard
from handloop.bulk.worker import TRIES, Outcome, ShardWorker, WorkOrder
from handloop.core.errors import InputError

_STORE_BYTES = 200_000_000
"""Ray's shared memory on this machine: only names and outcomes of shards pass through it."""


def run_shards(
    shards: Sequence[Shard], order: WorkOrder, workers: int | None, address: str | None
) -> Iterator[Outcome]:
    """Fit all shards; the outcome of each as it is done or given up.

    Args:
        shards: what to fit.
        order: what the workers have in common.
        workers: processes; None for one per CPU.
        address: the cluster's, as `ray start` gave it; None for what RAY_ADDRESS names, or this machine.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or a machine cannot take part.
    """
    require_ray()
    import ray

    mine = not ray.is_initialized()
    if mine:
        _connect(workers, address)
    try:
        size = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting = {shard.key: shard for shard in shards}
        for _ in range(TRIES):
            errors: dict[str, str] = {}
            for outcome in _one_round(list(waiting.values()), order, size):
                if outcome.stop:
                    raise InputError(outcome.error)
                if outcome.final:
                    del waiting[outcome.key]
                    yield outcome
                else:
                    errors[outcome.key] = outcome.error
            if not waiting:
                return
        for key in waiting:
            yield Outcome(key, errors.get(key, "Ray lost it again and again."), True, False)
    finally:
        if mine:
            ray.shutdown()


def require_ray() -> None:
    """Raise InputError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray; install it with: pip install 'ray[data]'.")


def _connect(workers: int | None, address: str | None) -> None:
    import ray

    # Nothing is reported to anybody, and what goes wrong is told by outcomes, not by Ray's own lines.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    where = address or os.environ.get("RAY_ADDRESS")
    for last in (False, True):
        try:
            if where:
                ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(
                    address="local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            return
        except Exception as error:  # Ray raises many kinds, also Exception itself.
            ray.shutdown()
            reason = str(error).partition("\n")[0]
            # Ray gives its own processes half a minute to start, which a busy machine may miss.
            if last or where:
                raise InputError(
                    f"Ray cannot be started or reached at {where or 'this machine'} ({reason})."
                ) from error


def _one_round(shards: Sequence[Shard], order: WorkOrder, workers: int) -> Iterator[Outcome]:
    """Try each shard once, or as often as workers die under it; shards that Ray lost have no outcome."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # What Ray cannot bring to an end is tried again in the next round; the others must not end with it.
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    rows = ray.data.from_items([{"shard": shard.to_json()} for shard in shards], override_num_blocks=len(shards))
    done = rows.map(
        ShardWorker,
        fn_constructor_args=(order,),
        num_cpus=1,
        # One shard at a time, so that none waits behind one that kills its worker.
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1),
    )
    for row in done.iter_rows():
        yield Outcome(str(row["key"]), str(row["error"]), bool(row["final"]), bool(row["stop"]))
