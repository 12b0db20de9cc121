"""Headless Chromium, driven by its DevTools protocol: pages are opened, asked, and photographed."""

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from debian import unpacked

FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # tests may be root's
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class NoBrowserError(Exception):
    """There is no Chromium."""


# One look wherever it is: what is not there is passed over.
_FONTS: Final = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>/usr/share/fonts</dir><dir>{files}/usr/share/fonts</dir><cachedir>{folder}</cachedir>
  <alias><family>system-ui</family><prefer><family>Inter</family><family>DejaVu Sans</family></prefer></alias>
  <alias><family>sans-serif</family><prefer><family>Inter</family><family>DejaVu Sans</family></prefer></alias>
</fontconfig>
"""


def chromium(folder: Path) -> tuple[str, dict[str, str]]:
    """The program, and the variables that it needs: as installed, or as `scripts/test --all` unpacked it."""
    files, fonts = unpacked() or Path("/nowhere"), folder / "fonts.conf"
    fonts.write_text(_FONTS.format(files=files, folder=folder))
    if found := shutil.which("chromium"):
        return found, {"FONTCONFIG_FILE": str(fonts)}
    program = files / "usr/lib/chromium/chromium"
    if not program.exists():
        raise NoBrowserError("install chromium (Debian, Ubuntu: apt-get install chromium), or use scripts/test --all")
    libraries = [files / "usr/lib", *sorted((files / "usr/lib").glob("*-linux-gnu*"))]
    return str(program), {
        "LD_LIBRARY_PATH": ":".join(map(str, [*libraries, *(path / "pulseaudio" for path in libraries)])),
        "FONTCONFIG_FILE": str(fonts),
    }


class Browser:
    """`async with Browser() as browser`: one page. Scripts that are not caught end in `faults`, and so does what the
    page's own rules (CSP) or the network refuse.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.asked: list[str] = []  # for what a password was
        self._password = ""
        self._stack = contextlib.AsyncExitStack()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._session = ""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True))
            program, environ = chromium(Path(folder))
            self._process = await asyncio.create_subprocess_exec(
                program, *FLAGS, f"--user-data-dir={folder}", "about:blank",
                env=os.environ | environ | {"HOME": folder}, stdout=-3, stderr=-3, start_new_session=True,
            )  # fmt: skip
            stack.push_async_callback(self._end)
            port, path = await self._endpoint(Path(folder) / "DevToolsActivePort")
            client = await stack.enter_async_context(aiohttp.ClientSession())
            self._socket = await stack.enter_async_context(
                client.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0)
            )
            reader = asyncio.create_task(self._read())
            stack.callback(reader.cancel)
            target = await self.call("Target.createTarget", url="about:blank")
            attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
                await self.call(f"{domain}.enable")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _endpoint(self, file: Path) -> tuple[str, str]:
        async with asyncio.timeout(60):
            while True:
                if self._process.returncode is not None:
                    raise NoBrowserError(f"chromium ended with {self._process.returncode}")
                if file.exists() and len(lines := file.read_text().split()) == 2:
                    return lines[0], lines[1]
                await asyncio.sleep(0.05)

    async def _read(self) -> None:
        async for received in self._socket:
            message = received.json()
            if (waiting := self._waiting.pop(message.get("id", 0), None)) is not None:
                if not waiting.done():
                    waiting.set_result(message)
            elif message.get("method") == "Fetch.requestPaused":
                await self._tell("Fetch.continueRequest", requestId=message["params"]["requestId"])
            elif message.get("method") == "Fetch.authRequired":
                self.asked.append(message["params"]["request"]["url"])
                answer = {"response": "ProvideCredentials", "username": "operator", "password": self._password}
                request = message["params"]["requestId"]
                await self._tell("Fetch.continueWithAuth", requestId=request, authChallengeResponse=answer)
            elif message.get("method") == "Runtime.exceptionThrown":
                self.faults.append(str(message["params"]["exceptionDetails"]))
            elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.faults.append(message["params"]["entry"]["text"])

    async def _tell(self, method: str, **parameters: Any) -> None:
        """A command whose answer says nothing."""
        session = {"sessionId": self._session}
        await self._socket.send_json({"id": next(self._numbers), "method": method, "params": parameters, **session})

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol."""
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **session})
        async with asyncio.timeout(30):
            answer = await waiting
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    async def value(self, expression: str) -> Any:
        """What a script comes to in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = 30.0) -> Any:
        """Its value, as soon as it is true of the page."""
        value = None
        try:
            async with asyncio.timeout(seconds):
                while not (value := await self.value(expression)):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{expression}: {value!r}; {await self.value('document.body.innerText')}") from None
        return value

    async def open(self, url: str, *, password: str = "") -> None:
        """A page; a person who is asked for a name and a password gives this one: see `asked`."""
        self._password = password
        if password:
            await self.call("Fetch.enable", handleAuthRequests=True)
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def looks(
        self, width: int, height: int, *, dark: bool = False, scale: float = 1.0, still: bool = True
    ) -> None:
        """As a screen of this size shows it, in the system's colours; `still`: its owner wants no motion."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)
        await asyncio.sleep(0.3)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """A key, as a keyboard sends it."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
        fields: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
        if key in {"Enter", " "}:
            fields["text"] = "\r" if key == "Enter" else " "
        await self.call("Input.dispatchKeyEvent", type="keyDown", **fields)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in fields.items() if k != "text"})

    async def photograph(self, path: Path, *, whole: bool = True) -> None:
        """What it shows, as PNG or WebP; `whole`: also below the fold."""
        shot: dict[str, Any] = {"format": path.suffix[1:], **({"quality": 80} if path.suffix == ".webp" else {})}
        if whole:
            size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
            shot |= {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        taken = await self.call("Page.captureScreenshot", **shot)
        path.write_bytes(base64.b64decode(taken["data"]))
