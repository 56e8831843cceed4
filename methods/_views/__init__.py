"""Training on views of photographs and buildings: the pairs, budget and choice that the recipes `views` share."""
