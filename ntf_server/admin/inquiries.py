"""What operators ask of a running relay about registrations, and have it delete: commands of the admin socket."""

from collections.abc import Mapping
from functools import partial

from ntf_server.admin import tokens
from ntf_server.admin.socket import Handler
from ntf_server.store.contract import Store


def inquiries(store: Store) -> Mapping[str, Handler]:
    """By name."""
    return {
        tokens.LIST: partial(tokens.on_list, store),
        tokens.SHOW: partial(tokens.on_show, store),
        tokens.PURGE: partial(tokens.on_purge, store),
    }
