"""The certificates of our services: one for each SMP server, for good, and alike but for what is random."""

import datetime
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import node as node_module
import pytest
from cryptography.x509 import Certificate
from node import NOW, Node

from ntf_server.smp.certificates import new_service_certificate
from ntf_server.store.records import ServiceCertificate
from smp_bridge.identity import BACKDATE, load_certificates
from smp_bridge.testing import Recipient, SmpServer

pytestmark = pytest.mark.usefixtures("quiet")

Open = Callable[..., AbstractAsyncContextManager[Node]]


@pytest.fixture
def open_node(tmp_path: Path) -> Open:
    """Opens nodes that are a service, one after another on the same file."""
    return lambda: node_module.open_node(tmp_path / "ntf.db", services=True)


async def kept(node: Node, server: SmpServer) -> ServiceCertificate:
    """The certificate that is stored for a server; none is made."""

    def make() -> ServiceCertificate:
        raise AssertionError("there is none")

    return await node.store.store.service_certificate(server.address, make)


async def test_each_server_sees_another_certificate_and_the_same_one_again(
    open_node: Open, smp_server: SmpServer
) -> None:
    async with (
        SmpServer() as other,
        await Recipient.connect(smp_server.address) as recipient,
        await Recipient.connect(other.address) as other_recipient,
    ):
        servers = (smp_server, other)
        async with open_node() as first:
            ids = await first.add_active(smp_server, await recipient.queue())
            ids += await first.add_active(other, await other_recipient.queue())
            chains = [await kept(first, s) for s in servers]
        seen = [set(s._services._by_certificate) for s in servers if s._services]
        assert [len(s) for s in seen] == [1, 1]
        assert seen[0] != seen[1]
        async with open_node() as second:
            await second.all_active(ids)
            assert [await kept(second, s) for s in servers] == chains
        assert [set(s._services._by_certificate) for s in servers if s._services] == seen


def test_certificates_have_nothing_in_common_but_the_day() -> None:
    midnight = NOW // 86400 * 86400
    times = (midnight, NOW, midnight + 86399.9)
    kept = [new_service_certificate(now) for now in times]
    assert len({k.key for k in kept}) == 3
    chains: list[list[Certificate]] = [load_certificates(k.chain) for k in kept]
    keys = [c.public_key().public_bytes_raw() for chain in chains for c in chain]  # type: ignore[union-attr]
    assert len(set(keys)) == len(keys) == 6
    for certificates in zip(*chains, strict=True):
        assert len({c.serial_number for c in certificates}) == 3
        same = {(c.subject, c.issuer, c.not_valid_before_utc, c.not_valid_after_utc) for c in certificates}
        [(_, _, begin, end)] = same
        assert begin == datetime.datetime.fromtimestamp(midnight, datetime.UTC) - BACKDATE
        assert end > begin
        assert len({tuple(e.oid.dotted_string for e in c.extensions) for c in certificates}) == 1
    [day] = {c.not_valid_before_utc for c in load_certificates(new_service_certificate(midnight - 1).chain)}
    assert day == begin - datetime.timedelta(days=1)
