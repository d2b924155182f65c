"""The processes of one run, as torchrun starts them, and what they say to each other.

Plain torch.distributed: tensors and texts only, nothing that is executed where it arrives. One process alone talks to
nobody and does no arithmetic for it, so that its results are those of a run that knows of no others.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from handloop.core.errors import InputError, RankError
from handloop.loop.shards import rank_of

PATIENCE_S = 1800.0
"""A rank that says nothing for so long is taken for lost; the longest silence is while one learns a prior for all. A
process that dies is noticed at once."""
_PIECE = 2**24
"""Bytes of a file sent at a time."""


class Ranks:
    """This process among those of its run. What talks is called by all of them, in the same order."""

    def __init__(self, rank: int = 0, n: int = 1, local_rank: int = 0) -> None:
        """Use `alone` or `from_environment`."""
        self.rank = rank
        """Of 0 to n - 1; rank 0 writes the run's files."""
        self.n = n
        """Processes of the run."""
        self.local_rank = local_rank
        """Among those of this machine."""

    @classmethod
    def alone(cls) -> Ranks:
        """One process, which needs no others."""
        return cls()

    @classmethod
    def from_environment(cls, patience_s: float = PATIENCE_S) -> Ranks:
        """What torchrun says (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); one process without it.

        Tensors in memory go by gloo, those on a GPU by NCCL.

        Args:
            patience_s: how long a silent rank is waited for.

        Raises:
            RankError: the others cannot be reached.
        """
        n = int(os.environ.get("WORLD_SIZE", "1"))
        if n == 1 or "RANK" not in os.environ:
            return cls.alone()
        ranks = cls(int(os.environ["RANK"]), n, int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with ranks._talking():
            dist.init_process_group(backend, timeout=timedelta(seconds=patience_s), rank=ranks.rank, world_size=n)
        return ranks

    def close(self) -> None:
        """Say good-bye."""
        if self.n > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def share(self, count: int) -> int:
        """This rank's part of a number of things."""
        return count // self.n + (self.rank < count % self.n)

    def own(self, ids: Sequence[str]) -> Tensor:
        """(N,) bool, samples that belong to this rank."""
        return torch.tensor([self.n == 1 or rank_of(name, self.n) == self.rank for name in ids], dtype=torch.bool)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes the run's files."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        self.total([0.0])

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks."""
        if self.n == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with self._talking():
            dist.all_reduce(sums)
        return [float(value) for value in sums]

    def add_gradients(self, weights: Iterable[nn.Parameter], value: Tensor) -> Tensor:
        """Replace every gradient by its sum over the ranks, in one message; returns the sum of `value` ().

        The sums are the same bits on every rank. A weight without a gradient counts as one of zeros.
        """
        if self.n == 1:
            return value.detach()
        trained = list(weights)
        for weight in trained:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        total = value.detach().clone()
        self.add_up([*(weight.grad for weight in trained if weight.grad is not None), total])
        return total

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their sums over the ranks, in one message and the same bits on every rank."""
        if self.n == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._talking():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def texts(self, text: str) -> list[str]:
        """Every rank's text, in their order."""
        return [data.decode() for data in self._gathered(text.encode())]

    def agree(self, what: str, text: str, why: str) -> None:
        """Stop all ranks where their texts differ.

        Args:
            what: is compared, in words.
            text: this rank's.
            why: what to do about a difference.

        Raises:
            InputError: on every rank.
        """
        texts = self.texts(text)
        other = next((rank for rank, found in enumerate(texts) if found != texts[0]), None)
        if other is not None:
            raise InputError(f"rank {other} of {self.n} has another {what} than rank 0; {why}.")

    def joined(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows of all ranks behind each other, by name."""
        if self.n == 1:
            return dict(tensors)
        parts = [_unpacked(data) for data in self._gathered(_packed(tensors))]
        return {name: torch.cat([part[name] for part in parts]) for name in tensors}

    def from_first(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What rank 0 gives, which may hold tensors, numbers, texts, lists and tables of these."""
        if self.n == 1:
            return dict(state)
        data = _packed(state) if self.first else b""
        length = torch.tensor([len(data)])
        with self._talking():
            dist.broadcast(length, 0)
            there = _tensor(data) if self.first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(there, 0)
        return _unpacked(there.numpy().tobytes())

    def send(self, path: Path, to: int) -> None:
        """A file to another rank, which calls `receive`."""
        with self._talking(), open(path, "rb") as file:
            dist.send(torch.tensor([path.stat().st_size]), to)
            while data := file.read(_PIECE):
                dist.send(_tensor(data), to)

    def receive(self, path: Path, source: int) -> None:
        """A file from another rank; it is there as a whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        left = torch.empty(1, dtype=torch.int64)
        with self._talking(), open(partial, "wb") as file:
            dist.recv(left, source)
            size = int(left)
            while size > 0:
                piece = torch.empty(min(size, _PIECE), dtype=torch.uint8)
                dist.recv(piece, source)
                file.write(piece.numpy().tobytes())
                size -= len(piece)
        os.replace(partial, path)

    def _gathered(self, data: bytes) -> list[bytes]:
        if self.n == 1:
            return [data]
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self.n)]
        with self._talking():
            dist.all_gather(lengths, torch.tensor([len(data)]))
            longest = max(int(length) for length in lengths)
            padded = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.n)]
            dist.all_gather(padded, _tensor(data + bytes(longest - len(data))))
        return [each.numpy().tobytes()[: int(length)] for each, length in zip(padded, lengths, strict=True)]

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """torch's errors in words.

        Raises:
            RankError: a rank does not answer.
        """
        try:
            yield
        except RuntimeError as error:  # gloo's are plain ones.
            # Left for the interpreter's end, the connections' own threads sometimes abort the process.
            with suppress(RuntimeError):
                self.close()
            raise RankError(
                f"rank {self.rank} of {self.n} has lost the others: one of them has stopped or cannot be reached, see "
                "what it said last; start all of them again with --resume to go on from the last checkpoint."
            ) from error


def _packed(state: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    torch.save(dict(state), out)
    return out.getvalue()


def _unpacked(data: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def refuse_several(command: str) -> None:
    """Refuse to be one of several processes.

    Args:
        command: what cannot be shared out.

    Raises:
        InputError: torchrun started more than one.
    """
    n = os.environ.get("WORLD_SIZE", "1")
    if n != "1" and "RANK" in os.environ:
        raise InputError(f"{command} works as one process, torchrun has started {n}; start it without torchrun.")
