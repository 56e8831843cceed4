"""Training on stored features of landmarks: the triplets, budget and choice that the recipes `gld` share."""
