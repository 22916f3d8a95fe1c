from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.settings import load_settings, parse_settings

MINIMAL = {"models": [{"id": "m", "path": "/models/m"}]}
ADMIN = {"name": "ops", "scope": "admin"}


def keys(*entries: dict[str, str]) -> dict[str, Any]:
    return {"auth": {"keys": [{"sha256": "0" * 64} | entry for entry in entries]}}


def test_a_minimal_tree_has_defaults_for_all_else():
    settings = parse_settings(MINIMAL)
    assert settings.fallback_model == "m"
    assert settings.http.port == 8000
    assert not settings.auth.enabled


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"modles": []}, "modles: no such setting"),
        ({"http": {"prot": 1}}, "http.prot: no such setting"),
        ({"http": {"port": 99999}}, "http.port"),
        ({"models": []}, "models: Tuple should have at least 1 item"),
        ({"models": [{"id": "m"}]}, "models.0.path: is required"),
        ({"models": [{"id": "m", "path": "x", "max_queued": 0}]}, "models.0.max_queued"),
        ({"dispatch": {"spread": float("inf")}}, "dispatch.spread: Input should be a finite"),
        ({"placement": None}, "placement: takes settings of its own"),
        ({"models": [{"id": "auto", "path": "x"}]}, "'auto' is reserved"),
        ({"models": [{"id": "a/b", "path": "x"}]}, "models.0.id"),
        ({"models": MINIMAL["models"] * 2}, "share an id"),
        ({"default_model": "other"}, "'other' is not one of"),
        ({"http": {"allowed_hosts": ["https://a.example"]}}, "http.allowed_hosts.0"),
        ({"http": {"cors": {"origins": ["*"]}}}, "http.cors.origins.0"),
        (
            {"models": [{"id": "m", "path": "x", "server_args": {"api_key": ["k"], "port": 1}}]},
            "models.0.server_args: api_key: has no effect behind the endpoint; set auth.enabled",
        ),
        (keys({"name": "x"}, {"name": "x"}), "auth: keys: 'x' has no owner, and another key"),
        (keys({"name": "search"}, {"name": "b", "owner": "search"}), "set owner: 'search' on each"),
        (keys({"name": "search"}, {"name": "b", "owner": "search", "scope": "admin"}), "'search'"),
        (keys(ADMIN, ADMIN), "set owner: 'admin:ops' on each"),
        (keys({"name": "admin:ops"}), "auth.keys.0: name 'admin:ops': what begins with 'admin:'"),
        (keys({"name": "x", "owner": "admin:ops"}), "auth.keys.0: owner 'admin:ops'"),
        (
            {"models": [{"id": "m", "path": "x", "lora": {"slots": 9, "host_entries": 3}}]},
            "host_entries must be at least slots",
        ),
    ],
)
def test_a_wrong_setting_is_named(change, named):
    with pytest.raises(ConfigError, match=r"\S+") as refused:
        parse_settings(MINIMAL | change)
    assert named in refused.value.message


def test_keys_that_say_so_are_of_one_tenant():
    """An admin's too, whose old and new key are both good while they are exchanged."""
    of_one = ADMIN | {"owner": "admin:ops"}
    tree = keys({"name": "x", "owner": "x"}, {"name": "x", "owner": "x"}, of_one, of_one)
    tenants = [key.tenant for key in parse_settings(MINIMAL | tree).auth.keys]
    assert tenants == ["x", "x", "admin:ops", "admin:ops"]


def test_a_key_where_its_hash_belongs_is_not_repeated():
    with pytest.raises(ConfigError, match=r"auth\.keys\.0\.sha256") as refused:
        parse_settings(MINIMAL | keys({"name": "x", "sha256": "rh-secret"}))
    assert "secret" not in refused.value.message


def test_names_of_hosts_are_taken_however_they_are_written():
    http = {
        "allowed_hosts": ["LLM.example.com", "*.Example.COM"],
        "cors": {"origins": ["HTTPS://App.example.com"]},
    }
    settings = parse_settings(MINIMAL | {"http": http}).http
    assert settings.allowed_hosts == ("llm.example.com", "*.example.com")
    assert settings.cors.origins == ("https://app.example.com",)


def test_only_what_is_wrong_is_named():
    with pytest.raises(ConfigError) as refused:
        parse_settings({"models": [{"id": "m"}]})
    assert refused.value.message == "settings: models.0.path: is required"


def test_the_environment_wins_over_the_file(monkeypatch, tmp_path: Path):
    file = tmp_path / "roundhouse.yaml"
    file.write_text("models: [{id: m, path: /m}]\nhttp: {port: 8001, host: 0.0.0.0}\n")
    monkeypatch.setenv("ROUNDHOUSE_HTTP__PORT", "9001")
    settings = load_settings(file)
    assert (settings.http.port, settings.http.host) == (9001, "0.0.0.0")


def test_variables_are_replaced(monkeypatch):
    monkeypatch.setenv("MODELS", "/srv")
    monkeypatch.delenv("ELSEWHERE", raising=False)
    tree = {"models": [{"id": "m", "path": "${MODELS}/m/${ELSEWHERE:-here}"}]}
    assert parse_settings(tree).models[0].path == "/srv/m/here"
    with pytest.raises(ConfigError, match="ELSEWHERE is not set"):
        parse_settings({"models": [{"id": "m", "path": "${ELSEWHERE}"}]})


@pytest.mark.parametrize("content", ["- a\n- list\n", "{unclosed", "just words"])
def test_a_file_that_is_no_tree_is_refused(tmp_path: Path, content):
    file = tmp_path / "roundhouse.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"roundhouse\.yaml"):
        load_settings(file)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_settings(tmp_path / "nowhere.yaml")


def test_preloaded_folders_are_relative_to_the_file(tmp_path: Path):
    file = tmp_path / "roundhouse.yaml"
    file.write_text("models: [{id: m, path: /m}]\npreload: [adapters/a, /abs/b]\n")
    assert load_settings(file).preload == (str(tmp_path / "adapters/a"), "/abs/b")


@pytest.mark.parametrize("name", ["roundhouse.yaml", "roundhouse-cuda.yaml"])
def test_the_demo_settings_are_valid(name):
    settings = load_settings(Path(__file__).parent.parent / "examples" / name)
    assert settings.models[0].replicas == 2
    assert all((Path(p) / "adapter_config.json").is_file() for p in settings.preload)
    assert len(settings.preload) >= 12
