"""The command `train`: its methods, recipes and options are those that the recipes declare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    pass


class _Trainers(click.Group):
    """`train METHOD`: the methods that have recipes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from bench.recipes import recipes

        return sorted(recipes())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _Trainer(name, short_help=f"Train {name}.") if name in self.list_commands(ctx) else None


class _Trainer(click.Command):
    """`train METHOD --recipe NAME`, its other options made from the `TrainOptions` of that recipe."""

    def _known(self) -> list[str]:
        from bench.recipes import recipes

        return list(recipes()[str(self.name)])

    def _recipe(self, help: str | None = None) -> click.Option:
        known = self._known()
        default = "views" if "views" in known else known[0]
        return click.Option(["--recipe"], metavar="NAME", default=default, show_default=True, help=help)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        lenient = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
        peek = click.Command("recipe", params=[self._recipe()], add_help_option=False, context_settings=lenient)
        self._choose(str(peek.make_context("recipe", list(args)).params["recipe"]))
        return super().parse_args(ctx, args)

    def _choose(self, name: str) -> None:
        import dataclasses
        import typing

        from bench.options import described, parse_value
        from bench.recipes import load_recipe

        module = load_recipe(str(self.name), name)
        kinds = typing.get_type_hints(module.TrainOptions)
        meanings = described(module.TrainOptions)

        def run_training(recipe: str, out: Path, **given: str | None) -> None:
            from bench.files import writing
            from bench.report.terminal import progress_bars
            from bench.training import require_name

            require_name(out)  # now, not after the minutes that preparing may take
            with writing(out):
                out.parent.mkdir(parents=True, exist_ok=True)
            values = {
                key: parse_value(text, kinds[key], f"--{key.replace('_', '-')}")
                for key, text in given.items()
                if text is not None
            }
            with progress_bars() as progress:
                card = module.train(module.TrainOptions(**values), out, progress)
            click.echo(f"weights: {out}")
            for key, value in card.items():
                click.echo(f"  {key}: {value}")

        def option(field: dataclasses.Field) -> click.Option:
            value = field.default
            shown = (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)
            names = [f"--{field.name.replace('_', '-')}"]
            return click.Option(names, metavar="VALUE", help=f"{meanings.get(field.name, '')} [default: {shown}]")

        fields = dataclasses.fields(module.TrainOptions)
        recipe = self._recipe(f"{', '.join(self._known())}; each has options of its own.")
        out = click.Option(
            ["--out"],
            required=True,
            type=click.Path(path_type=Path, dir_okay=False),
            help="Weights to write (.safetensors); where a recipe keeps its state beside them, it resumes from that.",
        )
        self.params = [recipe, out, *map(option, fields)]
        self.callback, self.help = run_training, module.train.__doc__


@click.group(cls=_Trainers)
def train() -> None:
    """Train the weights of a reranker."""
