"""Workers as processes of this machine: an executor of the standard library for each, so that one that dies ends no other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import wait as wait_for
from typing import TYPE_CHECKING, Any

from lora_mixer.batches.worker import Reply, Worker, WorkSpec
from lora_mixer.batches.worker_pool import Ready, WorkerGoneError, ready

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.connection import Connection

    from lora_mixer.batches.order import Task
    from lora_mixer.pictures import PictureRequest

_mine: list[Worker] = []
"""The worker of this process, where it is one's."""


def _prepare(wanted: Connection) -> None:
    """Live no longer than the parent holds the other end, which it does as long as it lives; leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        wait_for([wanted])
        for worker in _mine:
            worker.cache.discard()
        os._exit(1)  # nobody would read the answer

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _begin(spec: WorkSpec, requests: Sequence[PictureRequest]) -> Ready:
    _mine[:] = [Worker(spec)]
    return ready(_mine[0], requests)


def _work(task: Task | None, ahead: Sequence[str]) -> Reply:
    return _mine[0].work(task, ahead)


def _end() -> None:
    _mine[0].close()


def devices_for(device: str, workers: int | None, threads: int) -> list[str]:
    """
    Return each worker its device: every GPU one, or a share of the CPU's cores each.

    Example:
        >>> devices_for("cpu", 2, 1)
        ['cpu', 'cpu']
    """
    import torch

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 0
    if gpus:
        return [f"cuda:{i % gpus}" for i in range(workers or gpus)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [device] * (workers or max(1, cores // threads))


class Processes:
    """
    Workers in processes.

    Args:
        spec: What they have to know.
        requests: One of each shape.
        workers: How many; None is one per GPU, or as many as the cores allow.
    """

    def __init__(self, spec: WorkSpec, requests: Sequence[PictureRequest], workers: int | None) -> None:
        """Start no process yet."""
        self._spec, self._requests = spec, requests
        self._devices = devices_for(spec.device, workers, spec.run.threads)
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._lines: dict[int, Connection] = {}
        self._begun: dict[int, Future[Any]] = {}

    @property
    def count(self) -> int:
        """How many workers there are."""
        return len(self._devices)

    def launch(self, worker: int) -> Future[Any]:
        """Start a process; what is left of the one before is thrown away."""
        old = self._pools.pop(worker, None)
        if old is not None:
            self._lines.pop(worker).close()
            old.shutdown(wait=False, cancel_futures=True)
        context = multiprocessing.get_context("spawn")  # a fork would share the state of torch's threads
        end, self._lines[worker] = context.Pipe(duplex=False)
        pool = self._pools[worker] = ProcessPoolExecutor(
            1, mp_context=context, initializer=_prepare, initargs=(end,)
        )
        spec = replace(self._spec, device=self._devices[worker])
        self._begun[worker] = self._submit(pool, _begin, spec, self._requests)
        return self._begun[worker]

    def send(self, worker: int, task: Task | None, ahead: Sequence[str]) -> Future[Any]:
        """Hand a task over."""
        return self._submit(self._pools[worker], _work, task, tuple(ahead))

    def _submit(self, pool: ProcessPoolExecutor, call: Any, *arguments: Any) -> Future[Any]:
        try:
            return pool.submit(call, *arguments)
        except BrokenProcessPool as error:  # it died while it was idle
            gone: Future[Any] = Future()
            gone.set_exception(error)
            return gone

    def poll(self, handles: Sequence[Any], seconds: float) -> Iterable[Any]:
        """Wait for the first."""
        return wait(handles, seconds, FIRST_COMPLETED).done

    def result(self, handle: Any) -> Any:
        """Return the result."""
        try:
            return handle.result()
        except BrokenProcessPool as error:
            raise WorkerGoneError("its process ended without an answer (killed, or out of memory)") from error

    def close(self, *, at_once: bool = False) -> None:
        """End the processes: after what they are at, and at once those that are still loading."""
        for worker, pool in self._pools.items():
            if self._begun[worker].done() and not at_once:
                with contextlib.suppress(BrokenProcessPool, RuntimeError):
                    pool.submit(_end)
            else:
                self._lines[worker].close()
        for worker, pool in self._pools.items():
            pool.shutdown(wait=True, cancel_futures=False)
            self._lines[worker].close()
        self._pools.clear()
