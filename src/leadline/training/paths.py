"""Where a run's paths lead: those of a configuration file, and the one it may not write into."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.data.places import PSEUDO, parts, refuse_among_data
from leadline.errors import ConfigError, OutputError
from leadline.manifest import manifest_kind

if TYPE_CHECKING:
    from collections.abc import Collection

    from leadline.training.config import TrainConfig


def located(config: TrainConfig, file: Path, given: Collection[str]) -> TrainConfig:
    """The configuration with the relative paths of its file's data, labels and card made to lead somewhere.

    Each counts from the current folder; where nothing is there, from the file's folder; else from the folder above it
    (so that a file in `configs/` may name paths as they are seen from the project's folder).

    Args:
        config: as read.
        file: the YAML file.
        given: keys that flags set; their paths count from the current folder alone.

    Raises:
        ConfigError: a path leads nowhere; the message names all places that were tried.
    """
    bases = _bases(file)
    changes: dict[str, Any] = {}
    if "sources" not in given:
        changes["sources"] = [
            source.model_copy(
                update={
                    "data": _reference(source.data, bases),
                    "labels": None if source.labels is None else _path(source.labels, bases),
                }
            )
            for source in config.sources
        ]
    if config.validation is not None and "validation" not in given:
        found = _reference(config.validation.data, bases)
        changes["validation"] = config.validation.model_copy(update={"data": found})
    if config.card is not None and "card" not in given:
        changes["card"] = Path(_path(str(config.card), bases))
    return config.model_copy(update=changes)


def located_data(reference: str, file: Path) -> str:
    """A data set reference that stands in a file, its path looked for as `located` does.

    Raises:
        ConfigError: the path leads nowhere.
    """
    return _reference(reference, _bases(file))


def located_path(path: str, file: Path) -> str:
    """A path that stands in a file, looked for as `located` does.

    Raises:
        ConfigError: it leads nowhere.
    """
    return _path(path, _bases(file))


def beside(path: str, file: Path) -> str:
    """The path of a file that may not be there yet: where `located` finds it, else as it stands."""
    return next((str(base / path) for base in _bases(file) if (base / path).exists()), path)


def refuse_data_folder(config: TrainConfig, out: Path) -> None:
    """Refuse to write a run into the data that it reads, or into an export or a checkpoint.

    Raises:
        OutputError: `out` is one of the run's data folders, or lies inside one; or it holds a bundle or a checkpoint.
    """
    references = [source.data for source in config.sources]
    references += [source.labels for source in config.sources if source.labels is not None]
    references += [config.validation.data] if config.validation is not None else []
    refuse_among_data(references, out, "a run")
    found = manifest_kind(out)
    if found is not None:
        why = f"it is a {found}, and its files would lie among the run's"
        raise OutputError("will not write a run into", where=out, why=why, mend="choose another --out")


def _bases(file: Path) -> tuple[Path, ...]:
    above = file.absolute().parent
    return Path(), above, above.parent


def _reference(text: str, bases: tuple[Path, ...]) -> str:
    before, path, after = parts(text)
    if not path or (not before and ":" in text):  # a format that is unknown: opening it says so
        return text
    if before == PSEUDO:  # its pictures are a reference of their own
        pictures, *labels = path.split(",")
        return before + ",".join([_reference(pictures, bases), *(_path(label, bases) for label in labels)])
    return before + _path(path, bases) + after


def _path(text: str, bases: tuple[Path, ...]) -> str:
    path = Path(text)
    if path.is_absolute() or path.exists():
        return text
    tried = [(base / path).absolute() for base in bases]
    for place in tried:
        if place.exists():
            return str(place)
    why = f"neither {' nor '.join(str(place) for place in dict.fromkeys(tried))} exists"
    raise ConfigError("a path of the configuration leads nowhere", where=text, why=why)
