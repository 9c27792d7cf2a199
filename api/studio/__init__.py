"""The studio: a page in the browser, as static files. `api/studio/routes.py` serves them."""
