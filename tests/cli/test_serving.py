"""Are the options of a server read as they are written, and keys that could be guessed refused?"""

import builtins

import pytest

from moesaic.cli.serving import entry_of, extra, key_in, sized
from moesaic.errors import MoesaicError, RecipeError

KEY = "0123456789abcdef"


def test_the_key_of_a_file_comes_before_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("MOESAIC_API_KEY", raising=False)
    assert entry_of(None, [], [], None).key is None and entry_of(None, [], [], None).body == 1 << 20
    monkeypatch.setenv("MOESAIC_API_KEY", f"{KEY}-of-the-environment")
    assert entry_of(None, [], [], None).key == f"{KEY}-of-the-environment"
    (tmp_path / "key").write_text(f"\n{KEY}\n")
    found = entry_of(tmp_path / "key", ["Models.Example"], ["https://a.example"], 5000)
    assert (found.key, found.hosts, found.origins, found.body) == (
        KEY,
        ("models.example",),
        ("https://a.example",),
        5000,
    )


@pytest.mark.parametrize("key", ["", KEY[:-1], f"{KEY[:9]} {KEY}", f"{KEY}ü"])
def test_a_key_that_could_be_guessed_or_not_be_sent_is_refused_without_showing_it(key, tmp_path):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    with pytest.raises(RecipeError, match="api_key_file: not an API key; expected 16 or more ASCII") as caught:
        entry_of(tmp_path / "key", [], [], None)
    assert not key or key not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match="nowhere: the file of the key cannot be read"):
        key_in(tmp_path / "nowhere")


def test_sizes_have_units():
    assert sized(None, "cache") is None and sized("2MB", "body") == 2_000_000
    with pytest.raises(RecipeError, match="cache: wrong size"):
        sized("17", "cache")


def test_without_the_extra_the_error_names_it(monkeypatch):
    def missing(name, *rest):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.raises(MoesaicError, match=r"no fastapi; install the extra: pip install 'moesaic\[serve\]'"), extra():
        monkeypatch.setattr(builtins, "__import__", missing)
        try:
            import fastapi  # noqa: F401
        finally:
            monkeypatch.undo()


def test_a_server_without_a_key_listens_nowhere_else(moesaic):
    code, _, err = moesaic("serve", "shipped:tiny", "--host", "0.0.0.0")
    assert code == 2 and "error: --host: only this machine may ask a server without a key" in err
    code, _, err = moesaic("serve", "shipped:tinny")
    assert code == 4 and "no such model is shipped" in err


def test_a_server_is_refused_as_other_verbs_where_a_model_has_no_experts_to_fetch(moesaic):
    code, _, err = moesaic("serve", "shipped:tiny", "--ram", "2GB")
    assert code == moesaic("generate", "shipped:tiny", "x", "--ram", "2GB")[0] == 2
    assert "ram: has no meaning here; only a mixture has decisions to trace" in err
