"""The mocks as a command; what each of them does: `test_command` in test_apns.py, test_fcm.py and test_webpush.py."""

import asyncio
import sys

import pytest


@pytest.mark.parametrize(
    ("kind", "option", "whose"),
    [
        ("fcm", "--topic", "apns"),
        ("webpush", "--topic", "apns"),
        ("apns", "--service-account", "fcm"),
        ("apns", "--subscription", "webpush"),
    ],
)
async def test_options_of_another_kind_are_refused(kind: str, option: str, whose: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ntf_server.testing", "--kind", kind, option, "x"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, f"--kind {whose}".encode() in errors) == (2, True)
