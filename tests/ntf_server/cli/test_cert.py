"""`ntf-server cert`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import contents, in_process, one_line, run
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ntf_server.config import files as config
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.identity import private_key_pem

Start = Callable[..., Any]


async def test_cert(made: Path, start: Start, tmp_path: Path) -> None:
    key_hash = config.load(made, {}).credentials.key_hash
    (made / "ca.key").rename(tmp_path / "offline.key")
    done = run("cert", "--path", made, "--ca-key", tmp_path / "offline.key", "--sign-algorithm", "ED25519")
    assert (done.returncode, done.stderr) == (0, "")
    _, port = await start()
    async with await Client.connect(ServerAddress("ntf", ("127.0.0.1",), str(port), key_hash)) as client:
        assert await client.request(ntf.Ping()) == ntf.Pong()


def test_cert_with_a_wrong_key(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.key"
    wrong.write_bytes(private_key_pem(Ed25519PrivateKey.generate()))
    before = contents(made)
    code, out, err = in_process(capsys, "cert", "--path", made, "--ca-key", wrong)
    assert (code, out) == (2, "")
    assert f"{wrong}: is not the key of {made / 'ca.crt'}; give the identity's key" in one_line(err)
    assert contents(made) == before


def test_cert_where_nothing_can_be_written(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "server.key.new").mkdir()  # where it is written first
    before = contents(made)
    code, out, err = in_process(capsys, "cert", "--path", made)
    assert (code, out) == (1, "")
    assert f"{made / 'server.key.new'}: " in one_line(err)
    assert contents(made) == before
