"""Adapters to other people's weights and formats, one file each, with origin and licence; no code is copied."""
