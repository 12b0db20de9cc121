"""What URLs of Redis say, and that none of it tells a password."""

from pathlib import Path

import pytest

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.redis.url import (
    NOBODY,
    Endpoint,
    Kind,
    Login,
    RedisUrl,
    TlsOptions,
    is_redis_url,
    parse_redis_url,
)

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://r", RedisUrl(Kind.ALONE, (Endpoint("r", 6379),))),
        ("redis://r/", RedisUrl(Kind.ALONE, (Endpoint("r", 6379),))),
        ("redis://10.0.0.1:7000/3", RedisUrl(Kind.ALONE, (Endpoint("10.0.0.1", 7000),), database=3)),
        ("redis://[::1]:7000", RedisUrl(Kind.ALONE, (Endpoint("::1", 7000),))),
        ("redis://[::1]", RedisUrl(Kind.ALONE, (Endpoint("::1", 6379),))),
        ("redis://u:p@r", RedisUrl(Kind.ALONE, (Endpoint("r", 6379),), Login("u", "p"))),
        ("redis://:p%40%2F%3F%23%25@r", RedisUrl(Kind.ALONE, (Endpoint("r", 6379),), Login("", "p@/?#%"))),
        ("redis://u:a:b@r", RedisUrl(Kind.ALONE, (Endpoint("r", 6379),), Login("u", "a:b"))),
        ("redis://r?prefix=relay:2", RedisUrl(Kind.ALONE, (Endpoint("r", 6379),), prefix="relay:2")),
        ("rediss://r", RedisUrl(Kind.ALONE, (Endpoint("r", 6379),), tls=TlsOptions())),
        (
            "rediss://r/1?ca_file=ca.pem&cert_file=/etc/c.pem&key_file=k.pem",
            RedisUrl(
                Kind.ALONE,
                (Endpoint("r", 6379),),
                database=1,
                tls=TlsOptions(Path("/conf/ca.pem"), Path("/etc/c.pem"), Path("/conf/k.pem")),
            ),
        ),
        ("unix:///run/redis.sock", RedisUrl(Kind.ALONE, (Endpoint("/run/redis.sock", 0),))),
        (
            "unix://u:p@/run/my%20redis.sock?db=2",
            RedisUrl(Kind.ALONE, (Endpoint("/run/my redis.sock", 0),), Login("u", "p"), database=2),
        ),
        (
            "redis+sentinel://u:p@a,b:1,[::1]/relay/2?sentinel_user=s&sentinel_password=q",
            RedisUrl(
                Kind.SENTINEL,
                (Endpoint("a", 26379), Endpoint("b", 1), Endpoint("::1", 26379)),
                Login("u", "p"),
                Login("s", "q"),
                "relay",
                2,
            ),
        ),
        (
            "rediss+sentinel://a/relay",
            RedisUrl(Kind.SENTINEL, (Endpoint("a", 26379),), service="relay", tls=TlsOptions()),
        ),
        ("redis+cluster://a:1,b", RedisUrl(Kind.CLUSTER, (Endpoint("a", 1), Endpoint("b", 6379)))),
        ("rediss+cluster://a", RedisUrl(Kind.CLUSTER, (Endpoint("a", 6379),), tls=TlsOptions())),
    ],
)
def test_what_a_url_says(url: str, expected: RedisUrl) -> None:
    assert is_redis_url(url)
    assert parse_redis_url(url, Path("/conf")) == expected


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("sqlite:///relay.db", "begins with none of redis://"),
        ("redis:r", "begins with none"),
        ("redis+sentinels://a/s", "begins with none"),
        ("redis://", "hosts as HOST"),
        ("redis://:6379", "hosts as HOST"),
        ("redis://::1", "hosts as HOST"),
        ("redis://[::1", "hosts as HOST"),
        ("redis://[host]:1", "hosts as HOST"),
        ("redis://a b", "hosts as HOST"),
        ("redis://r:http", "port"),
        ("redis://r:65536", "port"),
        ("redis://r:-1", "port"),
        ("redis://r/zero", "database"),
        ("redis://r/1/2", "database"),
        ("redis://a,b", "more than one host"),
        ("redis+cluster://a,b/1", "a cluster has but one"),
        ("redis+sentinel://a,b", "names no service"),
        ("redis+sentinel://a,b//1", "names no service"),
        ("unix://run/redis.sock", "unix:///PATH"),
        ("unix://", "unix:///PATH"),
        ("redis://r?db=1", "an option other than prefix"),
        ("redis://r?ca_file=x", "an option other than prefix"),
        ("rediss://r?sentinel_user=x", "an option other than prefix, ca_file, cert_file, key_file$"),
        ("rediss://r?key_file=x", "key_file without a cert_file"),
        ("redis+sentinel://a/s?sentinel_user=x", "without a sentinel_password"),
        ("redis://r?prefix=", "without a value"),
        ("redis://r?prefix=a&prefix=b", "twice"),
        ("redis://r?prefix", "NAME=VALUE"),
        ("redis://r?prefix={x}", "prefix with other characters"),
        ("redis://r#x", "%23"),
        ("redis://u@r", "a user without a password"),
        ("redis://:%ff@r", "not UTF-8"),
        ("redis://r?prefix=%ff", "in UTF-8"),
        ("redis://r\x00", "cannot be printed"),
        ("redis://\udcff", "cannot be printed"),
        ("unix:///run/%0Aredis", "unix:///PATH"),
        ("rediss://r?ca_file=%00", "a file with characters"),
        ("redis+sentinel://a/my%20relay", "names no service"),
    ],
)
def test_what_is_wrong_is_named(url: str, what: str) -> None:
    with pytest.raises(StoreConflictError, match=what) as e:
        parse_redis_url(url)
    assert str(e.value).startswith("the store's url ")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@r",
        f"redis://u:{SECRET}@r/1",
        f"redis+sentinel://:{SECRET}@a,b/relay?sentinel_password={SECRET}",
        f"redis+cluster://:{SECRET}@a,b",
        f"unix://:{SECRET}@/run/redis.sock",
        f"rediss://:{SECRET}@r",
    ],
)
def test_no_text_has_a_password(url: str) -> None:
    parsed = parse_redis_url(url)
    assert SECRET in (parsed.login.password, parsed.sentinel_login.password)
    for text in (repr(parsed), str(parsed), repr(parsed.login), str(parsed.login), f"{parsed.sentinel_login}"):
        assert SECRET not in text


