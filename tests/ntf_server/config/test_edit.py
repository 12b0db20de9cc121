"""A setting is written into the file, and nothing else in it changes; what cannot be done so is left alone."""

import tomllib
from pathlib import Path

import pytest

from ntf_server.config.edit import EditError, Value, edited, editing, named

NEW: dict[str, Value] = {"key_file": "new.key", "old_key_files": ["a.key", "b.key"]}
SAID = 'key_file = "new.key"\nold_key_files = ["a.key", "b.key"]\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"\n[web_push]\n{SAID}"),
        ("# mine\n[log]\nlevel = 'info'", f"# mine\n[log]\nlevel = 'info'\n\n[web_push]\n{SAID}"),
        (
            "[web_push]  # push\nkey_file = 'a.key'  # first\n# who we are\ncontact = 'x'\n[log]\nkey_file = 1\n",
            f"[web_push]  # push\n{SAID}# who we are\ncontact = 'x'\n[log]\nkey_file = 1\n",
        ),
        (
            "[ web_push ]\nold_key_files = [\n  'a',  # one ]\n  'b'\n]\ncontact = 'x'\r\n[[other]]\n",
            f"[ web_push ]\n{SAID}contact = 'x'\r\n[[other]]\n",
        ),
        ("[web_push]", f"[web_push]\n{SAID}"),
        ("[web_push]\nold_key_files = []", f"[web_push]\n{SAID}"),
    ],
)
def test_what_is_written(before: str, after: str) -> None:
    assert edited(before, "web_push", NEW) == after
    found = tomllib.loads(after)
    assert (found["web_push"]["key_file"], found["web_push"]["old_key_files"]) == ("new.key", ["a.key", "b.key"])
    assert edited(after, "web_push", NEW) == after


@pytest.mark.parametrize(
    "before",
    [
        "web_push.contact = 'x'\n",
        "web_push = {contact = 'x'}\n",
        "[web_push]\n'key_file' = 'x'\n",
        'text = """\n[web_push]\n"""\n',
        "['web_push']\ncontact = 'x'\n",
    ],
)
def test_what_is_written_otherwise_is_left_alone(before: str) -> None:
    with pytest.raises(EditError) as e:
        edited(before, "web_push", NEW)
    assert str(e.value) == '[web_push] key_file = "new.key", old_key_files = ["a.key", "b.key"]'


@pytest.mark.parametrize("name", ['a"b.key', "a\\b.key", "a\tb.key", "ä€.key", "a\x7fb.key"])
def test_odd_names(name: str) -> None:
    assert tomllib.loads(edited("", "web_push", {"key_file": name}))["web_push"]["key_file"] == name


def test_the_file_is_written_when_all_is_ready_and_keeps_its_rights_and_its_link(tmp_path: Path) -> None:
    file, link = tmp_path / "real.toml", tmp_path / "link.toml"
    file.write_bytes(b"\xef\xbb\xbf[log]\n")
    file.chmod(0o640)
    link.symlink_to(file)
    write = editing(link, "log", {"level": "debug"})
    assert file.read_bytes().endswith(b"[log]\n")
    write()
    assert (file.read_text(), file.stat().st_mode & 0o777) == ('[log]\nlevel = "debug"\n', 0o640)
    assert link.is_symlink()


def test_files_are_named_from_the_folder_on(tmp_path: Path) -> None:
    inside = tmp_path / "keys" / "one.key"
    assert (named(inside, tmp_path), named(inside, tmp_path / "other")) == ("keys/one.key", str(inside))
