"""Live forecasts of a training run's final loss, from laws that know the learning-rate schedule."""
