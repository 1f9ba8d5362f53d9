"""Reading the configuration: files, drop-ins, annotations, flags, and what is said about mistakes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako import config
from hako.config.settings import SECTIONS, SETTINGS
from hako.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file of the test; not there yet, and not named by the environment."""
    monkeypatch.delenv("HAKO_CONFIG")
    monkeypatch.setattr("hako.paths.config_file", lambda: str(tmp_path / "config.toml"))
    (tmp_path / "config.d").mkdir()
    return tmp_path / "config.toml"


def test_without_files_everything_has_its_default(file: Path) -> None:
    loaded = config.load()
    assert loaded.sandbox.memory == 512 << 20
    assert loaded.sandbox.vcpus == 1
    assert loaded.sandbox.start_timeout == 60
    assert loaded.hypervisor.accelerator == "auto"
    assert loaded.hypervisor.user == "hako-vm"
    assert loaded.image.insecure_registries == ()
    assert loaded.log.max_size == 10 << 20
    assert loaded.values == loaded.origins == {}


def test_a_file_sets_what_it_names(file: Path) -> None:
    file.write_text('[sandbox]\nmemory = "1.5g"\nvcpus = 4\n[image]\ninsecure_registries = ["localhost:5000"]\n')
    loaded = config.load()
    assert loaded.sandbox.memory == 3 << 29
    assert loaded.sandbox.vcpus == 4
    assert loaded.sandbox.start_timeout == 60
    assert loaded.image.insecure_registries == ("localhost:5000",)
    assert loaded.origins == dict.fromkeys(("sandbox.memory", "sandbox.vcpus", "image.insecure_registries"), str(file))


def test_drop_ins_are_read_in_order_and_win(file: Path) -> None:
    file.write_text("[sandbox]\nvcpus = 2\nstart_timeout = 5\n")
    folder = file.parent / "config.d"
    (folder / "20-b.toml").write_text("[sandbox]\nvcpus = 4\n")
    (folder / "10-a.toml").write_text('[sandbox]\nvcpus = 3\nmemory = "1g"\n')
    (folder / "90-not-this.conf").write_text("nonsense")
    (folder / ".30-hidden.toml").write_text("nonsense")
    loaded = config.load()
    assert (loaded.sandbox.vcpus, loaded.sandbox.memory, loaded.sandbox.start_timeout) == (4, 1 << 30, 5)
    assert loaded.origins["sandbox.vcpus"] == str(folder / "20-b.toml")


def test_drop_ins_count_without_a_file(file: Path) -> None:
    (file.parent / "config.d" / "a.toml").write_text("[sandbox]\nvcpus = 3\n")
    assert config.load().sandbox.vcpus == 3


@pytest.mark.parametrize("content", ["", "\n", "# nothing\n", "[sandbox]\n"])
def test_files_that_set_nothing(file: Path, content: str) -> None:
    file.write_text(content)
    assert config.load().values == {}


