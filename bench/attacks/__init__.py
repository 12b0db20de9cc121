"""What strangers do to a relay: see `ATTACKS`."""

from collections.abc import Mapping
from typing import Final

from attacks import connections, push_services, registrations, smp_servers
from attacks.base import Attack

ATTACKS: Final[Mapping[str, type[Attack]]] = {
    "tarpit": smp_servers.TarpitServers,
    "refusing": smp_servers.RefusingPorts,
    "hang": smp_servers.ConfirmThenHang,
    "silent-smp": smp_servers.SilentNames,
    "spellings": smp_servers.SpellingsOfOne,
    "silent-push": push_services.SilentPushNames,
    "silent-origins": push_services.SilentOrigins,
    "slow-origins": push_services.SlowOrigins,
    "busy-origins": push_services.BusyOrigins,
    "poison": push_services.PoisonedAnswers,
    "tnew": registrations.TnewFlood,
    "tnew-many": registrations.TnewFloodOfMany,
    "carousel": registrations.Carousel,
    "spam": registrations.DeviceSpam,
    "spam-many": registrations.DeviceSpamOfMany,
    "idle": connections.Idle,
    "idle-many": connections.IdleOfMany,
    "half-open": connections.HalfOpen,
    "half-open-many": connections.HalfOpenOfMany,
    "flood": connections.Flood,
    "flood-many": connections.FloodOfMany,
    "commands": connections.Commands,
    "commands-many": connections.CommandsOfMany,
    "key-updates": connections.KeyUpdates,
}
