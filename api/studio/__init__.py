"""The studio: a page in the browser, as static files. `api/routes/studio.py` serves them."""
