"""Laying out, for HELM, data that was downloaded elsewhere.

    python -m autoeval.helm.stage SOURCE --output-path HELM_OUTPUT_PATH

SOURCE holds, at any depth: folders of HELM's own layout (``mmlu/data/…``, ``scenario_instances/…``, ``nltk_data/…``), or
files and unpacked archives under the names they are published with (docs/helm.md). Archives (.zip, .tar, .tar.gz) are
unpacked first, without following links or leaving the destination. Files that are there already are left alone.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from autoeval.helm.data_files import DataFile, all_files

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


class StageError(ValueError):
    """Nothing could be staged; the message says from where and what was expected."""


def stage(source: Path, output_path: Path) -> list[Path]:
    """Copy what HELM can use from ``source`` to ``output_path``; the files and directories that are new there.

    Raises ``StageError`` when ``source`` is missing, holds nothing HELM's scenarios know, or an archive is broken.
    """
    if not source.exists():
        raise StageError(f"{source}: no such file or directory")
    output_path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_path, prefix=".stage-") as temporary:
        roots = [source] if source.is_dir() else []
        for number, archive in enumerate(_archives(source)):
            roots.append(_unpack(archive, Path(temporary) / str(number)))
        found = [pair for root in roots for pair in _pairs(root, output_path)]
        if not found:
            raise StageError(f"{source}: nothing in it is data of a HELM scenario; docs/helm.md lists the names")
        return [target for origin, target in found if _copy(origin, target)]


def _archives(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return sorted(path for path in source.rglob("*") if path.is_file() and path.name.endswith(_ARCHIVES))


def _unpack(archive: Path, destination: Path) -> Path:
    destination.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _refuse_more_than_fits(archive, sum(one.file_size for one in opened.infolist()), destination)
                opened.extractall(destination)  # drops absolute names and ".."
        else:
            with tarfile.open(archive) as opened_tar:
                _refuse_more_than_fits(archive, sum(one.size for one in opened_tar.getmembers()), destination)
                opened_tar.extractall(destination, filter="data")
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise StageError(f"{archive}: cannot be unpacked: {error}") from error
    return destination


def _refuse_more_than_fits(archive: Path, size: int, destination: Path) -> None:
    """Before anything is unpacked: a few kilobytes can stand for terabytes, and a full disk stops a training run too."""
    if size > (free := room(destination)):
        raise StageError(f"{archive}: unpacked it would take {size} bytes, {free} may be used of {destination}")


def room(directory: Path) -> int:
    """Bytes that may be filled: what is free, but a tenth."""
    return shutil.disk_usage(directory).free * 9 // 10


def _pairs(root: Path, output_path: Path) -> list[tuple[Path, Path]]:
    """(origin, target) of everything under ``root`` that has a place."""
    pairs: list[tuple[Path, Path]] = []
    files = all_files()
    for folder, directories, names in os.walk(root):
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in [*directories, *names]:
            origin = Path(folder) / name
            pairs += [(origin, target) for target in _targets(here / name, origin, files, output_path)]
    return pairs


def _targets(path: PurePosixPath, origin: Path, files: tuple[DataFile, ...], output_path: Path) -> list[Path]:
    scenarios = output_path / "scenarios"
    parts = path.parts
    targets = [
        scenarios / file.path for file in files if _ends(path, file.path) or _ends(path, file.published_as or "\0")
    ]
    if origin.is_file():
        targets += [scenarios / file.path for file in files if not file.published_as and _unique_name(file, path)]
        split = parts[-2] if len(parts) > 1 else ""
        if split in ("auxiliary_train", "dev", "val", "test") and path.name.endswith(f"_{split}.csv"):
            targets.append(scenarios / "mmlu" / "data" / split / path.name)
        for folder in ("scenario_instances", "nltk_data"):
            if folder in parts:
                targets.append(output_path.joinpath(*parts[parts.index(folder) :]))
    return list(dict.fromkeys(targets))


def _unique_name(file: DataFile, path: PurePosixPath) -> bool:
    """Whether the bare name says which file it is (``hellaswag_val.jsonl``, not ``train.jsonl``)."""
    name = PurePosixPath(file.path).name
    return name == path.name and name not in (
        "train",
        "dev",
        "pos",
        "neg",
        "train.jsonl",
        "test.jsonl",
        "summaries.csv",
    )


def _ends(path: PurePosixPath, tail: str) -> bool:
    wanted = PurePosixPath(tail).parts
    return path.parts[-len(wanted) :] == wanted


def _copy(origin: Path, target: Path) -> bool:
    """Copy a file or directory whole, or not at all; whether it was not there before."""
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".stage-") as temporary:
        copy = Path(temporary) / target.name
        if origin.is_dir():
            shutil.copytree(origin, copy)
        elif origin.suffix == ".gz" != target.suffix:  # HELM unpacks these when it downloads them
            with gzip.open(origin) as packed, copy.open("wb") as unpacked:
                left = room(target.parent)
                while block := packed.read(1 << 20):
                    left -= len(block)
                    if left < 0:
                        raise StageError(f"{origin}: unpacked it takes more than there is room for")
                    unpacked.write(block)
        else:
            shutil.copyfile(origin, copy)
        copy.rename(target)
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m autoeval.helm.stage", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, help="a directory or an archive with downloaded data")
    parser.add_argument("--output-path", type=Path, required=True, help="helm_output_path of evaluator.yaml")
    options = parser.parse_args(arguments)
    try:
        new = stage(options.source, options.output_path)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in new:
        print(path)
    print(f"{len(new)} new in {options.output_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
