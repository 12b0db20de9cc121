"""Mock push services for tests and demonstrations: real sockets, TLS, HTTP/2 and HTTP/1.1."""

from ntf_server.testing.apns import MockApns, Push, Rejection
from ntf_server.testing.device import Device
from ntf_server.testing.ece import DecryptionError
from ntf_server.testing.endpoint import Counters, Options, Request
from ntf_server.testing.faults import Answer, CutTls, Delay, Fault, GoAway, RstStream, Script, Silence
from ntf_server.testing.fcm import MockFcm
from ntf_server.testing.fcm_message import FcmMessage, fcm_error
from ntf_server.testing.google import grant_error
from ntf_server.testing.http2 import Http2Server
from ntf_server.testing.tls import TlsFiles, throwaway_tls
from ntf_server.testing.webpush import MockWebPush, Subscription, WebPushMessage

__all__ = [
    "Answer",
    "Counters",
    "CutTls",
    "DecryptionError",
    "Delay",
    "Device",
    "Fault",
    "FcmMessage",
    "GoAway",
    "Http2Server",
    "MockApns",
    "MockFcm",
    "MockWebPush",
    "Options",
    "Push",
    "Rejection",
    "Request",
    "RstStream",
    "Script",
    "Silence",
    "Subscription",
    "TlsFiles",
    "WebPushMessage",
    "fcm_error",
    "grant_error",
    "throwaway_tls",
]
