"""A fault to be put into a copy of the code: a text that a file has exactly once, and what stands there instead."""

from dataclasses import dataclass

from sim.scenario import Store


@dataclass(frozen=True)
class Mutant:
    """`file`: from the project's root; `what`: the promise that it breaks."""

    name: str
    what: str
    file: str
    old: str
    new: str

    @property
    def store(self) -> Store:
        """In whose worlds it is looked for."""
        if self.file.startswith("ntf_server/store/redis/") or self.file.endswith("/shares.py"):
            return Store.REDIS
        return Store.SQLITE
