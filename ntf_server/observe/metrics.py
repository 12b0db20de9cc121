"""What is counted, and where gauges are read; to be used in the event loop's thread only.

To count is to add to an entry of a dictionary: pushes pass here by the thousand. How it is shown is `exposition`'s.
"""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from ntf_server.observe.names import (
    PARTS,
    Counter,
    Gauge,
    Histogram,
    Info,
    KindCounter,
    KindGauge,
    Metric,
    PairCounter,
    PairGauge,
    ServerCounter,
    ServerGauge,
    ServerMetric,
)
from smp_bridge.address import ServerAddress

MAX_HOSTS: Final = 1000  # own hosts with a label: whoever subscribes may invent names in a domain that has a wildcard

ReadGauge: TypeAlias = Callable[[], float]
ReadKindGauge: TypeAlias = Callable[[], Mapping[str, float]]  # kinds that are not there are not shown
ReadPairGauge: TypeAlias = Callable[[], Mapping[tuple[str, str], float]]  # likewise
ReadServerGauge: TypeAlias = Callable[[], Iterable[tuple[ServerAddress, float]]]
FamilyKind: TypeAlias = Literal["counter", "gauge"]


class Distribution:
    """How many values were observed up to each of the bounds, and beyond the last; and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """It was observed."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Family(NamedTuple):
    """A metric as it is now. Of its `labels` the names; `samples`: of the labels' values, and the value."""

    name: str
    help: str
    kind: FamilyKind
    labels: tuple[str, ...]
    samples: Sequence[tuple[tuple[str, ...], float]]


class HistogramFamily(NamedTuple):
    """The same of a histogram."""

    name: str
    help: str
    labels: tuple[str, ...]
    samples: Sequence[tuple[tuple[str, ...], Distribution]]


