"""The contact that push services are given has to be a public one."""

import pytest

from ntf_server.config.contact import ContactError, check_contact, is_public_name


@pytest.mark.parametrize(
    "contact",
    [
        "mailto:push@relay.example",
        "mailto:push@relay.example.",
        "mailto:a+b@x.y.example?subject=push",
        "https://relay.example",
        "https://relay.example:8443/contact?x#y",
        "https://xn--bcher-kva.example/",
    ],
)
def test_public_ones(contact: str) -> None:
    check_contact(contact)


@pytest.mark.parametrize(
    ("contact", "what"),
    [
        ("", "give a mailto: or https: URL"),
        ("push@relay.example", "give a mailto: or https: URL"),
        ("http://relay.example", "give a mailto: or https: URL"),
        ("tel:+123", "give a mailto: or https: URL"),
        ("mailto:b\xfccher@relay.example", "give a mailto: or https: URL"),
        ("mailto:a b@relay.example", "give a mailto: or https: URL"),
        ("mailto:a@b@relay.example", "give one address"),
        ("mailto:a@relay.example,b@relay.example", "give one address"),
        ("mailto:a@relay.example;b@relay.example", "give one address"),
        ("mailto:relay.example", "is no mail address"),
        ("mailto:@relay.example", "is no mail address"),
        ("mailto:postmaster@localhost", "localhost is no public DNS name"),
        ("mailto:postmaster@192.0.2.7", "192.0.2.7 is no public DNS name"),
        ("mailto:postmaster@8.8.8.8", "8.8.8.8 is no public DNS name"),
        ("mailto:postmaster@2001:db8::7", "is no public DNS name"),
        ("mailto:postmaster@[2001:db8::7]", "is no public DNS name"),
        ("mailto:postmaster@relay", "relay is no public DNS name"),
        ("mailto:postmaster@relay.local", "relay.local is no public DNS name"),
        ("mailto:postmaster@relay.LOCAL.", "is no public DNS name"),
        ("mailto:postmaster@" + "a" * 56 + ".onion", ".onion is no public DNS name"),
        ("mailto:postmaster@relay.internal", "is no public DNS name"),
        ("mailto:postmaster@relay..example", "is no public DNS name"),
        ("mailto:postmaster@-relay.example", "is no public DNS name"),
        ("https://localhost", "localhost is no public DNS name"),
        ("https://[::1]/", "is no public DNS name"),
        ("https://[::1/", "no host is no public DNS name"),
        ("https://", "no host is no public DNS name"),
        ("https://1.2.3/", "is no public DNS name"),
    ],
)
def test_others(contact: str, what: str) -> None:
    with pytest.raises(ContactError) as e:
        check_contact(contact)
    assert what in str(e.value)


def test_names() -> None:
    assert is_public_name("ntf.example.org")
    assert not any(
        map(is_public_name, ("", ".", "ntf", "ntf.invalid", "ntf.test", "127.1", "a_b.example", "x" * 64 + ".org"))
    )
