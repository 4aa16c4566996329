"""What tests share: tiny checkpoints, oracles, ways to compile and to run processes."""