class Metrics:
    """What is counted, and where gauges are read.

    `own_server_domains`: host names of own SMP servers, or domains with all hosts below. A server is known by its
    first host. Hosts of strangers' servers never become labels, so that memory stays bounded.
    """

    def __init__(self, own_server_domains: Sequence[str] = ()) -> None:
        domains = [d for d in (d.lower().lstrip(".") for d in own_server_domains) if d]
        self._own = frozenset(domains)
        self._own_suffixes = tuple(f".{d}" for d in domains)
        self._hosts: set[str] = set()
        self._counts: Tally[tuple[Metric, str] | tuple[Metric, str, str]] = Tally()
        self._distributions = {(h, kind): Distribution(h.buckets) for h in Histogram for kind in h.kinds or ("",)}
        self._gauges: dict[Gauge, ReadGauge] = {}
        self._kind_gauges: dict[KindGauge, ReadKindGauge] = {}
        self._pair_gauges: dict[PairGauge, ReadPairGauge] = {}
        self._server_gauges: dict[ServerGauge, ReadServerGauge] = {}
        self._infos: dict[Info, Mapping[str, str]] = {}

    def is_own(self, server: ServerAddress) -> bool:
        """Whether the server's host is in one of the own domains."""
        host = server.hosts[0].lower()
        return host in self._own or host.endswith(self._own_suffixes)

    def count(self, name: Counter, n: int = 1) -> None:
        """Add to a plain counter."""
        self._counts[name, ""] += n

    def count_kind(self, name: KindCounter, kind: str, n: int = 1) -> None:
        """Add to the count of a kind. Raises ValueError if it is none of the counter's."""
        self._counts[name, _checked(name, kind)] += n

    def count_pair(self, name: PairCounter, kind: str, second: str, n: int = 1) -> None:
        """Add to the count of a kind and a second one. Raises ValueError if it is none of the counter's."""
        if second not in name.seconds:
            raise ValueError(f"{name} has no {name.second_label} {second!r}")
        self._counts[name, _checked(name, kind), second] += n

    def observe(self, name: Histogram, seconds: float, kind: str = "") -> None:
        """It took so long. Raises KeyError if there is no such kind."""
        self._distributions[name, kind].add(seconds)

    def count_part(self, name: str) -> None:
        """Add to the failures of a part of the relay: `push AP 1` counts as push."""
        label = name.lower().replace(" ", "_")
        if label not in PARTS:
            label = "push" if label.startswith("push_") else "other"
        self.count_kind(KindCounter.PART_FAILURES, label)

    def count_server(self, name: ServerCounter, server: ServerAddress, n: int = 1) -> None:
        """Add to the count of an own server, or to that of all others."""
        self._counts[name, self._label(server)] += n

    def gauge(self, name: Gauge, read: ReadGauge) -> None:
        """Have a gauge read; without this it is not shown."""
        self._gauges[name] = read

    def info(self, name: Info, what: Mapping[str, str]) -> None:
        """Show it; keys are labels."""
        self._infos[name] = what

    def kind_gauge(self, name: KindGauge, read: ReadKindGauge) -> None:
        """Have a gauge read that gives values by kind; without this it is not shown."""
        self._kind_gauges[name] = read

    def pair_gauge(self, name: PairGauge, read: ReadPairGauge) -> None:
        """Have a gauge read that gives values by both kinds; without this it is not shown."""
        self._pair_gauges[name] = read

    def server_gauge(self, name: ServerGauge, read: ReadServerGauge) -> None:
        """Have a gauge read that gives (server, value) pairs; values of one own host are added up."""
        self._server_gauges[name] = read

    def total(self, name: PairCounter | ServerCounter, second: str = "") -> int:
        """Of all servers; or of all kinds, with this second label (ValueError if it is none) or any."""
        if isinstance(name, ServerCounter):
            return sum(self._counts[name, host] for host in ("", *self._hosts))
        if not second:
            return sum(self.value(name, kind) for kind in name.kinds)
        if second not in name.seconds:
            raise ValueError(f"{name} has no {name.second_label} {second!r}")
        return sum(self._counts[name, kind, second] for kind in name.kinds)

    def value(
        self, name: Counter | KindCounter | PairCounter | ServerCounter, label: str = "", second: str = ""
    ) -> int:
        """A count; `label`: the kind (ValueError if it is none), or the own server's host, empty for all others'.

        Of a counter with a second label: that one, or all of these together.
        """
        if isinstance(name, PairCounter):
            if second:
                return self._counts[name, _checked(name, label), second]
            return sum(self._counts[name, _checked(name, label), second] for second in name.seconds)
        return self._counts[name, _checked(name, label) if isinstance(name, KindCounter) else label.lower()]

    def distribution(self, name: Histogram, kind: str = "") -> Distribution:
        """What was observed, and goes on to be. Raises KeyError if there is no such kind."""
        return self._distributions[name, kind]

    def read(self, name: Gauge) -> float | None:
        """As it is now; None: nobody shows it."""
        read = self._gauges.get(name)
        return None if read is None else read()

    def read_kinds(self, name: KindGauge) -> Mapping[str, float]:
        """By kind, as they are now."""
        return self._kind_gauges.get(name, dict)()

    def read_pairs(self, name: PairGauge) -> Mapping[tuple[str, str], float]:
        """By both kinds, as they are now."""
        return self._pair_gauges.get(name, dict)()

    def read_servers(self, name: ServerGauge) -> Mapping[str, float]:
        """By host of own servers, empty for all others together."""
        values: dict[str, float] = {}
        for server, value in self._server_gauges.get(name, tuple)():
            host = self._label(server)
            values[host] = values.get(host, 0) + value
        return values

    def _label(self, server: ServerAddress) -> str:
        """The host of an own server, empty for others."""
        if not self._own:
            return ""
        host = server.hosts[0].lower()
        if host in self._hosts:
            return host
        if not self.is_own(server) or len(self._hosts) >= MAX_HOSTS:
            return ""
        self._hosts.add(host)
        return host

    def histograms(self) -> Iterator[HistogramFamily]:
        """All histograms, as they are now."""
        for name in Histogram:
            found = [((kind,) if kind else (), self._distributions[name, kind]) for kind in name.kinds or ("",)]
            yield HistogramFamily(name, name.help, name.labels, found)

    def families(self) -> Iterator[Family]:
        """All else, as it is now."""
        for counter in Counter:
            yield Family(counter, counter.help, "counter", (), [((), self._counts[counter, ""])])
        for kinds in KindCounter:
            samples = [((kind,), self._counts[kinds, kind]) for kind in kinds.kinds]
            yield Family(kinds, kinds.help, "counter", kinds.labels, samples)
        for pairs in PairCounter:
            both = [(kind, second) for kind in pairs.kinds for second in pairs.seconds]
            yield Family(pairs, pairs.help, "counter", pairs.labels, [(b, self._counts[pairs, *b]) for b in both])
        for servers in ServerCounter:
            counts = {host: self._counts[servers, host] for host in ["", *sorted(self._hosts)]}
            yield from _server_families(servers, "counter", counts)
        for info, what in self._infos.items():
            yield Family(info, info.help, "gauge", tuple(what), [(tuple(what.values()), 1)])
        for gauge, read in self._gauges.items():
            yield Family(gauge, gauge.help, "gauge", (), [((), read())])
        for kind_gauge, read_kinds in self._kind_gauges.items():
            values = read_kinds()
            shown = [((kind,), values[kind]) for kind in kind_gauge.kinds if kind in values]
            yield Family(kind_gauge, kind_gauge.help, "gauge", kind_gauge.labels, shown)
        for pair_gauge, read_both in self._pair_gauges.items():
            found = read_both()
            both = [(kind, second) for kind in pair_gauge.kinds for second in pair_gauge.seconds]
            shown_of_both = [(labels, found[labels]) for labels in both if labels in found]
            yield Family(pair_gauge, pair_gauge.help, "gauge", pair_gauge.labels, shown_of_both)
        for server_gauge, read_pairs in self._server_gauges.items():
            yield from self._server_gauge_families(server_gauge, read_pairs())

    def _server_gauge_families(
        self, name: ServerGauge, pairs: Iterable[tuple[ServerAddress, float]]
    ) -> Iterator[Family]:
        values: dict[str, float] = {"": 0} | dict.fromkeys(self._hosts, 0.0)  # an own one that is gone is not forgotten
        others = 0
        for server, value in pairs:
            host = self._label(server)
            values[host] = values.get(host, 0) + value
            others += not host and value != 0
        yield from _server_families(name, "gauge", values)
        yield Family(name.other_servers, f"Servers behind {name.other}.", "gauge", (), [((), others)])


def _checked(name: KindCounter | PairCounter, kind: str) -> str:
    if kind not in name.kinds:
        raise ValueError(f"{name} has no kind {kind!r}")
    return str(kind)


def _server_families(name: ServerMetric, kind: FamilyKind, values: Mapping[str, float]) -> Iterator[Family]:
    """`values`: by own host, empty for all others."""
    own = [((host,), value) for host, value in values.items() if host]
    yield Family(name, f"{name.help} Own servers.", kind, ("server",), own)
    yield Family(name.other, f"{name.help} All other servers.", kind, (), [((), values[""])])
