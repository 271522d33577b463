from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import config_values
from node.config import CONFIG_FILE_MAX_BYTES, SETTINGS, Config, load
from node.errors import ErrorCode, NodeError
from node.home import platform_home
from tests.support.fake_node import OTHER_PEER, PEER, RUN


def _load(home: Path, environ: dict[str, str] | None = None, /, **flags: object) -> Config:
    return load({"home": home, **flags}, environ=environ or {}).config


def _refusal(home: Path, environ: dict[str, str] | None = None, /, **flags: object) -> NodeError:
    with pytest.raises(NodeError) as caught:
        _load(home, environ, **flags)
    assert caught.value.code is ErrorCode.USAGE
    return caught.value


def test_nothing_configured_is_the_defaults_at_the_platforms_place() -> None:
    loaded = load({}, environ={})
    assert loaded.config == Config(home=platform_home())
    assert set(loaded.origins.values()) == {"default"}


def test_each_layer_overrides_the_one_below(tmp_path: Path) -> None:
    extra = tmp_path / "extra.toml"
    (tmp_path / "config.toml").write_text("threads = 2\ncapacity = 2\nname = 'a'\nrelay = false\n")
    extra.write_text("threads = 3\ncapacity = 3\nname = 'b'\n")
    environ = {"PARIS_NODE_THREADS": "4", "PARIS_NODE_CAPACITY": "4"}
    loaded = load({"home": tmp_path, "threads": "5"}, environ=environ, config_file=extra)
    config = loaded.config
    assert (config.threads, config.capacity, config.name, config.relay) == (5, 4, "b", False)
    assert loaded.origins["threads"] == "flag --threads"
    assert loaded.origins["capacity"] == "environment PARIS_NODE_CAPACITY"
    assert loaded.origins["name"] == f"file {extra}"
    assert loaded.origins["relay"] == f"file {tmp_path / 'config.toml'}"
    assert loaded.origins["device"] == "default"


def test_home_comes_from_flag_then_environment(tmp_path: Path) -> None:
    environ = {"PARIS_NODE_HOME": str(tmp_path / "b")}
    assert load({}, environ=environ).config.home == tmp_path / "b"
    assert load({"home": tmp_path / "a"}, environ=environ).config.home == tmp_path / "a"


def test_a_home_of_ones_own_keeps_everything_in_one_folder(tmp_path: Path) -> None:
    paths = _load(tmp_path).paths
    assert {paths.config, paths.data, paths.state} == {tmp_path}


def test_only_the_default_api_port_may_fall_back(tmp_path: Path) -> None:
    assert _load(tmp_path).api_port_fallback
    assert not _load(tmp_path, api_port="4180").api_port_fallback


def test_config_file_may_come_from_the_environment(tmp_path: Path) -> None:
    extra = tmp_path / "extra.toml"
    extra.write_text("threads = 3\n")
    assert _load(tmp_path, {"PARIS_NODE_CONFIG": str(extra)}).threads == 3


@pytest.mark.parametrize(
    ("text", "found", "hint"),
    [
        ("thread = 2", "'thread'", "did you mean threads"),
        ("home = '/x'", "'home'", "--home"),
        ("[table]\nthreads = 2", "'table'", "the keys are"),
        ("threads = 0", "threads", "config show"),
        ("threads = true", "threads", "config show"),
        ("threads = ", "not TOML", "api_port"),
        ("threads = 1\nthreads = 2", "not TOML", "api_port"),
        ("\x00", "not TOML", "api_port"),
    ],
)
def test_bad_config_file_is_named_with_its_key(
    tmp_path: Path, text: str, found: str, hint: str
) -> None:
    (tmp_path / "config.toml").write_text(text)
    error = _refusal(tmp_path)
    assert str(tmp_path / "config.toml") in error.message
    assert found in error.message
    assert hint in error.fix


def test_config_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"name = '\xff'")
    assert "not TOML" in _refusal(tmp_path).message


def test_config_file_of_the_largest_size_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("threads = 2\n#".ljust(CONFIG_FILE_MAX_BYTES, "x"))
    assert _load(tmp_path).threads == 2
    file.write_text("threads = 2\n#".ljust(CONFIG_FILE_MAX_BYTES + 1, "x"))
    assert "not a config file" in _refusal(tmp_path).message


def test_named_config_file_must_exist_and_the_homes_need_not(tmp_path: Path) -> None:
    assert load({"home": tmp_path}, environ={}).config.threads == 1
    with pytest.raises(NodeError, match="does not exist") as caught:
        load({"home": tmp_path}, environ={}, config_file=tmp_path / "none.toml")
    assert caught.value.code is ErrorCode.USAGE


def test_a_folder_in_place_of_the_config_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    assert "cannot be read" in _refusal(tmp_path).message


def test_unknown_environment_variable_is_refused(tmp_path: Path) -> None:
    error = _refusal(tmp_path, {"PARIS_NODE_THREAD": "2"})
    assert "PARIS_NODE_THREAD" in error.message
    assert "threads" in error.fix


def test_empty_environment_variable_says_nothing(tmp_path: Path) -> None:
    assert _load(tmp_path, {"PARIS_NODE_THREADS": ""}).threads == 1


@pytest.mark.parametrize(("text", "found"), [("'Auto'", "auto"), ("2", "2"), ("'8'", "8")])
def test_gpus_are_a_number_or_all_there_are(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "config.toml").write_text(f"gpus = {text}\nprecision = 'BF16'\n")
    config = _load(tmp_path)
    assert (config.gpus, config.precision) == (found, "bf16")


