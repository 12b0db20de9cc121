"""Mock push services for tests and demonstrations: real sockets, TLS and HTTP/2."""

from ntf_server.testing.apns import MockApns, Push, Rejection
from ntf_server.testing.endpoint import Counters, Options, Request
from ntf_server.testing.faults import Answer, CutTls, Delay, Fault, GoAway, RstStream, Script, Silence
from ntf_server.testing.http2 import Http2Server
from ntf_server.testing.tls import TlsFiles, throwaway_tls

__all__ = [
    "Answer",
    "Counters",
    "CutTls",
    "Delay",
    "Fault",
    "GoAway",
    "Http2Server",
    "MockApns",
    "Options",
    "Push",
    "Rejection",
    "Request",
    "RstStream",
    "Script",
    "Silence",
    "TlsFiles",
    "throwaway_tls",
]
