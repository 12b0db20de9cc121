"""The same push by another implementation: aioapns to Apple, pyfcm to Google. They are imported here only.

What one of them cannot tell apart is told as it tells it: aioapns gives no reason for a connection that fails.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from ntf_server.config.files import Config
from ntf_server.findings import Finding, left_out, warning, well
from ntf_server.providers import apns_settings, fcm_settings
from ntf_server.push.apns.settings import ApnsSettings
from ntf_server.push.exchange import Endpoint, HttpResponse
from ntf_server.push.fcm import judge as fcm
from ntf_server.push.fcm import oauth
from ntf_server.push.fcm.settings import FcmSettings
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.reach import host_of, tls_context
from smp_bridge.ntf import DeviceToken, Provider

if TYPE_CHECKING:
    import requests

NAME: Final = "2nd opinion"
OF: Final = {
    Provider.APNS: "aioapns",
    Provider.APNS_SANDBOX: "aioapns",
    Provider.APNS_TEST: "aioapns",
    Provider.FCM: "pyfcm",
}
_DATA: Final = {"checkMessages": "true"}
_TTL: Final = 3600  # seconds


class NoOpinionError(Exception):
    """Why there is none."""


async def second_opinion(config: Config, device: DeviceToken, first: str, *, dry: bool) -> Finding:
    """`first`: what the provider said to us, as in `Trial.said`. The deadline is that of an access token and a push."""
    library = OF[device.provider]
    name = f"{library} {version(library)}"
    if dry and library == "aioapns":
        return left_out(NAME, f"{name}: not asked: APNs has no dry run")
    try:
        async with asyncio.timeout(2 * config.settings.delivery.timeout + 1):
            said = await (_by_pyfcm(config, device, dry=dry) if library == "pyfcm" else _by_aioapns(config, device))
    except NoOpinionError as e:
        return left_out(NAME, f"{name}: {e}")
    except TimeoutError:
        said = "no answer in time"
    text = f"{name}: {said}: "
    if not first:
        return warning(NAME, f"{text}ours had no answer")
    if said == first:
        return well(NAME, f"{text}the same as ours")
    return warning(NAME, f"{text}ours was {first}", "run it once more; if they differ again, please report it")


# --- Apple


async def _by_aioapns(config: Config, device: DeviceToken) -> str:
    import aioapns  # noqa: PLC0415
    from aioapns.connection import APNsProductionClientProtocol  # noqa: PLC0415

    settings = apns_settings(config, generate_key())
    assert settings is not None  # or there were no push
    endpoint = settings.hosts[device.provider]
    host, port = host_of(endpoint)
    client = aioapns.APNs(
        **_credentials(config, settings, endpoint),
        topic=settings.topic,
        max_connections=1,
        max_connection_attempts=1,
        ssl_context=tls_context(endpoint),
        err_func=_ignore,
    )
    # Which host it is can be told to a class only: this one is ours alone.
    client.pool.protocol_class = type(
        "Protocol", (APNsProductionClientProtocol,), {"APNS_SERVER": host, "APNS_PORT": port}
    )
    message = {"aps": {"content-available": 1}, "notificationData": {"checkMessages": True}}
    request = aioapns.NotificationRequest(
        device.token.decode("latin-1"),
        message,
        time_to_live=_TTL,
        priority=5,
        collapse_key="check",
        push_type=aioapns.PushType.BACKGROUND,
    )
    try:
        result = await client.send_notification(request)
    except (aioapns.exceptions.MaxAttemptsExceeded, aioapns.exceptions.ConnectionError):
        return "no answer, or no connection, it does not say which"
    finally:
        client.pool.close()
        await asyncio.sleep(0)
    return f"{result.status} {result.description or ''}".rstrip()


def _credentials(config: Config, settings: ApnsSettings, endpoint: Endpoint) -> Mapping[str, Any]:
    """Raises NoOpinionError where it cannot do what is asked of it."""
    apns = config.settings.apns
    if endpoint.proxy:  # it closes what asyncio has wrapped, which cannot be closed
        raise NoOpinionError("not asked: it does not get through a proxy")
    if settings.signing is not None:
        signing = settings.signing
        return {"key": key_pem(signing.key).decode(), "key_id": signing.key_id, "team_id": signing.team_id}
    if apns.certificate_file != apns.certificate_key_file:
        raise NoOpinionError("not asked: it takes a client certificate and its key from one file only")
    return {"client_cert": str(config.directory / apns.certificate_file)}


async def _ignore(_request: Any, _result: Any) -> None:
    """What it calls for errors, which it logs else."""


# --- Google


async def _by_pyfcm(config: Config, device: DeviceToken, *, dry: bool) -> str:
    settings = fcm_settings(config)
    assert settings is not None
    return await _aside(partial(_ask_pyfcm, settings, device, config.settings.delivery.timeout, dry))


async def _aside(ask: Callable[[], str]) -> str:
    """In a thread that nobody waits for at the end: requests has no deadline for an answer that comes in drops."""
    loop = asyncio.get_running_loop()
    said: asyncio.Future[str] = loop.create_future()

    def give(what: str, error: Exception | None) -> None:
        if said.done():  # nobody waits any more
            return
        if error is None:
            said.set_result(what)
        else:
            said.set_exception(error)

    def run() -> None:
        what, error = "", None
        try:
            what = ask()
        except Exception as e:
            error = e
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(give, what, error)

    threading.Thread(target=run, name="second opinion", daemon=True).start()
    return await said


def _ask_pyfcm(settings: FcmSettings, device: DeviceToken, timeout: float, dry: bool) -> str:
    import requests  # noqa: PLC0415
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
    from pyfcm import errors  # type: ignore[import-untyped]  # noqa: PLC0415

    proxy = settings.push_to.proxy
    if proxy and not proxy.startswith("http"):
        raise NoOpinionError("not asked: it knows HTTP proxies only")
    answers: list[requests.Response] = []
    with requests.Session() as session:
        session.trust_env = False
        session.verify = settings.push_to.ca_file
        session.proxies = {"https": proxy} if proxy else {}
        session.hooks["response"].append(lambda response, *_args, **_kwargs: answers.append(response))
        client = _client(settings, session, timeout)
        try:
            client.notify(
                fcm_token=device.token.decode("latin-1"),
                data_payload=_DATA,
                android_config={"priority": "NORMAL", "ttl": f"{_TTL}s", "collapse_key": "check"},
                dry_run=dry,
                timeout=timeout,
            )
        except requests.RequestException as e:
            return f"no answer ({type(e).__name__})"
        except GoogleAuthError as e:
            refused = [HttpResponse(a.status_code, a.content) for a in answers if a.status_code != 200]
            if not refused:
                return f"no access token ({type(e).__name__})"
            return f"{refused[-1].status} {oauth.refusal(refused[-1])[0]}".rstrip()
        except (errors.FCMError, ValueError) as e:  # ValueError: an answer that is no JSON
            if not answers:
                return f"no answer ({type(e).__name__})"
    last = answers[-1]
    return f"{last.status_code} {fcm.error(HttpResponse(last.status_code, last.content))[0]}".rstrip()


def _client(settings: FcmSettings, session: "requests.Session", timeout: float) -> Any:
    """pyfcm with a session of ours: it has no settings for a CA or deadlines, and sleeps for as long as it is told."""
    import pyfcm  # noqa: PLC0415
    from google.auth.transport.requests import Request  # noqa: PLC0415
    from google.oauth2.service_account import Credentials  # noqa: PLC0415

    account = settings.account
    credentials = Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
        {
            "client_email": account.client_email,
            "private_key": key_pem(account.key).decode(),
            "private_key_id": account.key_id,
            "project_id": account.project_id,
            "token_uri": account.token_uri,
        },
        scopes=[oauth.SCOPE],
    )

    class Client(pyfcm.FCMNotification):  # type: ignore[misc]
        FCM_END_POINT_BASE = f"{settings.push_to.url}/v1/projects"

        def send_request(self, payload: Any = None, timeout: Any = None) -> Any:
            credentials.refresh(partial(Request(session), timeout=timeout))
            headers = {"authorization": f"Bearer {credentials.token}", "content-type": "application/json"}
            return session.post(self.fcm_end_point, data=payload, headers=headers, timeout=timeout)

    return Client(credentials=credentials, project_id=account.project_id)
