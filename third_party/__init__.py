"""Adapters to other people's weights and formats, one file each, with origin and licence; never copies of their code."""
