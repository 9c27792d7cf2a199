"""The bundled model: a music box that plays simple tunes as its prompt says."""
