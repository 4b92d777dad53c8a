"""The ranks of a training as workers of Ray Train, on one node or several, seen from a supervisor as one trainer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.machine import machine
from harness.watchdog import LONGEST, STALL

STARTS = 100
"""Times that Ray Train may try to start the ranks, waiting a minute each for what they need of the cluster."""

LEAVING = 10.0
"""Seconds that Ray Train may take to end the ranks; the process that drives it is killed then."""


class RankFailed(Exception):
    """A rank has ended otherwise than all ranks together: Ray Train is to end the others."""


class Line:
    """An actor between the ranks and their supervisor: what rank 0 says, and whether all are to save and leave.

    It ends with the process of the trial that made it, and the ranks with it.
    """

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.stop = asyncio.Event()

    async def put(self, message: dict[str, Any]) -> None:
        """Take a message of rank 0."""
        self.messages.put_nowait(message)

    async def get(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message, None after a timeout."""
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.messages.get(), timeout)
        return None

    async def ask_to_stop(self) -> None:
        """Have all ranks save and leave."""
        self.stop.set()

    async def stopped(self) -> None:
        """Return when the ranks are to save and leave."""
        await self.stop.wait()


class RayGroup:
    """Looks like a trainer; every order is run by workers of Ray Train, as many as the order is for.

    What is no training is run by one worker, with the resources of a rank.
    """

    def __init__(self, device: str, world: int, cpus: int) -> None:
        self.device, self.world, self.cpus = device, world, cpus
        self.host = machine()[0]
        self.alive = True
        """Whether another order can be given."""
        self.order: Mapping[str, Any] = {}
        self.line: Any = None
        self.run: Any = None
        """The task that drives Ray Train for the order at hand; None between two orders."""
        self.joined = False
        """Whether the ranks have been given what they need of the cluster."""
        self.end: dict[str, Any] | None = None
        """How rank 0 ended the order at hand."""
        self.ready = False

    @property
    def pids(self) -> list[int]:
        """Return no process numbers: where the ranks run is Ray's to say."""
        return []

    @property
    def ranks(self) -> int:
        """Return how many ranks run the order at hand."""
        return self.world if self.order["kind"] == "train" else 1

    def send(self, message: Mapping[str, Any]) -> None:
        """Send an order, or {"stop": true}; ranks that are not there yet are not waited for then."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if "stop" not in message:
            self.order, self.end, self.joined = message, None, False
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self.line = ray.remote(num_cpus=0)(Line).options(scheduling_strategy=here).remote()  # else on any node
            # outside of the trial's placement group: who frees the ranks' own would end with that, and leave it taken
            drive = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT")(_drive)
            self.run = drive.remote(dict(message), self.line, self.ranks, self.cpus)
        elif self.joined:
            self.line.ask_to_stop.remote()
        elif self.run is not None:
            self._cancel()
            self.end = {"outcome": "stopped", "message": "asked to stop before its ranks were started"}

    def hear(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message, None after a timeout; while the ranks are waited for, that it waits."""
        import ray

        if not self.ready:
            self.ready = True
            return {"at": "ready"}
        if self.run is None:
            return self._ended() if self.end is not None else None
        over = ray.wait([self.run], timeout=0)[0]
        try:
            message: dict[str, Any] | None = ray.get(self.line.get.remote(timeout))
        except ray.exceptions.RayError as error:  # without it the ranks end too
            self.kill()
            return {"at": "died", "message": f"nothing is heard of the ranks any more: {_in_line(error)}"}
        if message is None:
            if over:
                return self._ended()
            return None if self.joined else {"at": "waiting"}
        if not self.joined:
            self.joined = True
            return {"at": "waiting"}  # until now
        if message["at"] == "end":
            self.end = message
            return None
        return message

    def dump(self) -> None:
        """Do nothing: no signal reaches the ranks; `ray stack` shows where those of a node are."""

    def kill(self) -> None:
        """End the ranks; another group is to be made for the next order."""
        self.alive = False
        if self.run is not None:
            self._cancel()

    def _cancel(self) -> None:
        """End the task that drives Ray Train: its controller and the ranks end with it."""
        import ray

        ray.cancel(self.run)  # an interrupt: Ray Train ends the ranks, and frees what they were given
        if not ray.wait([self.run], timeout=LEAVING)[0]:
            ray.cancel(self.run, force=True)
        ray.kill(self.line)
        self.run = None

    def _ended(self) -> dict[str, Any]:
        """Return how the order ended: as rank 0 says where all agree, else for the first cause."""
        import ray

        said, self.end = self.end, None
        if self.run is not None:
            try:
                seen = ray.get(self.run)
                said = said if said and said["outcome"] == "made" else seen or said  # made: all had met at its end
            except ray.exceptions.RayError as error:
                said = said or {"outcome": "died", "message": _in_line(error)}
            ray.kill(self.line)
        self.run = None
        return {"outcome": "died", "message": "the ranks ended without a word", **(said or {}), "at": "end"}


def _drive(order: dict[str, Any], line: Any, world: int, cpus: int) -> dict[str, Any] | None:
    """Run an order by workers of Ray Train; return how it failed, None where its ranks agree how it ended."""
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    from harness.train.ranks import first_cause

    gpu = order["device"] == "cuda"
    once: dict[str, Any] = {"max_failures": 0, "max_preemption_failures": 0, "controller_failure_limit": STARTS}
    each = rank_resources(cpus, gpu)
    with tempfile.TemporaryDirectory(prefix="ray-train-") as folder:
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"order": order, "line": line},
            torch_config=TorchConfig("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=int(LONGEST * STALL)),
            scaling_config=train.ScalingConfig(num_workers=world, use_gpu=gpu, resources_per_worker=each),
            run_config=train.RunConfig(storage_path=folder, failure_config=train.FailureConfig(**once)),
        )
        try:
            trainer.fit()
        except train.WorkerGroupError as error:
            fallen = {rank: {"message": _in_line(cause)} for rank, cause in error.worker_failures.items()}
            return first_cause(Path(order["attempt"]), world, fallen) if world > 1 else None
        except train.ControllerError as error:
            message = f"Ray Train could not run {world} ranks: {_in_line(error.controller_failure)}"
            return {"outcome": "trouble", "message": message}
    return None


def _in_line(error: Exception) -> str:
    """Return what Ray says of an error, in one line."""
    return " ".join(str(error).split())[:400]


def rank_resources(cpus: int, gpu: bool) -> dict[str, float]:
    """Return what every rank of a group is given."""
    return {"CPU": float(cpus), **({"GPU": 1.0} if gpu else {})}


def _rank(config: Mapping[str, Any]) -> None:
    """Run an order as the rank that this worker of Ray Train is."""
    import ray

    order, line = config["order"], config["line"]
    if order["device"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from harness.train.process import prepare_process
    from harness.train.ranks import AGREED, run_rank
    from harness.train.watch import Desk

    desk = Desk(lambda message: ray.get(line.put.remote(message)))

    def heed() -> None:
        try:
            ray.get(line.stopped.remote())
        except ray.exceptions.RayError:
            os._exit(1)  # the supervisor is gone: what is made here could not be published
        desk.stop.set()

    threading.Thread(target=heed, daemon=True).start()
    prepare_process()
    first = ray.train.get_context().get_world_rank() == 0
    if first:
        desk.tell(at="joined")
    end = run_rank(order, desk)
    if first:
        desk.tell(at="end", **end)
    if end["outcome"] not in AGREED:
        raise RankFailed(end["message"])
