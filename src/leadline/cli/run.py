"""`leadline run`: carry out a recipe, measured before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leadline.cli.options import Json

HELP = """Carry out a recipe: compression steps in a YAML file, measured before and after.

Keys: model, train (a training configuration or its path), validation (pictures that
steps decide on), calibration, score (pictures of the figures), target (runtime,
threads, size), steps; `leadline compress --steps` lists what a step can be. Run the
same line again and it goes on; a finished step is never done again, also where
another recipe with the same beginning did it in the same folder."""

EXAMPLES = (
    "leadline run recipe.yaml --out runs/small",
    "leadline run recipe.yaml --out runs/small --json > figures.json",
)

Processes = Annotated[int, typer.Option("--processes", min=1, max=256, help="That a step may use side by side.")]
Runs = Annotated[int, typer.Option("--runs", min=5, help="Timed runs of each result.")]
Folder = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run; run again, it goes on.")]


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file.")],
    *,
    out: Folder,
    processes: Processes = 1,
    runs: Runs = 60,
    as_json: Json = False,
) -> None:
    """Carry out a recipe: compression steps in a YAML file, measured before and after."""
    from leadline.cli.recipe_output import carry_out
    from leadline.studies.recipe import load_recipe

    carry_out(load_recipe(recipe), out, processes, runs, as_json)
