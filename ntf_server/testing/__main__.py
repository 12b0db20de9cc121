"""Run a mock push service: `python -m ntf_server.testing --kind apns --port 2197 --ca-file ca.pem`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ntf_server.testing.apns import MockApns, Push
from ntf_server.testing.fcm import MockFcm
from ntf_server.testing.fcm_message import FcmMessage
from ntf_server.testing.webpush import MockWebPush, WebPushMessage

_OPTIONS_OF = {
    "apns": ("public_key", "topics", "no_alpn", "any_device_token"),
    "fcm": ("project", "service_account"),
    "webpush": ("subscription",),
}


def main() -> None:
    """Serve until SIGINT or SIGTERM; print the address, then a line per accepted push, never its token."""
    parser = argparse.ArgumentParser(prog="python -m ntf_server.testing", description="A mock push service.")
    parser.add_argument("--kind", choices=_OPTIONS_OF, default="apns")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: one that the system chooses")
    parser.add_argument("--ca-file", type=Path, help="where to write the CA certificate to trust (PEM)")
    apns = parser.add_argument_group("apns")
    apns.add_argument("--public-key", type=_public_key, help="P-256 key that verifies provider tokens (PEM)")
    apns.add_argument("--topic", action="append", dest="topics", help="an allowed topic; default: any")
    apns.add_argument("--no-alpn", action="store_true", help="HTTP/2 with prior knowledge, without ALPN")
    apns.add_argument(
        "--any-device-token",
        action="store_true",
        help="take device tokens of any form, as the reference's test APNs",
    )
    fcm = parser.add_argument_group("fcm")
    fcm.add_argument("--project", help="the project's id; default: mock-project")
    fcm.add_argument("--service-account", type=Path, help="where to write a service account's key file (JSON)")
    webpush = parser.add_argument_group("webpush")
    webpush.add_argument("--subscription", type=Path, help="where to write a browser's subscription (JSON)")
    arguments = parser.parse_args()
    for kind, names in _OPTIONS_OF.items():
        for name in names:
            if kind != arguments.kind and getattr(arguments, name):
                parser.error(f"argument of --kind {kind}, not of {arguments.kind}: {name}")
    asyncio.run(_serve(arguments))


async def _serve(arguments: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with _make(arguments) as server:
        if arguments.ca_file is not None:
            await asyncio.to_thread(arguments.ca_file.write_bytes, server.ca_file.read_bytes())
        if isinstance(server, MockFcm) and arguments.service_account is not None:
            await asyncio.to_thread(server.service_account, arguments.service_account)
        if isinstance(server, MockWebPush) and arguments.subscription is not None:
            content = json.dumps(server.subscribe().to_json())
            await asyncio.to_thread(_write_private, arguments.subscription, content)
        print(f"listening on {server.host}:{server.port}", flush=True)
        await stopped.wait()


def _make(arguments: argparse.Namespace) -> MockApns | MockFcm | MockWebPush:
    host, port = arguments.host, arguments.port
    if arguments.kind == "fcm":
        project = arguments.project or "mock-project"
        return MockFcm(host=host, port=port, project_id=project, on_push=_print_fcm, record=False)
    if arguments.kind == "webpush":
        return MockWebPush(host=host, port=port, on_push=_print_web_push, record=False)
    return MockApns(
        host=host,
        port=port,
        alpn=not arguments.no_alpn,
        public_key=arguments.public_key,
        topics=arguments.topics,
        any_device_token=arguments.any_device_token,
        on_push=_print_apns,
        record=False,
    )


def _print_apns(push: Push) -> None:
    print(f"push size={push.size} type={push.push_type} priority={push.priority}", flush=True)


def _print_fcm(push: FcmMessage) -> None:
    print(f"push size={push.size} priority={push.priority} ttl={push.ttl:g}", flush=True)


def _print_web_push(push: WebPushMessage) -> None:
    print(f"push size={push.size} urgency={push.urgency} ttl={push.ttl}", flush=True)


def _write_private(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)  # it may have existed
    path.write_text(content)


def _public_key(path: str) -> ec.EllipticCurvePublicKey:
    key = load_pem_public_key(Path(path).read_bytes())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise argparse.ArgumentTypeError("not an elliptic curve key")
    return key


if __name__ == "__main__":
    main()
