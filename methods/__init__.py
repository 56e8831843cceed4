"""The rerankers: one file or folder each; the name of the method is the name of its file."""
