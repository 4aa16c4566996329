"""The retention view: one sample of a traced run, token by token, as an HTML page and as a picture."""
