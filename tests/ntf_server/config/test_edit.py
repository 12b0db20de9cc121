"""A setting is written into the file, and nothing else in it changes; what cannot be done so is left alone."""

import tomllib

import pytest

from ntf_server.config.edit import EditError, edited

NEW = {"key_file": "new.key", "old_key_files": ["a.key", "b.key"]}
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
