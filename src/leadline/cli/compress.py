"""`leadline compress`: make a network small by named steps, measured before and after."""

# ruff: noqa: UP045  typer reads the annotations at run time, and needs Optional

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from leadline.cli.options import DEFAULT_MODEL, Device, Json, Reference, Size, Threads, parse_part, parse_size
from leadline.cli.run import Folder, Processes, Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadline.compression import Step

HELP = """Make a network small: prune, adapt, quantise, fine-tune, search, step by step.

Each --step is NAME or NAME:key=value,key=value; `leadline compress --steps` lists all with
their options. Steps that train need --train-data (losses follow the data, as in
`leadline train`) or --train-config; steps that decide by accuracy need --validation;
--data gives the pictures of the figures before and after. Run the same line again and
it goes on; a finished step is never done again."""

EXAMPLES = (
    "leadline compress --steps",
    "leadline compress leadline-s-indoor --step finetune:iterations=200 --train-data PAIRS --data TEST --out runs/a",
)


def _list_steps(wanted: bool) -> None:
    if wanted:
        from leadline.studies.recipe import known_steps

        typer.echo("\n".join(line for step in known_steps().values() for line in _described(step)))
        raise typer.Exit


def command(
    reference: Reference = DEFAULT_MODEL,
    *,
    steps: Annotated[
        list[str], typer.Option("--step", "-s", metavar="NAME[:key=value,...]", help="What is done; repeat, in order.")
    ],
    train_config: Annotated[
        Optional[Path], typer.Option("--train-config", metavar="FILE", help="Training configuration, YAML.")
    ] = None,
    train_data: Annotated[
        Optional[list[str]], typer.Option("--train-data", metavar="D", help="DATA or DATA#SPLIT to train on; repeat.")
    ] = None,
    batch: Annotated[Optional[int], typer.Option(min=2, help="Pictures of each training iteration.")] = None,
    validation: Annotated[
        Optional[str], typer.Option("--validation", metavar="D", help="DATA or DATA#SPLIT that steps decide on.")
    ] = None,
    calibration: Annotated[
        Optional[str], typer.Option(metavar="D", help="Pictures for quantisation. Default: rendered.")
    ] = None,
    data: Annotated[
        Optional[str], typer.Option("--data", "-d", metavar="D", help="Data set of the figures before and after.")
    ] = None,
    split: Annotated[Optional[str], typer.Option("--split", help="Part of --data.")] = None,
    protocol: Annotated[
        Optional[str], typer.Option("--protocol", "-p", metavar="P", help="How accuracy is counted. Default: plain.")
    ] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, metavar="N", help="At most N pictures of --data.")] = None,
    runtime: Annotated[str, typer.Option("--runtime", "-r", help="Engine whose time counts.")] = "onnxruntime",
    device: Device = "cpu",
    size: Size = None,
    threads: Threads = 1,
    processes: Processes = 1,
    runs: Runs = 60,
    out: Folder,
    as_json: Json = False,
    list_steps: Annotated[
        bool, typer.Option("--steps", callback=_list_steps, is_eager=True, help="List all steps and their options.")
    ] = False,
) -> None:
    """Make a network small by named steps, measured before and after."""
    from pydantic import ValidationError

    from leadline.cli.recipe_output import carry_out
    from leadline.errors import ConfigError
    from leadline.studies.recipe import Recipe, parse_step, train_file
    from leadline.training.config import explain

    if data is None and (split or protocol or limit):
        flag = "--split" if split else "--protocol" if protocol else "--limit"
        raise ConfigError("nothing to score", where=flag, why="it belongs to --data", mend="give --data DATA")
    train = train_file(train_config) if train_config is not None else {}
    train |= {"sources": [parse_part(each) for each in train_data]} if train_data else {}
    if batch is not None:
        train["batch"] = batch
    if train and "sources" not in train:
        raise ConfigError("nothing to train on", where="--batch", mend="give --train-data DATA or --train-config FILE")
    scored = {"data": data, "split": split, "protocol": protocol, "limit": limit}
    values: dict[str, Any] = {
        "model": reference,
        "train": train,
        "validation": parse_part(validation) | ({"protocol": protocol} if protocol else {}) if validation else None,
        "calibration": {"data": calibration},
        "score": {key: value for key, value in scored.items() if value is not None} or None,
        "target": {"runtime": runtime, "device": device, "threads": threads, "size": parse_size(size)},
        "steps": [parse_step(_step(text), f"--step {text}") for text in steps],
    }
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError("cannot make a recipe of these options", **explain(error, Recipe)) from error
    carry_out(recipe, out, processes, runs, as_json)


def _step(text: str) -> dict[str, Any]:
    """`NAME:key=value,key=value` as a recipe writes it; each value is YAML, so that lists and numbers are."""
    import yaml

    from leadline.errors import ConfigError

    name, _, rest = text.partition(":")
    found: dict[str, Any] = {"step": name.strip()}
    for part in _parts(rest):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            mend = "write NAME:key=value,key=value, as in finetune:iterations=200,learning_rate=1e-4"
            raise ConfigError("not an option of a step", where=part, why=f"in --step {text}", mend=mend)
        if key.strip() in found:
            raise ConfigError("said twice", where=key.strip(), why=f"in --step {text}", mend="say it once")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError("not a value", where=value, why=f"in --step {text}: {error}") from error
    return found


def _parts(text: str) -> Iterator[str]:
    """The text between commas that stand in no bracket and no quotes."""
    depth, quote, begun = 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[begun:at]
            begun = at + 1
    if text[begun:].strip():
        yield text[begun:]


def _described(step: type[Step]) -> Iterator[str]:
    """A step's name with the line that says what it does, and its options below."""
    import json

    needs = [name for name, needed in (("--train-data", step.trains), ("--validation", step.judges)) if needed]
    first = " ".join((step.__doc__ or "").strip().split("\n\n")[0].split())
    gives = " Gives a bundle." if step.bundles else ""
    yield f"{step.model_fields['step'].default}: {first}{gives}" + (f" Needs {' and '.join(needs)}." if needs else "")
    for key, field in step.model_fields.items():
        if key != "step":
            default = field.get_default(call_default_factory=True)
            said = "needed" if field.is_required() else f"default {json.dumps(default, default=str)}"
            what = ", ".join(filter(None, (_kind(step, key), said)))
            yield f"    {key} ({what})" + (f": {field.description}" if field.description else "")


def _kind(step: type[Step], key: str) -> str:
    """What an option can be, in JSON's words."""
    schema = step.model_json_schema()
    return " or ".join(_kinds(schema["properties"][key], schema))


def _kinds(schema: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    if "enum" in schema:
        return ["|".join(str(value) for value in schema["enum"])]
    if "const" in schema:
        return [str(schema["const"])]
    if "anyOf" in schema or "oneOf" in schema:
        every = [kind for one in schema.get("anyOf") or schema["oneOf"] for kind in _kinds(one, whole)]
        return [kind for kind in dict.fromkeys(every) if kind != "null"]
    if "$ref" in schema:
        return _kinds(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    kind = schema.get("type", "")
    if kind == "array":
        return [f"list of {' or '.join(_kinds(schema.get('items', {}), whole)) or 'values'}"]
    return [kind] if kind else []
