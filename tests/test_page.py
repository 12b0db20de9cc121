"""The live page as a person has it: in Chromium, under load and in trouble; and what it costs the relay."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from browser import Browser
from command_line import run as command
from harness import Phone, RelayProcess, environment
from page_scenes import scene, sending
from redis_servers import free_port

from ntf_server.app import Relay
from ntf_server.config.files import load
from ntf_server.testing import MockApns
from smp_bridge.client import ServerError

TOKEN = "nVQ2u6mPqTz0m8pSxg6uWQ=="
MIB = 2**20


# --- what it costs


class Measured:
    """A relay process."""

    def __init__(self, relay: RelayProcess) -> None:
        assert relay.process is not None
        self._proc = Path(f"/proc/{relay.process.pid}")

    @property
    def anon(self) -> int:
        """Bytes of its own (RssAnon of proc(5))."""
        [kilobytes] = re.findall(r"RssAnon:\s+(\d+) kB", (self._proc / "status").read_text())
        return int(kilobytes) * 1024

    @property
    def has_aiohttp(self) -> bool:
        return "/aiohttp/" in (self._proc / "maps").read_text()


@pytest.mark.long
async def test_off_it_costs_nothing_and_on_little(tmp_path: Path, mock_apns: MockApns) -> None:
    """With a browser that looks it takes 16 MiB at most."""
    relay = RelayProcess(tmp_path / "relay", environment(mock_apns))
    await relay.init()
    await relay.start()
    without = Measured(relay)
    assert not without.has_aiohttp
    before = without.anon
    assert await relay.stop() == 0
    port = free_port()
    relay.environment |= {"NTF_SERVER__ADMIN__PORT": str(port)}
    await relay.start()
    page = Measured(relay)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        for path in ("/", "/page.js", "/api/state"):
            async with client.get(path) as answer:
                assert answer.status == 200
        async with client.get("/api/stream") as stream:
            for _ in range(4):  # an empty line after each
                await stream.content.readline()
            assert page.has_aiohttp
            assert page.anon - before < 16 * MIB
            assert await asyncio.wait_for(relay.stop(), 10) == 0
            assert (await stream.content.read()).endswith(b"event: end\ndata: {}\n\n")


# --- in a browser


@pytest.fixture(autouse=True)
def told() -> Iterator[None]:
    """Events are, as they are with the log's usual level."""
    log = logging.getLogger("ntf_server")
    before = log.level
    log.setLevel(logging.INFO)
    yield
    log.setLevel(before)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """One that finds no fault with the page."""
    async with Browser() as opened:
        yield opened
        # by the end the relay has gone, and the page looks for it
        assert [fault for fault in opened.faults if "ERR_CONNECTION_REFUSED" not in fault] == []


def text(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)}).innerText"


HEADLINE = text("#verdict-text")
ROWS = "[...document.querySelectorAll('#%s tr')].map((row) => [...row.children].map((cell) => cell.innerText))"


async def rows(browser: Browser, table: str) -> dict[str, list[str]]:
    """Of a table, by their headers."""
    found: list[list[str]] = await browser.value(ROWS % table)
    return {header: cells for header, *cells in found}


@pytest.mark.long
async def test_under_load(tmp_path: Path, browser: Browser) -> None:
    async with scene(tmp_path) as made, sending(made):
        await browser.open(made.url)
        await browser.until(f"{HEADLINE} === 'All is well' && {text('#link-text')} === 'live'")
        await browser.until(f"parseInt({text('#tile-received .value')}) > 10")
        await browser.until(f"parseInt({text('#tile-delivered .value')}) > 10")
        assert re.fullmatch(r"[\d.]+\s*(ms|s)", await browser.value(text("#tile-way .value")))
        assert await browser.value(text("#facts")) and "1 of 1" in await browser.value(text("#facts"))
        providers = await rows(browser, "providers")
        assert providers["APNs test (AT)"][0] == "Well" and int(providers["APNs test (AT)"][5].replace(",", "")) > 20
        servers = await rows(browser, "servers")
        assert servers[made.smp.address.hosts[0]][:2] == ["Connected", str(len(made.queues))]
        events: list[list[str]] = await browser.value(ROWS % "events")
        assert "relay.started" in [event[1] for event in events]
        assert await browser.value("document.title") == "All is well · ntf-relay"
        curve = "document.querySelector('#chart-flow .curve.one').getAttribute('d')"
        before = await browser.until(curve)
        assert await browser.until(f"{curve} !== {json.dumps(before)} && {curve}")
        label = await browser.value("document.querySelector('#chart-way .plot').getAttribute('aria-label')")
        assert re.match(r"From the SMP server to the provider: median \d.*99 %", label)


