"""What forecaster costs and how fast it is: `python -m benchmarks`, or `make bench`."""
