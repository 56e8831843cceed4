"""How codebooks are made, one file each: `TrainOptions` and `train(options, out, progress)`."""