@pytest.mark.long
async def test_a_provider_that_is_dead_and_comes_back(tmp_path: Path, browser: Browser) -> None:
    async with scene(tmp_path) as made, sending(made):
        await browser.open(made.url)
        await browser.until(f"{HEADLINE} === 'All is well'")
        await made.apns.stop()
        await browser.until(f"{HEADLINE} === 'Something is not well'")
        trouble = await browser.value(text("#troubles"))
        assert trouble.startswith("APNs test (AT) takes no pushes, for ") and "connection refused" in trouble
        await browser.until(f"{text('#said')}.includes('Something is not well. APNs test (AT) takes no pushes')")
        assert await browser.value("document.title") == "Something is not well · ntf-relay"
        assert await browser.until("document.querySelector('#icon').href.endsWith('icon-trouble.svg')")
        state, *_, words = (await rows(browser, "providers"))["APNs test (AT)"]
        assert re.match(r"(Paused|Being tried)( for|$)", state) and words.startswith("connection refused")
        await browser.until("document.querySelector('#day .trouble') !== null")
        await browser.until(f"parseInt({text('#tile-due .value')}) > 0")
        await made.apns.start()
        await browser.until(f"{HEADLINE} === 'All is well'", 60)
        assert await browser.value("document.querySelector('#troubles').hidden")
        await browser.until(f"{text('#said')} === 'All is well'")


@pytest.mark.long
async def test_a_store_that_is_full(tmp_path: Path, browser: Browser) -> None:
    async with scene(tmp_path) as made, sending(made):
        await browser.open(made.url)
        await browser.until(f"{HEADLINE} === 'All is well'")
        await made.fill_store()
        async with await made.client() as client:
            with pytest.raises(ServerError, match="STORE"):
                while True:
                    await Phone(made.apns).register(client)
        await browser.until(f"{text('#troubles')}.includes('the store fails, for ')")
        assert "full: there is no room" in await browser.value(text("#troubles"))
        assert (await browser.value(text("#store"))).startswith("State\nfull, for ")
        await made.empty_store()
        await browser.until(f"{HEADLINE} === 'All is well'", 60)


@pytest.mark.long
async def test_a_relay_that_is_drained_and_gone(tmp_path: Path, browser: Browser) -> None:
    """What is below is from before, and says so; who looks finds the next one by itself."""
    port = free_port()
    async with scene(tmp_path, phones=1, admin__port=port) as made:
        await browser.open(made.url)
        await browser.until(f"{HEADLINE} === 'All is well'")
    await browser.until(f"{HEADLINE} === 'No connection to the relay'")
    assert await browser.value(text("#link-text")) == "lost"
    assert "from before" in await browser.value(text("#verdict-since"))
    environ = {"TRANSPORT__BIND": "127.0.0.1", "TRANSPORT__PORT": "0", "ADMIN__PORT": str(port)}
    async with Relay(load(tmp_path, {f"NTF_SERVER__{key}": value for key, value in environ.items()})):
        await browser.until(f"{HEADLINE} !== 'No connection to the relay'")
        await browser.until(f"{text('#link-text')} === 'live'")
    await browser.until(f"{HEADLINE} === 'No connection to the relay'")


@pytest.mark.long
async def test_a_token(tmp_path: Path, browser: Browser) -> None:
    """It is asked for once, as the password; the browser brings it with whatever the page asks for."""
    (tmp_path / "page.token").write_text(TOKEN)
    async with scene(tmp_path, phones=1, admin__token_file="page.token") as made:
        await browser.open(made.url, password=TOKEN)
        await browser.until(f"{HEADLINE} === 'All is well' && {text('#link-text')} === 'live'")
        assert browser.asked == [made.url]
        log = await asyncio.to_thread(command, "check", "--path", tmp_path, **made.config.environ)
        assert TOKEN not in log.stdout + log.stderr


