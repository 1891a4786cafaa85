"""What is kept between runs: results, checkpoints, and how they are told from stale ones."""
