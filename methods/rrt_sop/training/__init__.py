"""The training of the product variant: `TrainOptions` and `train(options, out, progress)` on `bench.training`."""