@pytest.mark.long
async def test_words_of_strangers_stay_words(tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    from msgspec.structs import replace

    from ntf_server.push.dispatcher import Dispatcher

    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    ways = Dispatcher.ways
    monkeypatch.setattr(Dispatcher, "ways", lambda d: [replace(w, reason=evil, troubled_for=1.0) for w in ways(d)])
    monkeypatch.setattr(Dispatcher, "services", lambda d, most: [replace(ways(d)[0], name=evil, reason=evil)][:most])
    async with scene(tmp_path, phones=1) as made:
        logging.getLogger("ntf_server").info(evil, extra={"event": evil})
        await browser.open(made.url)
        await browser.until(f"{text('#services th')} === {json.dumps(evil)}")
        for place in ("#services .words", "#providers .words", "#events .badge"):
            assert (await browser.value(text(place))).startswith(evil)
        assert await browser.value("document.querySelectorAll('main img, main script').length") == 0
        assert await browser.value("document.title") == "All is well · ntf-relay"


CONTRASTS: str = """
(() => {
  const parse = (text) => { const c = text.match(/[\\d.]+/g).map(Number); return text.startsWith("color(srgb") ? [c[0] * 255, c[1] * 255, c[2] * 255, c[3] ?? 1] : [c[0], c[1], c[2], c[3] ?? 1]; };
  const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
  const behind = (element) => { for (let e = element; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest(".unseen, .skip, noscript")) continue;
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    const [a, b] = [light(parse(svg ? style.fill : style.color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${element.tagName} ${element.className} ${element.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""  # noqa: E501  WCAG 2.2, section 1.4.3


@pytest.mark.long
async def test_every_screen_and_both_colours(tmp_path: Path, browser: Browser) -> None:
    """Text can be read, nothing sticks out, and nothing moves for who wants no motion."""
    async with scene(tmp_path) as made, sending(made):
        for trouble in (False, True):
            if trouble:
                await made.apns.stop()
            await browser.looks(1280, 900)
            await browser.open(made.url)
            await browser.until(f"{HEADLINE} === '{'Something is not' if trouble else 'All is'} well'")
            for width, height in ((1280, 900), (800, 1000), (390, 844), (320, 640)):
                for dark in (False, True):
                    await browser.looks(width, height, dark=dark)
                    shape = await browser.value("[innerWidth, document.documentElement.scrollWidth]")
                    assert shape == [width, width]
                    assert await browser.value(CONTRASTS) == []
            moving = "document.getAnimations().length"
            assert await browser.value(moving) == 0
            await browser.looks(1280, 900, still=False)
            await browser.until(moving)


FOCUSED = "((e) => e.id || e.className.baseVal || e.className || e.value)(document.activeElement)"
OUTLINE = """((e) => getComputedStyle(e.matches('.range input') ? e.nextElementSibling : e).outlineStyle)
(document.activeElement)"""


@pytest.mark.long
async def test_a_keyboard_reaches_everything(tmp_path: Path, browser: Browser) -> None:
    async with scene(tmp_path, phones=4) as made, sending(made):
        await browser.looks(1280, 900)
        await browser.open(made.url)
        await browser.until(f"{HEADLINE} === 'All is well'")
        await browser.until("document.querySelector('#chart-flow .curve.one')?.getAttribute('d').includes('L')")
        seen = []
        for _ in range(14):
            await browser.press("Tab")
            seen.append(await browser.value(FOCUSED))
            outline = await browser.value(OUTLINE)
            if await browser.value("document.activeElement !== document.body"):
                assert outline == "solid", seen
            if seen[-1] == "theme":
                for wanted in ("light", "dark", ""):
                    await browser.press("Enter")
                    assert await browser.value("document.documentElement.dataset.theme") == wanted
            if seen[-1] == "plot" and seen.count("plot") == 1:
                await browser.press("ArrowLeft")
                await browser.press("ArrowLeft")
                said = await browser.value(text("#chart-flow [aria-live]"))
                assert re.fullmatch(r"\d\d:\d\d:\d\d: received .*, delivered .*, after 10 s .*", said)
            if seen[-1] == "points":
                await browser.press("ArrowRight")
                assert await browser.value("document.querySelector('[value=long]').checked")
        assert [name for name in ("skip", "theme", "plot", "scroll") if name not in seen] == []
        assert seen.count("plot") == 4


@pytest.mark.long
async def test_what_a_screen_reader_is_told(tmp_path: Path, browser: Browser) -> None:
    async with scene(tmp_path, phones=1) as made:
        await browser.open(made.url)
        await browser.until(f"{HEADLINE} === 'All is well'")
        tree = (await browser.call("Accessibility.getFullAXTree"))["nodes"]
        named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n.get("ignored")]
        for wanted in (
            ("main", ""),
            ("banner", ""),
            ("heading", "All is well"),
            ("region", "What flows now"),
            ("region", "Providers"),
            ("radio", "10 min"),
            ("columnheader", "Last words"),
            ("rowheader", "APNs test (AT)"),
            ("button", "Colours: as the system has them"),
        ):
            assert wanted in named
        pictures = [name for role, name in named if role in {"image", "img"}]
        assert len(pictures) >= 5 and all(pictures)
        assert not [role for role, name in named if role in {"button", "link", "radio", "textbox"} and not name]
