"""Which files a backup holds."""

from pathlib import Path

from ntf_server.archive.contents import files, variables
from ntf_server.config.files import load_store
from ntf_server.config.identity_files import FILES, MASTER_KEY
from ntf_server.config.source import load_settings


def test_all_that_is_named_and_never_the_master_key(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).touch()
    outside = tmp_path.parent / "AuthKey_ABC123DEFG.p8"
    (tmp_path / "ntf-server.toml").write_text(
        f"""
[apns]
key_file = "{outside}"
[apns.production]
ca_file = "keys/ca.pem"
[fcm]
service_account_file = "./account.json"
[web_push]
key_file = "vapid.key"
old_key_files = ["old/../old.key"]
"""
    )
    settings = load_settings(tmp_path, {})
    found = dict(files(tmp_path, settings, load_store(tmp_path, {})))
    elsewhere = f"elsewhere{outside}"
    named = {elsewhere, "account.json", "keys/ca.pem", "old.key"}
    assert found.keys() == {"ntf-server.toml", *FILES, *named} - {MASTER_KEY}
    assert found[elsewhere] == outside
    assert found["old.key"] == tmp_path / "old.key"


def test_the_tls_files_of_a_redis(tmp_path: Path) -> None:
    url = "rediss://relay.example?ca_file=redis-ca.pem&cert_file=redis.pem&key_file=redis.key"
    (tmp_path / "ntf-server.toml").write_text(f'[store]\nurl = "{url}"\n')
    settings = load_settings(tmp_path, {})
    names = {name for name, _ in files(tmp_path, settings, load_store(tmp_path, {}))}
    assert names == {"ntf-server.toml", "redis-ca.pem", "redis.pem", "redis.key"}


def test_names_of_variables_and_not_what_they_hold() -> None:
    environ = {"NTF_SERVER__STORE__MASTER_KEY": "secret", "PATH": "/bin", "NTF_SERVER__LOG__LEVEL": "info"}
    assert variables(environ) == ("NTF_SERVER__LOG__LEVEL", "NTF_SERVER__STORE__MASTER_KEY")
