"""The trainings of RRT, one file each: `TrainOptions` and `train(options, out, progress)` on `bench.training`."""
