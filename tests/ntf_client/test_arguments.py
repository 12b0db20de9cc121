"""The arguments of `ntf-client`: what values may look like. What is refused: test_cli.py."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ntf_client import arguments
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url, un_b64url

SMP = ServerAddress("smp", ("localhost",), "", bytes(32))
RUNS = dict.fromkeys(
    ["test", "register", "verify", "subscribe", "unsubscribe", "status", "periodic", "decrypt", "replace", "delete"],
    print,
)
KEY = b64url(crypto.encode_private(Ed25519PrivateKey.generate()))
QUEUE = ("--notifier-id", "AAAA", "--notifier-key", KEY)


def test_values_that_look_like_options() -> None:
    dashes = b64url(bytes.fromhex("fb") + bytes(31))
    double = b64url(bytes.fromhex("fbefbe") + bytes(29))
    assert dashes.startswith("-")
    assert double.startswith("--")
    for value in (dashes, double):
        raw = un_b64url(value)
        assert arguments.parse(["verify", value, "--state", "x"], RUNS).code == raw
        assert arguments.parse(["unsubscribe", value], RUNS).id == raw
        parsed = arguments.parse(
            ["subscribe", str(SMP), "--notifier-id", value, "--notifier-key", KEY, "--secret", value], RUNS
        )
        assert arguments.queue(parsed).notifier_id == arguments.queue(parsed).secret == raw
        parsed = arguments.parse(["replace", "--provider", "FC", "--token", value], RUNS)
        assert arguments.device_token(parsed).token == value.encode()
    assert arguments.parse(["decrypt", "-"], RUNS).file == "-"


@pytest.mark.parametrize("form", ["argument", "text file", "DER file"])
def test_forms_of_a_key(form: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(un_b64url(KEY) if form == "DER file" else KEY.encode() + b"\n")
    given = KEY if form == "argument" else str(file)
    parsed = arguments.parse(["subscribe", str(SMP), *QUEUE[:3], given], RUNS)
    assert b64url(crypto.encode_private(arguments.queue(parsed).notifier_key)) == KEY
