"""Sections show nothing of what they hold, refuse what they do not know, and cannot be changed."""

import msgspec
import pytest

from ntf_server.config.settings import Settings


def sections() -> list[tuple[str, msgspec.Struct]]:
    settings = Settings()
    return [(name, getattr(settings, name)) for name in settings.__struct_fields__]


@pytest.mark.parametrize(("name", "section"), sections(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_section_shows_no_value(name: str, section: msgspec.Struct) -> None:
    assert repr(section) == f"{type(section).__name__}(...)"
    with pytest.raises(AttributeError):
        setattr(section, section.__struct_fields__[0], "another")


@pytest.mark.parametrize(("name", "section"), sections(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_section_refuses_other_keys(name: str, section: msgspec.Struct) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"unknown field `unknown_key` - at `\$\.{name}`"):
        msgspec.convert({name: {"unknown_key": 1}}, Settings)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("transport", "port", 65_536),
        ("transport", "port", -1),
        ("metrics", "port", -1),
        ("delivery", "timeout", float("inf")),
        ("delivery", "timeout", float("nan")),
        ("delivery", "timeout", 0.0),
        ("store", "token_ttl", 604_799),
        ("delivery", "message_ttl", 0),
        ("delivery", "in_flight", 0),
        ("subscriber", "audit_period", -1.0),
        ("subscriber", "connecting", 0),
        ("subscriber", "host_mode", "private"),
        ("inactive_clients", "ttl", float("inf")),
        ("log", "level", "loud"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_path(section: str, key: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{section}\.{key}`"):
        msgspec.convert({section: {key: value}}, Settings)
