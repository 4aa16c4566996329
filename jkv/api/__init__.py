"""What Python gets back: a run, a sweep, a trained predictor, as objects that a notebook can show."""
