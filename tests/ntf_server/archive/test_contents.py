"""Which files a backup holds."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec

from ntf_server.archive.contents import files, variables
from ntf_server.config.files import load_store
from ntf_server.config.identity_files import FILES, MASTER_KEY
from ntf_server.config.settings import Settings
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


def named(kind: type[msgspec.Struct], section: str = "") -> Iterator[tuple[str, str, bool]]:
    """(section, key, whether it is a list) of each setting that names a file."""
    for field in msgspec.structs.fields(kind):
        inner = [
            t for t in (field.type, *get_args(field.type)) if isinstance(t, type) and issubclass(t, msgspec.Struct)
        ]
        if inner:
            yield from named(inner[0], f"{section}.{field.name}".lstrip("."))
        elif re.search(r"_files?$", field.name):
            yield section, field.name, field.name.endswith("s")


def test_every_setting_that_names_a_file_is_thought_of(tmp_path: Path) -> None:
    lines, names = [], set()
    for number, (section, key, is_list) in enumerate(named(Settings)):
        name = f"file-{number}"
        lines += [f"[{section}]", f"{key} = {json.dumps([name] if is_list else name)}"]
        if section == "apns.test":
            lines.append('host = "localhost"')
        if key != "master_key_file":
            names.add(name)
    text: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("["):
            at = text.setdefault(line, [])
        elif line not in at:
            at.append(line)
    (tmp_path / "ntf-server.toml").write_text("\n".join(line for head, of in text.items() for line in (head, *of)))
    settings = load_settings(tmp_path, {})
    assert len(names) > 8
    assert names == {name for name, _ in files(tmp_path, settings, tmp_path / "x.db")} - {"ntf-server.toml"}


def test_the_tls_files_of_a_redis(tmp_path: Path) -> None:
    url = "rediss://relay.example?ca_file=redis-ca.pem&cert_file=redis.pem&key_file=redis.key"
    (tmp_path / "ntf-server.toml").write_text(f'[store]\nurl = "{url}"\n')
    settings = load_settings(tmp_path, {})
    names = {name for name, _ in files(tmp_path, settings, load_store(tmp_path, {}))}
    assert names == {"ntf-server.toml", "redis-ca.pem", "redis.pem", "redis.key"}


def test_names_of_variables_and_not_what_they_hold() -> None:
    environ = {"NTF_SERVER__STORE__MASTER_KEY": "secret", "PATH": "/bin", "NTF_SERVER__LOG__LEVEL": "info"}
    assert variables(environ) == ("NTF_SERVER__LOG__LEVEL", "NTF_SERVER__STORE__MASTER_KEY")