@pytest.mark.parametrize("character", "@/?#:%&=[], ")
@pytest.mark.parametrize("scheme", ["redis", "rediss+sentinel", "redis+cluster", "unix"])
@pytest.mark.parametrize("user", ["", "u"])
def test_no_error_has_a_password_that_is_not_encoded(scheme: str, user: str, character: str) -> None:
    for password in (f"{SECRET}{character}{SECRET}", f"{character}{SECRET}", f"1{character}{SECRET}=x"):
        try:
            parse_redis_url(f"{scheme}://{user}:{password}@host/service")
        except StoreConflictError as e:
            assert SECRET not in str(e)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://u:p@r:6379/0?prefix=x", "redis://r:6379"),
        ("redis://[::1]/1", "redis://[::1]:6379/1"),
        ("redis+sentinel://a,b:1/relay", "redis+sentinel://a:26379,b:1/relay"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock/1"),
    ],
)
def test_what_people_are_told(url: str, name: str) -> None:
    assert str(parse_redis_url(url)) == name


@pytest.mark.parametrize("url", ["sqlite://", "redis", "http://redis://"])
def test_what_is_not_ours(url: str) -> None:
    assert not is_redis_url(url)


def test_nobody_has_no_name() -> None:
    assert (NOBODY.user, NOBODY.password) == ("", "")
