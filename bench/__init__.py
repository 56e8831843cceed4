"""The harness: every reranker gets the same sealed shortlist and returns scores; everything else happens here."""

__version__ = "0.1.0"
