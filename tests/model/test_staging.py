"""An export takes the place of the one before it whole, or not at all."""

import errno
import os
from pathlib import Path

import pytest

from model import durable_files
from model.durable_files import StorageError
from model.staging import staged


def export(path: Path, content: str) -> None:
    with staged(path) as folder:
        folder.mkdir()
        (folder / "config.json").write_text(content)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "exported"
    export(path, "old")
    return path


def test_new_takes_the_place_of_old_and_nothing_else_is_left(exported: Path) -> None:
    export(exported, "new")
    assert [path.name for path in exported.parent.iterdir()] == ["exported"]
    assert (exported / "config.json").read_text() == "new"


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_renaming_fails_an_export_is_there(
    exported: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException, when: str
) -> None:
    rename = durable_files.rename
    calls = 0

    def failing(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            raise error
        rename(source, target)
        if calls == number:
            raise error

    monkeypatch.setattr(durable_files, "rename", failing)
    with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
        export(exported, "new")
    assert [path.name for path in exported.parent.iterdir()] == ["exported"]
    assert (exported / "config.json").read_text() == ("new" if (number, when) == (2, "after") else "old")


def test_old_stays_under_another_name_when_it_cannot_come_back(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = durable_files.rename

    def first_only(source: Path, target: Path) -> None:
        if target == exported:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(durable_files, "rename", first_only)
    with pytest.raises(StorageError):
        export(exported, "new")
    (left,) = exported.parent.iterdir()
    assert (left / "config.json").read_text() == "old"


def test_content_is_on_disk_before_it_takes_the_name(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = durable_files.sync, durable_files.rename

    def noted_sync(file: object) -> None:
        done.append(Path(file.name).name)  # type: ignore[attr-defined]
        sync(file)  # type: ignore[arg-type]

    def noted_rename(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(durable_files, "sync", noted_sync)
    monkeypatch.setattr(durable_files, "rename", noted_rename)
    export(exported, "new")
    assert done == ["config.json", "rename", "rename"]