MISTAKES = [
    ("[sandbox]\nmemry = 1", "there is no setting 'sandbox.memry' (did you mean 'sandbox.memory'?)"),
    ("[sandbox]\nmsize = '8k'", "there is no setting 'sandbox.msize' (did you mean 'share.msize'?)"),
    ("[sandbox]\nzzz = 1", "there is no setting 'sandbox.zzz' (docs/configuration.md lists them all)"),
    ("[sandbx]\nmemory = 1", "there is no section [sandbx] (did you mean 'sandbox'?)"),
    ("memory = 1", "'memory' is outside of any section; write it below [sandbox]"),
    ("colour = 1", "'colour' is outside of any section."),
    ("sandbox = 1", "sandbox is a section; write [sandbox] and its settings below"),
    ("[[sandbox]]\nvcpus = 1", "sandbox is a section; write [sandbox]"),
    ("[sandbox]\nvcpus = '2'", "sandbox.vcpus cannot be '2': it must be a whole number, for example 2."),
    ("[sandbox]\nvcpus = 1.5", "sandbox.vcpus cannot be 1.5: it must be a whole number"),
    ("[sandbox]\nvcpus = true", "sandbox.vcpus cannot be True: it must be a whole number"),
    ("[sandbox]\nvcpus = 0", "sandbox.vcpus cannot be 0: it must be 1 to 255."),
    ("[sandbox]\nvcpus = 256", "sandbox.vcpus cannot be 256: it must be 1 to 255."),
    ("[sandbox]\nmemory = true", "sandbox.memory cannot be True: it must be a size, for example \"512m\"."),
    ("[sandbox]\nmemory = '1x'", "sandbox.memory '1x' is not a size"),
    ("[sandbox]\nmemory = '1k'", "sandbox.memory cannot be '1k': it must be 64MiB to 16TiB."),
    ("[sandbox]\nmemory = -1", "sandbox.memory cannot be -1: it must be 64MiB to 16TiB."),
    ("[sandbox]\nstart_timeout = '1'", "sandbox.start_timeout cannot be '1': it must be a number of seconds"),
    ("[sandbox]\nstart_timeout = nan", "sandbox.start_timeout cannot be nan: it must be 1 to 3600 seconds."),
    ("[sandbox]\nstart_timeout = inf", "sandbox.start_timeout cannot be inf: it must be 1 to 3600 seconds."),
    ("[hypervisor]\naccelerator = 'xen'", "accelerator cannot be 'xen': it must be one of \"auto\", \"kvm\", \"tcg\"."),
    ("[hypervisor]\naccelerator = ['kvm']", "accelerator cannot be ['kvm']: it must be one of"),
    ("[hypervisor]\nuser = 1", "hypervisor.user cannot be 1: it must be text in quotes"),
    ('[guest]\ncmdline_extra = "a\\nb"', "guest.cmdline_extra cannot be 'a\\nb': it must be one line of text."),
    ('[guest]\nkernel = "vmlinuz"', "guest.kernel cannot be 'vmlinuz': it must be an absolute path in quotes"),
    ("[log]\nmaxsize = 1", "there is no setting 'log.maxsize' (did you mean 'log.max_size'?)"),
    ("[console]\nmaxsize = 1", "there is no setting 'console.maxsize' (did you mean 'console.max_size'?)"),
    ("[image]\ninsecure_registries = 'a'", "insecure_registries cannot be 'a': it must be a list of texts"),
    ("[image]\ninsecure_registries = ['a', 1]", "insecure_registries cannot be ['a', 1]: it must be a list of texts"),
    ("[image]\ninsecure_registries = ['']", "insecure_registries cannot be ['']: it must be a list of texts"),
    ("[sandbox\n", "is not TOML: "),
    ("[sandbox]\nvcpus = 1\nvcpus = 2\n", "is not TOML: Cannot overwrite a value"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_file(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_drop_in_is_named_with_its_file(file: Path) -> None:
    path = file.parent / "config.d" / "a.toml"
    path.write_text("[sandbox]\nvcpus = 0")
    with pytest.raises(ConfigError, match=r"config\.d/a\.toml: sandbox\.vcpus cannot be 0"):
        config.load()


def test_what_cannot_be_read_is_named(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.toml is not TOML: it is not UTF-8 text\.$"):
        config.load()
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match=r"^Cannot read .*config\.toml: Is a directory\.$"):
        config.load()


def test_a_file_that_was_named_must_exist(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^The configuration file .*/none\.toml does not exist\.$"):
        config.load(str(file.parent / "none.toml"))
    monkeypatch.setenv("HAKO_CONFIG", str(file))
    with pytest.raises(ConfigError, match="does not exist"):
        config.load()
    file.write_text("[sandbox]\nvcpus = 9\n")
    assert config.load().sandbox.vcpus == 9


@given(st.binary(max_size=200) | st.sampled_from([content.encode() for content, _ in MISTAKES]))
def test_any_file_is_a_configuration_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with contextlib.suppress(ConfigError):
        config.load(str(path))


def test_a_configuration_cannot_be_changed(file: Path) -> None:
    loaded = config.load()
    for thing, name in ((loaded, "sandbox"), (loaded.sandbox, "memory"), (loaded.sandbox, "new")):
        with pytest.raises(AttributeError, match="cannot be changed"):
            setattr(thing, name, 1)
    assert loaded.sandbox.memory == 512 << 20


def test_each_section_and_setting_is_an_attribute() -> None:
    made = config.Config()
    for name, row in SETTINGS.items():
        section, _, key = name.partition(".")
        assert getattr(getattr(made, section), key) == row.default
    assert [section.name for section in SECTIONS] == [name for name in vars(made) if name not in ("values", "origins")]
    assert made.as_dict() == {name: row.default for name, row in SETTINGS.items()}


def test_each_row_is_whole() -> None:
    annotations = [row.annotation for row in SETTINGS.values() if row.annotation]
    assert len(set(annotations)) == len(annotations)
    for name, row in SETTINGS.items():
        assert row.help.endswith("."), name
        assert row.kind or row.limits(), name
        assert row.check(row.default, name) == row.default, "a default is a valid value"


def test_a_shown_default_is_toml_for_itself(file: Path) -> None:
    lines = []
    for section in SECTIONS:
        lines.append(f"[{section.name}]")
        prefix = section.name + "."
        lines += [
            f"{n.removeprefix(prefix)} = {r.show(r.default)}" for n, r in SETTINGS.items() if n.startswith(prefix)
        ]
    file.write_text("\n".join(lines))
    assert config.load().as_dict() == config.Config().as_dict()


def test_annotations_change_one_sandbox(file: Path) -> None:
    file.write_text("[sandbox]\nvcpus = 2\n")
    base = config.load()
    changed = config.apply_annotations(
        base, {"dev.hako.memory": "1g", "dev.hako.start-timeout": "7.5", "org.example/x": "?", "a": "b"}
    )
    assert (changed.sandbox.memory, changed.sandbox.vcpus, changed.sandbox.start_timeout) == (1 << 30, 2, 7.5)
    assert changed.origins["sandbox.memory"] == "annotation dev.hako.memory"
    assert base.sandbox.memory == 512 << 20


def test_without_annotations_of_ours_nothing_is_copied() -> None:
    base = config.Config()
    assert config.apply_annotations(base, {"a": "b", "io.katacontainers.config.runtime.x": "y"}) is base


@pytest.mark.parametrize(
    ("annotations", "memory"),
    [
        ({"io.katacontainers.config.hypervisor.default_memory": "1024"}, 1 << 30),
        ({"io.katacontainers.config.hypervisor.default_memory": "1024m"}, 1 << 30),
        ({"io.katacontainers.config.hypervisor.default_memory": "1024", "dev.hako.memory": "256m"}, 256 << 20),
        ({"dev.hako.memory": "256m", "io.katacontainers.config.hypervisor.default_memory": "1024"}, 256 << 20),
        ({"io.katacontainers.config.hypervisor.unknown": "1"}, 512 << 20),
    ],
)
def test_annotations_of_kata_are_understood(annotations: dict[str, str], memory: int) -> None:
    assert config.apply_annotations(config.Config(), annotations).sandbox.memory == memory


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dev.hako.memory", "lots", "The annotation dev.hako.memory 'lots' is not a size"),
        ("dev.hako.vcpus", "-1", "The annotation dev.hako.vcpus cannot be '-1': it must be a whole number"),
        ("dev.hako.vcpus", "1_0", "The annotation dev.hako.vcpus cannot be '1_0'"),
        ("dev.hako.vcpus", "٣", "The annotation dev.hako.vcpus cannot be '٣'"),
        ("dev.hako.vcpus", "9" * 5000, "it must be 1 to 255."),
        ("dev.hako.start-timeout", "soon", "dev.hako.start-timeout cannot be 'soon': it must be a number of seconds"),
        ("dev.hako.start-timeout", "nan", "must be 1 to 3600 seconds"),
        ("dev.hako.memry", "1g", "The annotation dev.hako.memry is unknown (did you mean 'dev.hako.memory'?)"),
        ("dev.hako.kernel", "/evil", "The annotation dev.hako.kernel is not allowed: guest.kernel is set in"),
        ("dev.hako.guest.kernel", "/evil", "is not allowed: guest.kernel is set in"),
        ("dev.hako.qemu", "/evil", "is not allowed: hypervisor.qemu is set in"),
        ("dev.hako.cmdline-extra", "x", "is not allowed: guest.cmdline_extra is set in"),
        ("io.katacontainers.config.hypervisor.default_vcpus", "x", "The annotation io.katacontainers.config.hyperv"),
    ],
)
def test_bad_annotations_are_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.apply_annotations(config.Config(), {key: value})
    assert message in str(caught.value)


def test_no_annotation_names_a_file_or_program_of_the_host() -> None:
    """Who writes a pod must not choose what runs on the host."""
    forbidden = [name for name, row in SETTINGS.items() if row.annotation and ("Path" in type(row).__name__)]
    allowed = {name for name, row in SETTINGS.items() if row.annotation}
    assert not forbidden
    assert not allowed & {name for name in SETTINGS if name.startswith(("hypervisor.", "guest.", "image."))}


def test_flags_override_and_are_named() -> None:
    changes = {"sandbox.vcpus": "3", "image.insecure_registries": "a:1, b:2", "hypervisor.accelerator": "tcg"}
    changed = config.override(config.Config(), changes, "--set")
    assert changed.sandbox.vcpus == 3
    assert changed.image.insecure_registries == ("a:1", "b:2")
    assert changed.hypervisor.accelerator == "tcg"
    assert changed.origins["sandbox.vcpus"] == "--set"
    with pytest.raises(ConfigError, match=r"^--set: there is no setting 'sandbox\.cpus' \(did you mean"):
        config.override(config.Config(), {"sandbox.cpus": "3"})
    with pytest.raises(ConfigError, match=r"^--cpus: sandbox\.vcpus cannot be 'x'"):
        config.override(config.Config(), {"sandbox.vcpus": "x"}, "--cpus")


def test_an_unreadable_folder_of_drop_ins_is_named(file: Path) -> None:
    folder = file.parent / "config.d"
    folder.rmdir()
    os.symlink(folder, folder)  # a loop: neither missing nor readable, for root too
    with pytest.raises(ConfigError, match=r"^Cannot read .*config\.d: Too many levels of symbolic links\.$"):
        config.load()
