from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from infra.settings import Settings, SettingsError, variable


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory and none of our variables."""
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_defaults_are_the_contracts() -> None:
    settings = Settings()
    assert settings.nats_url is None
    assert settings.data_dir == Path("data")
    assert (settings.port, settings.gateway_port) == (4222, 8080)
    assert (settings.replicas, settings.partitions, settings.window_size) == (1, 1, 50)
    assert settings.max_content_bytes == 262_144
    assert settings.messages_per_minute is None
    assert settings.inactive_after == timedelta(hours=24)
    assert settings.sync == "always"
    assert set(settings.sources.values()) == {"default"}


def test_a_flag_beats_the_environment_beats_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "convo.toml").write_text("port = 1\nwindow_size = 2\nreplicas = 3\n")
    monkeypatch.setenv("CONVO_PORT", "4")
    monkeypatch.setenv("CONVO_WINDOW_SIZE", "5")
    settings = Settings(port=6, data_dir=None)
    assert (settings.port, settings.window_size, settings.replicas) == (6, 5, 3)
    assert settings.sources["port"] == "flag"
    assert settings.sources["window_size"] == "environment"
    assert settings.sources["replicas"] == "convo.toml"
    assert settings.sources["data_dir"] == "default"


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVO_NATS_URL", "")
    assert Settings().sources["nats_url"] == "default"


def test_the_file_takes_the_variables_own_names(tmp_path: Path) -> None:
    (tmp_path / "convo.toml").write_text("CONVO_PORT = 7\n")
    assert Settings().port == 7


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86_400), ("90s", 90), ("1h30m", 5_400), ("7d", 604_800), ("1.5s", 1.5), ("60", 60)],
)
def test_durations(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("CONVO_INACTIVE_AFTER", text)
    assert Settings().inactive_after == timedelta(seconds=seconds)


def test_sync_is_always_or_a_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVO_SYNC", "2m")
    assert Settings().sync == timedelta(minutes=2)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CONVO_PORT", "abc", "integer"),
        ("CONVO_PORT", "70000", "65535"),
        ("CONVO_WINDOW_SIZE", "0", "greater than or equal to 1"),
        ("CONVO_INACTIVE_AFTER", "soon", "such as 24h"),
        ("CONVO_INACTIVE_AFTER", "0s", "above zero"),
        ("CONVO_SYNC", "never", "always"),
        ("CONVO_LOG", "xml", "'text' or 'json'"),
        ("CONVO_NATS_URL", "localhost:4222", "nats://HOST:PORT"),
        ("CONVO_NATS_CREDS", "nowhere.creds", "there is no file nowhere.creds"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        Settings()
    message = str(refused.value)
    assert message.startswith(f"{name} = {value}: ")
    assert says in message
    assert "\n" not in message


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "convo.toml").write_text("prot = 1\n")
    with pytest.raises(SettingsError, match=r"prot \(in convo.toml\) is no setting"):
        Settings()


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "convo.toml").write_text("port = \n")
    with pytest.raises(SettingsError, match=r"convo.toml cannot be read"):
        Settings()


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("-")
    with pytest.raises(SettingsError, match="go together"):
        Settings(nats_tls_cert=tmp_path / "cert.pem")


def test_what_is_in_force_is_shown_without_passwords() -> None:
    shown = {each.name: each for each in Settings(nats_url="nats://ada:secret@db:4222").in_force()}
    assert shown["nats_url"] == ("nats_url", "nats://***@db:4222", "flag")
    assert shown["inactive_after"].value == "86400s"
    assert shown["nats_creds"].value == "-"


def test_a_child_process_gets_the_same_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "convo.toml").write_text('inactive_after = "1h"\ncache_bytes = "1MiB"\n')
    settings = Settings(port=6, data_dir=Path("here"), sync="2m", log="json")
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "convo.toml").unlink()
    child = Settings()
    assert child.model_dump() == {**settings.model_dump(), "data_dir": tmp_path / "here"}
    assert set(child.sources.values()) == {"default", "environment"}
