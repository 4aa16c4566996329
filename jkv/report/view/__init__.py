"""The retention view: one sample of a traced run, token by token, as a page (HTML) and as a picture."""
