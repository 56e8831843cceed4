"""The extractors: one file each, whose name is the extractor's; `bench.extractor` is what a file imports."""
