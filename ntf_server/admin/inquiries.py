"""What operators ask of a running relay about devices, subscriptions and SMP servers, and have it delete: commands of
the admin socket.
"""

from collections.abc import Mapping
from functools import partial

from ntf_server.admin import servers, tokens
from ntf_server.admin.socket import Handler
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.contract import Store


def inquiries(store: Store, subscriber: Subscriber) -> Mapping[str, Handler]:
    """By name."""
    return {
        tokens.LIST: partial(tokens.on_list, store),
        tokens.SHOW: partial(tokens.on_show, store),
        tokens.PURGE: partial(tokens.on_purge, store),
        servers.COUNT: partial(servers.on_count, store),
        servers.LOOK: partial(servers.on_look, subscriber),
        servers.SHOW: partial(servers.on_show, store, subscriber),
    }
