"""What calls from Python return: a run, a sweep, a trained predictor, a view, as objects that a notebook can show."""
