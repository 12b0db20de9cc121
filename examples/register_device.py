"""Register a device with a notification server.

    python examples/register_device.py ntf://KEYHASH@host PROVIDER DEVICE_TOKEN STATE_FILE < push.json

PROVIDER is AP (APNs), AD (APNs sandbox) or AT (the mock APNs of tests). In an app the system hands over the push that
holds the code; here its payload is read from standard input, on one line, once the server was asked to send it.
"""

import asyncio
import sys
from pathlib import Path

from ntf_client import Device, VerificationCode
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider


async def main(address: str, provider: str, token: str, state: str) -> None:
    device = Device.create(
        ServerAddress.from_text(address), DeviceToken(Provider(provider), token.encode()), Path(state)
    )
    async with device.connect() as client:
        await device.register(client)
        print("registered; waiting for the push with the code", flush=True)
        payload = await asyncio.to_thread(sys.stdin.readline)
        match device.open_push(payload):
            case VerificationCode(code):
                await device.verify(client, code)
            case other:
                sys.exit(f"not a verification: {other}")
        print(f"status: {(await device.check(client)).status}")


asyncio.run(main(*sys.argv[1:]))
