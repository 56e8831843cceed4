"""First stages beside the search of global descriptors: similarities of queries to a whole gallery."""
