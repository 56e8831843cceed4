"""Official data sets: where their files are fetched from, how they are unpacked, and what of them is here."""
