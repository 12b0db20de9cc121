"""Run a mock APNs: `python -m ntf_server.testing --port 2197 --ca-file ca.pem`."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ntf_server.testing.apns import MockApns, Push


def main() -> None:
    """Serve until SIGINT or SIGTERM; print the address, then a line per accepted push, never its token."""
    parser = argparse.ArgumentParser(prog="python -m ntf_server.testing", description="A mock APNs.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: one that the system chooses")
    parser.add_argument("--ca-file", type=Path, help="where to write the CA certificate to trust (PEM)")
    parser.add_argument("--public-key", type=_public_key, help="P-256 key that verifies provider tokens (PEM)")
    parser.add_argument("--topic", action="append", dest="topics", help="an allowed topic; default: any")
    parser.add_argument("--no-alpn", action="store_true", help="HTTP/2 with prior knowledge, without ALPN")
    asyncio.run(_serve(parser.parse_args()))


async def _serve(arguments: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with MockApns(
        host=arguments.host,
        port=arguments.port,
        alpn=not arguments.no_alpn,
        public_key=arguments.public_key,
        topics=arguments.topics,
        on_push=_print_push,
        record=False,
    ) as apns:
        if arguments.ca_file is not None:
            await asyncio.to_thread(arguments.ca_file.write_bytes, apns.ca_file.read_bytes())
        print(f"listening on {apns.host}:{apns.port}", flush=True)
        await stopped.wait()


def _print_push(push: Push) -> None:
    print(f"push size={push.size} type={push.push_type} priority={push.priority}", flush=True)


def _public_key(path: str) -> ec.EllipticCurvePublicKey:
    key = load_pem_public_key(Path(path).read_bytes())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise argparse.ArgumentTypeError("not an elliptic curve key")
    return key


if __name__ == "__main__":
    main()