@pytest.mark.parametrize("bad", ["0", "65", "all", "1.5", ""])
def test_other_gpus_are_refused(tmp_path: Path, bad: str) -> None:
    (tmp_path / "config.toml").write_text(f"gpus = '{bad}'\n")
    assert "auto, or a whole number from 1 to 64" in _refusal(tmp_path).message


def test_bad_value_names_its_place_and_what_was_expected(tmp_path: Path) -> None:
    error = _refusal(tmp_path, {"PARIS_NODE_DEVICE": "tpu"})
    assert "PARIS_NODE_DEVICE" in error.message
    assert "'tpu'" in error.message
    assert "cuda" in error.message


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("run", RUN, RUN),
        ("peers", f"/ip4/10.0.0.7/tcp/1/p2p/{PEER}", (f"/ip4/10.0.0.7/tcp/1/p2p/{PEER}",)),
        ("peers", [f"/dns4/a-b.example/tcp/65535/p2p/{PEER}"] * 2,
         (f"/dns4/a-b.example/tcp/65535/p2p/{PEER}",)),
        ("peers", f"/ip6/::1/tcp/9/p2p/{PEER}/p2p-circuit/p2p/{OTHER_PEER}",
         (f"/ip6/::1/tcp/9/p2p/{PEER}/p2p-circuit/p2p/{OTHER_PEER}",)),
        ("host_listen", "/ip4/0.0.0.0/tcp/0, /ip6/::/tcp/0",
         ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")),
        ("lan_discovery", "off", False),
        ("relay", True, True),
        ("api_host", "localhost", "127.0.0.1"),
        ("api_port", 0, 0),
        ("api_port", "65535", 65535),
        ("quota_bytes", "20GiB", 20 * 2**30),
        ("quota_bytes", "1.5 GB", 1_500_000_000),
        ("quota_bytes", 10**6, 10**6),
        ("threads", "256", 256),
        ("capacity", 64, 64),
        ("device", "CUDA:1", "cuda:1"),
        ("models", "/srv/models", "/srv/models"),
        ("models", "~/models", str(Path.home() / "models")),
        ("log_level", "DEBUG", "debug"),
        ("name", "x" * 40, "x" * 40),
    ],
)  # fmt: skip
def test_good_value_is_taken(tmp_path: Path, key: str, raw: object, value: object) -> None:
    assert getattr(_load(tmp_path, None, **{key: raw}), key) == value


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        ("run", RUN[:-1]),
        ("run", RUN.upper()),
        ("peers", "/ip4/10.0.0.7/tcp/4101"),
        ("peers", f"/ip4/0.0.0.0/tcp/4101/p2p/{PEER}"),
        ("peers", f"/ip4/10.0.0.7/tcp/0/p2p/{PEER}"),
        ("peers", f"/ip4/10.0.0.7/udp/4101/p2p/{PEER}"),
        ("peers", f"/ip4/10.0.0.7/tcp/4101/p2p/{PEER}x"),
        ("peers", f"/ip4/10.0.0.7/tcp/4101/p2p/{PEER}/p2p-circuit"),
        ("peers", f"10.0.0.7:4101/p2p/{PEER}"),
        ("peers", [f"/ip4/10.0.0.{n}/tcp/1/p2p/{PEER}" for n in range(33)]),
        ("peers", [1]),
        ("peers", 7),
        ("host_listen", "/ip4/0.0.0.0/tcp/65536"),
        ("host_listen", "/ip4/0.0.0/tcp/1"),
        ("host_listen", "/ip6/0.0.0.0/tcp/1"),
        ("host_listen", "/dns4/example/tcp/1"),
        ("host_listen", f"/ip4/0.0.0.0/tcp/1/p2p/{PEER}"),
        ("lan_discovery", "perhaps"),
        ("lan_discovery", 1),
        ("api_host", "0.0.0.0"),  # noqa: S104  # the refusal is the test
        ("api_host", "192.168.1.7"),
        ("api_host", "example.org"),
        ("api_port", 65536),
        ("api_port", -1),
        ("api_port", "4180.0"),
        ("quota_bytes", 10**6 - 1),
        ("quota_bytes", "20 GX"),
        ("quota_bytes", "-1 GB"),
        ("quota_bytes", 1e9),
        ("threads", 257),
        ("threads", "٣"),
        ("capacity", 65),
        ("device", "cuda:"),
        ("models", " "),
        ("models", "~no-such-user/models"),
        ("log_level", "loud"),
        ("name", "x" * 41),
        ("name", "a\x1b[31m"),
        ("name", 7),
    ],
)
def test_bad_value_is_refused(tmp_path: Path, key: str, raw: object) -> None:
    assert f"Bad value for {key}" in _refusal(tmp_path, None, **{key: raw}).message


@given(raw=st.one_of(st.text(max_size=80), st.integers(), st.floats(), st.lists(st.text())))
def test_parsers_take_or_refuse_anything_with_a_value_error(raw: object) -> None:
    parsers = [
        config_values.boolean, config_values.byte_count, config_values.cid, config_values.device,
        config_values.host, config_values.listen_addresses, config_values.peer_addresses,
        config_values.pet_name, config_values.folder, config_values.whole_number(0, 9),
        config_values.choice("a"),
    ]  # fmt: skip
    for parse in parsers:
        with suppress(ValueError):
            parse(raw)


def test_every_setting_is_a_field_and_every_field_a_setting() -> None:
    derived = {"home", "api_port_fallback"}
    assert set(SETTINGS) | derived == set(Config.__dataclass_fields__)


def test_models_lie_in_the_home_unless_said_otherwise(tmp_path: Path) -> None:
    assert Config(home=tmp_path).models_folder == tmp_path / "models"
    assert Config(home=tmp_path, models="/srv/models").models_folder == Path("/srv/models")
