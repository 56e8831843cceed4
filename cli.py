"""The command line. The commands themselves are in `bench/commands/`."""

from __future__ import annotations

import click

from bench import __version__
from bench.commands import data, feature_sets, listings, reporting, running, training
from bench.commands.shell import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rerankbench")
def main() -> None:
    """Compare image-retrieval rerankers on identical, sealed shortlists.

    \b
    rerankbench run --method all --dataset demo      every reranker on the embedded data set
    rerankbench report                               the tables again, in other formats, with plots
    """


for _command in (
    running.run,
    running.sweep,
    running.first_stages,
    reporting.report,
    reporting.export,
    reporting.show,
    reporting.check,
    listings.methods,
    data.datasets,
    feature_sets.features,
    training.train,
    listings.doctor,
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
