"""The kinds of features that other programs make: one file each, whose name is the kind's."""
