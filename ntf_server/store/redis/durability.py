"""On how many servers a write has to be before it counts: WAIT and WAITAOF behind a pipeline, their answers checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.redis.call import packed
from ntf_server.store.redis.url import Endpoint


@dataclass(frozen=True)
class Durability:
    """`replicas` have to have it in memory; `disks` have to have it in their append-only file, synced: 1 is the
    primary's own, 2 that and one replica's. `timeout`: seconds that they may take.

    These are Redis's own means, and hold up to a failover to a replica that was not among them.
    """

    replicas: int = 0
    disks: int = 0
    timeout: float = 1.0

    def commands(self) -> list[bytes]:
        """What goes behind a pipeline that writes."""
        milliseconds = max(1, round(self.timeout * 1000))  # 0 would be for ever
        out = []
        if self.replicas:
            out.append(packed((b"WAIT", self.replicas, milliseconds)))
        if self.disks:
            out.append(packed((b"WAITAOF", 1, self.disks - 1, milliseconds)))
        return out

    def shortfall(self, answers: Sequence[Any], at: Endpoint) -> Exception | None:
        """What is missing, by the answers to `commands`."""
        for answer in answers:
            if isinstance(answer, Exception):
                return answer
        rest = list(answers)
        if self.replicas and (there := rest.pop(0)) < self.replicas:
            return self._too_few(at, f"{there} of {self.replicas} replicas have it")
        if self.disks:
            own, others = rest.pop(0)
            if own + others < self.disks or not own:
                return self._too_few(at, f"{own + others} of {self.disks} servers have it on disk")
        return None

    def _too_few(self, at: Endpoint, what: str) -> StoreUnavailableError:
        return StoreUnavailableError(f"{at}: it may be written, but only {what} after {self.timeout:g} s")
