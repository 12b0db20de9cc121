"""What refusals of push providers mean to an operator, and what to do: by the provider's own word, else by status.

Sources: Apple, "Handling notification responses from APNs"; Firebase, "ErrorCode", google.rpc.Code; RFC 6749, section
5.2; RFC 8030, 8292.
"""

from typing import Final

Meaning = tuple[str, str]  # what it means, and the cure

_REPORT: Final = "this is a fault of ntf-relay: please report it, with this output"
_APP: Final = "have the app register again; the relay gives such a token up by itself"
_WAIT: Final = "wait; the relay tries again by itself. If it lasts, look at the provider's status page"
_TOPIC: Final = "set [apns] topic to the bundle id of the app"
_IDS: Final = "set [apns] key_id and team_id to those of key_file (developer.apple.com: Keys, Membership)"
_CERTIFICATE: Final = "renew it at Apple, for the app of [apns] topic, and set [apns] certificate_file to it"
_CLOCK: Final = "set this machine's clock: `timedatectl set-ntp true`"
_ROLE: Final = (
    "give the service account the role Firebase Cloud Messaging API Admin, and turn the Firebase Cloud Messaging API"
    " (V1) on, in the project of service_account_file"
)
_VAPID: Final = (
    "have the app subscribe anew with the key that `ntf-server vapid` prints; older keys: [web_push] old_key_files"
)

APNS: Final[dict[str, Meaning]] = {
    "BadDeviceToken": (
        "Apple knows no such device token at this host",
        "apps that Xcode installed have tokens of --provider apns-sandbox, those of TestFlight and the App Store of"
        f" --provider apns; if it is the right one, {_APP}",
    ),
    "DeviceTokenNotForTopic": ("the device token is of another app than the topic", _TOPIC),
    "ExpiredToken": ("the device token is over", _APP),
    "Unregistered": ("the app was removed from the device, or has another token by now", _APP),
    "InvalidProviderToken": (
        "Apple takes no JWT of this key with these ids: one of them is not the key's, or the key was revoked",
        f"{_IDS}; if the key was revoked there, make a new one and set [apns] key_file",
    ),
    "ExpiredProviderToken": ("to Apple the JWT, which was just made, is too old", _CLOCK),
    "MissingProviderToken": ("Apple saw neither a JWT nor a client certificate", _IDS),
    "BadEnvironmentKeyIdInToken": (
        "the key is for the other of Apple's environments",
        "make a key for both, Sandbox & Production, at Apple, or push to the one that it is for",
    ),
    "UnrelatedKeyIdInToken": ("the key is for other topics", "make a key at Apple that is for [apns] topic"),
    "BadTopic": ("Apple takes no such topic", _TOPIC),
    "MissingTopic": ("the certificate is for more than one topic, and none was named", _TOPIC),
    "TopicDisallowed": ("this team may not push to this topic", f"{_TOPIC}, and see that it has push notifications on"),
    "BadCertificate": ("Apple does not take the client certificate", _CERTIFICATE),
    "BadCertificateEnvironment": ("the client certificate is for the other of Apple's environments", _CERTIFICATE),
    "Forbidden": ("Apple does not let this key or certificate push", f"{_IDS}; or {_CERTIFICATE}"),
    "TooManyProviderTokenUpdates": (
        "new JWTs of this key came within 20 minutes, from here or another server: tries of push-test count",
        "wait for 20 minutes; give each server a key of its own",
    ),
    "TooManyRequests": ("too many pushes went to this device token", _WAIT),
    "IdleTimeout": ("Apple closed a connection that was idle", _WAIT),
}
FCM: Final[dict[str, Meaning]] = {
    "UNREGISTERED": ("the app was removed from the device, or has another token by now", _APP),
    "SENDER_ID_MISMATCH": (
        "the device token is of another Firebase project than the service account",
        "give the account of the project in the app's google-services.json as [fcm] service_account_file",
    ),
    "INVALID_ARGUMENT": (
        "this is no device token of FCM, or Google does not like the message",
        f"give the token as FirebaseMessaging.getToken() gives it; {_APP}",
    ),
    "UNAUTHENTICATED": (
        "Google does not take the access token that it granted",
        "is the Firebase Cloud Messaging API (V1) on in this project? Make a new key of the service account",
    ),
    "PERMISSION_DENIED": ("the service account may not send messages of this project", _ROLE),
    "NOT_FOUND": ("there is no such project", "give a service account of the app's project, as Google made the file"),
    "THIRD_PARTY_AUTH_ERROR": (
        "the device is Apple's or a browser, and the project has no key for it",
        "register Apple's devices as provider AP, which is pushed to without Google",
    ),
    "QUOTA_EXCEEDED": ("the project, or this device, gets too many messages", _WAIT),
}
OAUTH: Final[dict[str, Meaning]] = {
    "invalid_grant": (
        "Google grants no access token: the key or the account was deleted, or this machine's clock is wrong",
        f"{_CLOCK}; else make a new key of the service account, and set [fcm] service_account_file to it",
    ),
    "invalid_scope": ("the service account may not send messages", _ROLE),
    "unauthorized_client": ("the service account may not send messages", _ROLE),
    "access_denied": ("the service account may not send messages", _ROLE),
    "invalid_client": ("Google knows no such service account", "make a new key of it, and set service_account_file"),
}
WEB_PUSH: Final[dict[str, Meaning]] = {
    "another key": ("the subscription is for another VAPID key", _VAPID),
    "404": ("the push service knows no such subscription", "have the app subscribe anew; such a token is given up"),
    "410": ("the subscription is over", "have the app subscribe anew; such a token is given up"),
    "400": ("the push service does not like the request", f"is the endpoint whole? If it is, {_REPORT}"),
    "401": ("the push service does not take our VAPID signature", f"{_VAPID}; {_CLOCK}"),
    "403": ("the push service does not let us push to this subscription", f"{_VAPID}; {_CLOCK}"),
    "406": ("too many pushes came to it", _WAIT),
    "413": ("the push is too large for this push service", _REPORT),
}
_UNKNOWN: Final = ("the provider says no more", "look its word up in the provider's documentation")
_BY_STATUS: Final[dict[int, Meaning]] = {
    429: ("too many pushes came", _WAIT),
    401: ("the provider does not take our credentials", "are the keys of the configuration those of this app?"),
    403: ("the provider does not take our credentials", "are the keys of the configuration those of this app?"),
    404: ("nothing is at this address", "is [apns], [fcm] host and port, or the endpoint, right?"),
}


def explain(words: dict[str, Meaning], status: int, word: str) -> Meaning:
    """`words`: of a provider; `word`: its own."""
    if (known := words.get(word) or words.get(str(status))) is not None:
        return known
    if status >= 500:
        return "the provider is in trouble", _WAIT
    if 300 <= status < 400:
        return "it leads elsewhere, where pushes do not follow", "give the address that it leads to"
    return _BY_STATUS.get(status, _UNKNOWN)
