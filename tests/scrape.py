"""Metrics as a scraper reads them."""

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from ntf_server.observe.exposition import Exposition
from ntf_server.observe.metrics import Metrics


def samples(metrics: Metrics) -> list[Sample]:
    text = Exposition(metrics).page().text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """KeyError if there is none."""
    for found in samples(metrics):
        if found.name == name and found.labels == labels:
            return found.value
    raise KeyError(name)
