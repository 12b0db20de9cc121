import pycurl
import pytest

from ntf_server.push.exchange import (
    OK,
    REFUSED_BY_PROXY,
    STREAM_RESET,
    Endpoint,
    HttpFailure,
    HttpRequest,
    HttpResponse,
)


@pytest.mark.parametrize(
    ("failure", "text", "unreachable"),
    [
        (HttpFailure(pycurl.E_COULDNT_CONNECT, timeout=False), "connection refused", True),
        (HttpFailure(REFUSED_BY_PROXY, timeout=False), "refused by the proxy", True),
        (HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True, connected=False), "timed out", True),
        (HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True), "timed out", False),
        (HttpFailure(STREAM_RESET, timeout=False), "HTTP/2 stream reset", False),
        (HttpFailure(9999, timeout=False), "libcurl error 9999", False),
    ],
)
def test_what_a_failure_says(failure: HttpFailure, text: str, unreachable: bool) -> None:
    assert (str(failure), failure.unreachable) == (text, unreachable)


def test_ok_is_the_plain_answer() -> None:
    assert HttpResponse(200) == OK


def test_no_secret_is_shown() -> None:
    endpoint = Endpoint("https://x", "ca", proxy="http://SECRET@proxy")
    shown = repr((HttpRequest(endpoint, "/SECRET", ("a: SECRET",), b"SECRET"), HttpResponse(400, b"SECRET")))
    assert "SECRET" not in shown
